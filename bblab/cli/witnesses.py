"""What other counters say beside bblab's figures, each difference explained line by line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bblab.analysis.witness import NAMES
from bblab.cli import tables
from bblab.errors import BblabError, near


def names(text: str) -> list[str]:
    """`fvcore,thop` as a list, each once. Raises BblabError for an unknown name and for an empty list."""
    asked = [part.strip() for part in text.split(",") if part.strip()]
    for name in asked:
        if name not in NAMES:
            raise BblabError(f"no witness {name!r}", hint=near(name, NAMES))
    if not asked:
        raise BblabError("--witness names no counter", hint=f"choose from {', '.join(NAMES)}; several with commas")
    return list(dict.fromkeys(asked))


def table(row: Mapping[str, Any]) -> RenderableType:
    """A table of `row["witnesses"]`: bblab's own figures of a form, then each witness with what explains it."""
    drawn = tables.plain(
        [("", "left"), ("parameters", "right"), ("more or less", "right"), ("MACs", "right"), ("more or less", "right")]
    )
    drawn.title = Text(f"{row['name']}, the whole net: other counters beside bblab's")
    drawn.title_justify = "left"
    for form in dict.fromkeys(w["form"] for w in row["witnesses"]):
        entries = [w for w in row["witnesses"] if w["form"] == form]
        ours = entries[0]["ours"]
        drawn.add_row(Text(f"bblab, {form}", style="bold"), f"{ours['params']:,}", "", f"{ours['macs']:,}", "")
        for entry in entries:
            _add(drawn, entry)
    said = {f"{w['witness']} {w['version']}: {note}": None for w in row["witnesses"] for note in w["notes"]}
    lines = [Text(note, style="dim") for note in said]
    about = Text("MACs of bblab: multiply-adds of convolutions, linear layers and matrix products, nothing else", "dim")
    return Group(drawn, about, *lines, Text(""))


def _add(drawn: Table, w: Mapping[str, Any]) -> None:
    name = f"{w['witness']} {w['version']}"
    if w["macs"] is None:
        drawn.add_row(name, "failed", "", "failed", "", style="yellow")
        return
    more = _signed(w["difference_params"]) or "=", _signed(w["difference"]) or "="
    drawn.add_row(name, f"{w['params']:,}", more[0], f"{w['macs']:,}", more[1])
    for e in w["explained"]:
        drawn.add_row(f"  {e['count']} × {e['what']}", "", _signed(e["params"]), "", _signed(e["macs"]), style="dim")
    if w["unexplained"] or w["unexplained_params"]:
        rest = _signed(w["unexplained_params"]), _signed(w["unexplained"])
        drawn.add_row("  not explained", "", rest[0], "", rest[1], style="bold red")


def _signed(value: int) -> str:
    return "" if value == 0 else f"{value:+,}"
