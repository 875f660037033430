"""bblab check: the design rules, each with its number and source."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bblab.cli import common


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab check mobileone_k5_se nanotrack")(check)


def check(
    specs: Annotated[list[str] | None, typer.Argument(metavar="SPEC...", help="As for `bblab profile`.")] = None,
    edits: common.SetOption = None,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules themselves.")] = False,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Check specs against the design rules.

    Exit code 1 when an error finding is not waived."""
    from bblab.analysis.rules import RULES
    from bblab.errors import BblabError

    if rules:
        _list_rules(json)
        return
    if not specs:
        raise BblabError("no spec given", hint="bblab check SPEC..., or bblab check --rules")
    opened = common.open_lab(lab)
    profiles, mistakes = [], []
    for spec in opened.every(specs, edits or ()):
        try:
            profiles.append(opened.check(spec))
        except BblabError as error:
            mistakes.append(error)
    if mistakes:
        raise mistakes[0] if len(mistakes) == 1 else BblabError("\n".join(str(m) for m in mistakes))
    if json:
        rows = [
            {"name": p.spec.name, "spec_id": p.spec.spec_id, "findings": [f.to_json() for f in p.findings]}
            for p in profiles
        ]
        common.write_json(json, rows)
    if json != "-":
        from rich.text import Text

        from bblab.cli import card

        out = common.console()
        for p in profiles:
            open_ones = [f for f in p.findings if f.waived is None]
            counts = ", ".join(
                f"{n} {s}{'s' * (n > 1)}"
                for s in ("error", "warning", "note")
                if (n := sum(f.severity == s for f in open_ones))
            )
            out.print(Text.assemble((p.spec.name, "bold"), f"  {counts or 'no rule is broken'}"))
            if p.findings:
                out.print(card.finding_lines([f.to_json() for f in p.findings]))
            out.print()
        last = f"{len(RULES)} rules: bblab check --rules · waive one with `waive: {{RULE: reason}}` in the spec"
        out.print(last + f" · next: bblab profile {specs[0]}", style="dim", markup=False, soft_wrap=True)
    for notice in opened.notices:
        common.warn(notice)
    if any(p.worst() == "error" for p in profiles):
        raise typer.Exit(1)


def _list_rules(json: str | None) -> None:
    from bblab.analysis.rules import RULES

    rows: list[dict[str, Any]] = [
        {"rule": r.name, "severity": r.severity, "about": r.about, "source": r.source} for r in RULES.values()
    ]
    if json:
        common.write_json(json, rows)
    if json != "-":
        from bblab.cli import tables

        drawn = tables.plain([("rule", "left"), ("severity", "left"), ("about", "left"), ("source", "left")])
        for r in rows:
            drawn.add_row(r["rule"], r["severity"], r["about"], r["source"])
        common.console().print(drawn)
