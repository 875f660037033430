"""Tables on the terminal: a report's Page, the layers of a net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bblab import reports
from bblab.cli.common import shape, si


def rich_table(table: reports.Table) -> Table:
    """A report's table for the terminal: the columns that have a title."""
    drawn = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    shown = [i for i, c in enumerate(table.columns) if c.title]
    for i in shown:
        c = table.columns[i]
        title = Text(c.title)
        if c.unit:
            title.append(f"\n{c.unit}", style="dim not bold")
        drawn.add_column(title, justify=c.align, no_wrap=True, vertical="bottom")
    for row in table.cells:
        drawn.add_row(*[Text(row[i]) for i in shown])
    return drawn


def print_whole(drawn: Table, out: Console) -> None:
    """Print a table without cutting cells off, also where it is wider than the terminal."""
    wanted = drawn.__rich_measure__(out, out.options.update(max_width=1000)).maximum
    out.width = max(out.width, wanted)
    out.print(drawn, crop=False)


class _Plain(Table):
    """Strings are data here, never Rich markup: `list[int]` keeps its brackets."""

    def add_row(self, *cells: Any, **more: Any) -> None:
        super().add_row(*[Text(c) if isinstance(c, str) else c for c in cells], **more)


def plain(columns: list[tuple[str, str]]) -> Table:
    """An empty table: (title, "left" or "right") for each column."""
    drawn = _Plain(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title, side in columns:
        drawn.add_column(title, justify=side, overflow="fold")  # type: ignore[arg-type]
    return drawn


def layers_table(row: Mapping[str, Any]) -> Table:
    """Every operation: where, what, its output and cost."""
    drawn = plain(
        [("form", "left"), ("block", "left"), ("layer", "left"), ("op", "left"), ("output", "right"),
         ("parameters", "right"), ("MACs", "right"), ("elements", "right")]
    )  # fmt: skip
    drawn.title = Text(row["name"])
    for layer in row["layers"]:
        macs = "not counted" if layer["macs"] is None else (si(layer["macs"]) if layer["macs"] else "")
        drawn.add_row(
            layer["form"], layer["block"], layer["layer"], layer["op"], shape(layer["out"]),
            si(layer["params"]) if layer["params"] else "", macs, si(layer["elements_written"]),
        )  # fmt: skip
    return drawn
