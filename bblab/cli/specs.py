"""bblab specs: every architecture that can be named."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from bblab.cli import common
from bblab.errors import BblabError, near


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab specs --json specs.json")(specs)


def specs(
    family: Annotated[
        str | None, typer.Option("--family", metavar="NAME", help="Only one family, such as MobileOne.")
    ] = None,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """List every spec with its cost, and what is published of it."""
    opened = common.open_lab(lab)
    with common.progress_bar(quiet=json == "-") as tell:
        entries = opened.specs(on_progress=tell)
    if family:
        known = {e.published.family for e in entries if e.published}
        if family.lower() not in {f.lower() for f in known}:
            raise BblabError(f"no family {family!r}", hint=near(family, known))
        entries = [e for e in entries if e.published and e.published.family.lower() == family.lower()]
    if json:
        common.write_json(json, [_row(e) for e in entries])
    if json == "-":
        return
    from bblab.cli import tables

    drawn = tables.plain(
        [
            ("spec", "left"), ("family", "left"), ("params", "right"), ("MACs", "right"), ("stride", "right"),
            ("RF px", "right"), ("top-1 %", "right"), ("published speed", "left"), ("code", "left"),
        ]
    )  # fmt: skip
    for e in entries:
        p = e.published
        name = e.name + (" [lab]" if e.origin == "lab" else "")
        if e.error or e.cost is None or e.spec is None:
            said = e.error.splitlines()[0] if e.error else e.about
            drawn.add_row(Text(name), p.family if p else "", *["–"] * 5, "", Text(said), style="red" if e.error else "")
            continue
        last = e.cost.taps[-1]
        rf = "–" if last.receptive_field is None else f"{last.receptive_field}{'+' if last.is_global else ''}"
        speed = f"{p.speed}, {p.speed_device}" if p and p.speed else ""
        top1 = "" if p is None or p.top1_percent is None else f"{p.top1_percent:.1f}{'*' if p.top1_note else ''}"
        code = p.code if p else _brief(e.about)
        drawn.add_row(
            Text(name), p.family if p else "", common.si(e.cost.params), common.si(e.cost.macs),
            f"{last.stride or '–'}", rf, top1, speed, Text(code),
        )  # fmt: skip
    out = common.console()
    tables.print_whole(drawn, out)
    sound = next((e.name for e in entries if not e.error), "SPEC")
    said = "deploy form with head, at the spec's own input; + sees the whole map; * see --json for how it was trained"
    where = f"{said}\npublished figures are their sources' (--json names them), not measured here"
    own = f"your own specs go into {common.short(opened.folder / 'arch_specs')}"
    out.print(f"{where}\n{own} · next: bblab new mine --like {sound}", style="dim", markup=False, soft_wrap=True)


def _brief(about: str) -> str:
    first = about.split(";")[0].split(". ")[0]
    return first if len(first) <= 70 else first[:67] + "..."


def _row(e: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"name": e.name, "origin": e.origin, "path": str(e.path), "about": e.about, "error": e.error}
    row["published"] = asdict(e.published) if e.published else None
    if e.cost is not None and e.spec is not None and e.train is not None:
        last = e.cost.taps[-1]
        row.update(
            spec_id=e.spec.spec_id,
            input=list(e.cost.input),
            params={"train": e.train.params, "deploy": e.cost.params},
            params_backbone={"train": e.train.params_backbone, "deploy": e.cost.params_backbone},
            macs={"train": e.train.macs, "deploy": e.cost.macs},
            macs_backbone={"train": e.train.macs_backbone, "deploy": e.cost.macs_backbone},
            stride=last.stride,
            receptive_field=last.receptive_field,
            is_receptive_field_global=last.is_global,
        )
    return row
