"""bblab specs: every architecture that can be named."""

from __future__ import annotations

from typing import Any

import typer

from bblab.cli import common


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab specs --json specs.json")(specs)


def specs(json: common.JsonOption = None, lab: common.LabOption = None) -> None:
    """List every spec with its cost at its own input."""
    opened = common.open_lab(lab)
    entries = opened.specs()
    if json:
        common.write_json(json, [_row(e) for e in entries])
    if json == "-":
        return
    from bblab.cli import tables

    titles = ["params", "MACs", "stride", "RF px", "input"]
    drawn = tables.plain([("spec", "left"), *[(t, "right") for t in titles], ("about", "left")])
    for e in entries:
        if e.error or e.cost is None or e.spec is None:
            said = e.error.splitlines()[0] if e.error else e.about
            drawn.add_row(e.name, *["–"] * 5, said, style="red" if e.error else "")
            continue
        last = e.cost.taps[-1]
        rf = "–" if last.receptive_field is None else f"{last.receptive_field}{'+' if last.is_global else ''}"
        drawn.add_row(
            e.name, common.si(e.cost.params), common.si(e.cost.macs), f"{last.stride or '–'}", rf,
            common.shape(e.cost.input), _brief(e.about) + (" [lab]" if e.origin == "lab" else ""),
        )  # fmt: skip
    out = common.console()
    out.print(drawn)
    sound = next((e.name for e in entries if not e.error), "SPEC")
    where = f"deploy form, with head · your own go into {common.short(opened.folder / 'arch_specs')}"
    out.print(f"{where} · next: bblab new mine --like {sound}", style="dim", markup=False, soft_wrap=True)


def _brief(about: str) -> str:
    first = about.split(";")[0].split(". ")[0]
    return first if len(first) <= 70 else first[:67] + "..."


def _row(e: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"name": e.name, "origin": e.origin, "path": str(e.path), "about": e.about, "error": e.error}
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
