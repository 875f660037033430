"""bblab profile: the truth about one spec, or a comparison of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bblab.cli import common

if TYPE_CHECKING:
    from bblab.lab import Lab, Profile
    from bblab.reports import Page


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab profile mobileone_k5_se nanotrack mobilenetv3_small@s16")(profile)


def profile(
    specs: common.SpecsArgument,
    edits: common.SetOption = None,
    layers: Annotated[bool, typer.Option("--layers", help="Every operation of every block, both forms.")] = False,
    no_latency: Annotated[bool, typer.Option("--no-latency", help="Do not measure on this host.")] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not measure how far the deploy form is from the train form.")
    ] = False,
    witness: Annotated[
        str | None,
        typer.Option("--witness", metavar="NAMES", help="Count beside: fvcore,thop,torch, each difference explained."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="SECONDS", help="Bound on measuring latency.")
    ] = None,
    csv: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE|-", callback=common.writable, help="Write the comparison table as CSV."),
    ] = None,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Parameters, MACs, memory, receptive field, tracker geometry, broken rules and latency of a spec.

    Train form and deploy form stand side by side. Several specs give a comparison table.
    """
    from bblab import reports
    from bblab.errors import BblabError
    from bblab.lab import Partial

    if json == "-" and csv == "-":
        raise BblabError("--json - and --csv - both want stdout", hint="give one of them a file")
    from bblab.cli import witnesses

    others = None if witness is None else witnesses.names(witness)
    opened = common.open_lab(lab)
    machine = "-" in (json, csv)
    plan = None
    if not no_latency:
        from bblab.latency import Plan

        plan = Plan(budget_s=budget)
    failed: BblabError | None = None
    with common.progress_bar(quiet=machine) as tell:
        try:
            profiles = opened.profile(
                specs, edits=edits or (), latency=not no_latency, verify=not no_verify, plan=plan, on_progress=tell
            )
        except Partial as stopped:
            profiles, failed = list(stopped.profiles), stopped.because
    rows = [p.to_json() for p in profiles]
    if layers:
        for p, row in zip(profiles, rows, strict=True):
            row["layers"] = opened.layers(p.spec)
    if others:
        for p, row in zip(profiles, rows, strict=True):
            row["witnesses"] = opened.witnesses(p.spec, others)
    page = reports.find("comparison", opened.rooms)(rows)
    if not machine:
        _draw(profiles, rows, page)
    if csv:
        common.write_text(csv, page.table.to_csv())
    if json:
        common.write_json(json, rows)
    for notice in opened.notices:
        common.warn(notice)
    if not machine:
        _last_line(opened, profiles, specs, [t for t in (json, csv) if t])
    if failed is not None:
        raise failed


def _draw(profiles: Sequence[Profile], rows: list[dict[str, Any]], page: Page) -> None:
    from bblab.cli import card, tables

    out = common.console()
    if len(profiles) == 1:
        card.draw(profiles[0], out)
    else:
        tables.print_whole(tables.rich_table(page.table), out)
        for note in page.notes:
            out.print(note, style="dim", markup=False)
        out.print()
    for row in rows:
        if "layers" in row:
            out.print(tables.layers_table(row))
        if "witnesses" in row:
            from bblab.cli import witnesses

            out.print(witnesses.table(row))


def _last_line(opened: Lab, profiles: Sequence[Profile], specs: list[str], files: list[str]) -> None:
    ids = [str(p.run_id) for p in profiles if p.run_id is not None]
    where = (
        f"stored as run{'s' * (len(ids) > 1)} {', '.join(ids)} in {common.short(opened.store_path)}"
        if ids
        else "not stored"
    )
    if files:
        where += "; written " + ", ".join(files)
    if len(profiles) > 1:
        after = f"bblab profile {specs[0]}"
    elif profiles[0].spec.library is None and profiles[0].worst():
        after = f"bblab check {specs[0]}"
    else:
        after = f"bblab profile {specs[0]} mobilenetv3_small@s16 nanotrack"
    common.console().print(f"{where} · next: {after}", style="dim", markup=False, soft_wrap=True)
