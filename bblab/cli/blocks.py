"""bblab blocks: what a spec's rows may name, with arguments, defaults and source."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bblab.cli import common


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab blocks mbconv")(blocks)


def blocks(
    kind: Annotated[str | None, typer.Argument(metavar="BLOCK", help="Show one block in full.")] = None,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """List the blocks that a spec may name."""
    from bblab.blocks import get

    opened = common.open_lab(lab)
    kinds = opened.kinds
    chosen = [get(kind, dict(kinds))] if kind else [i for i in kinds.values() if not i.refusal]
    if json:
        common.write_json(json, [_row(i) for i in chosen])
    if json == "-":
        return
    out = common.console()
    if kind:
        _one(chosen[0], out)
        return
    from bblab.cli import tables

    drawn = tables.plain([("block", "left"), ("arguments", "left"), ("source", "left")])
    for i in chosen:
        arguments = ", ".join(p.name if p.is_required else f"{p.name}={_shown(p.default)}" for p in i.params)
        name = i.kind + (" (head)" if i.is_head else "") + (" [lab]" if i.origin == "lab" else "")
        drawn.add_row(name, arguments, i.source)
    out.print(drawn)
    out.print("every row also takes block, out, stride, repeat · next: bblab blocks mbconv", style="dim", markup=False)


def _one(info: Any, out: Any) -> None:
    from rich.text import Text

    from bblab.cli import tables

    out.print(Text.assemble((info.kind, "bold"), f"  {info.class_name} in {common.short(info.file)}"), soft_wrap=True)
    out.print(info.doc or "no docstring", markup=False)
    drawn = tables.plain([("argument", "left"), ("type", "left"), ("default", "left")])
    for p in info.params:
        drawn.add_row(p.name, p.annotation, "required" if p.is_required else _shown(p.default))
    out.print(drawn)
    if info.source:
        out.print(f"source: {info.source}", style="dim", markup=False)


def _shown(value: Any) -> str:
    """A default as a spec writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _row(info: Any) -> dict[str, Any]:
    return {
        "name": info.kind,
        "kind": info.kind,
        "origin": info.origin,
        "file": str(info.file),
        "file_stem": info.file.stem,
        "class": info.class_name,
        "has_stride": info.has_stride,
        "is_head": info.is_head,
        "source": info.source,
        "doc": info.doc,
        "arguments": [
            {"name": p.name, "type": p.annotation, "default": p.default, "required": p.is_required} for p in info.params
        ],
    }
