"""Blocks beside each other: what each costs inside a net, and whether one choice is slower than its neighbour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bblab.latency.words import NO_INTERVAL_WORDS, busy_words, count_of
from bblab.reports import Cell, Column, Page, Table, report
from bblab.reports.kit import tables

Row = Mapping[str, Any]  # an element of `bblab bench --blocks --json`


@report("blocks")
def blocks(rows: Sequence[Row]) -> Page:
    """One line a block and session, in the order asked for."""
    has_runtimes = len({r["runtime"] for r in rows}) > 1
    has_threads = len({r["threads"] for r in rows}) > 1
    columns = (
        Column("runtime" * has_runtimes, "runtime", align="left"),
        Column("threads" * has_threads, "threads"),
        Column("block", "label", align="left"),
        Column("map", "maps", "in → out", align="left"),
        Column("time", "block_s", "us, 95 %"),
        Column("", "block_low_s"),
        Column("", "block_high_s"),
        Column("of reference", "ratio", "%, 95 %"),
        Column("", "ratio_low"),
        Column("", "ratio_high"),
        Column("error", "conversion_rel_error", "vs torch"),
    )
    cells, values = [], []
    for r in rows:
        maps = f"{'×'.join(map(str, r['in']))} → {'×'.join(map(str, r['out']))}"
        raw: tuple[Cell, ...] = (
            r["runtime"], r["threads"], r["label"], maps, r["block_s"], r["block_low_s"], r["block_high_s"],
            r["ratio"], r["ratio_low"], r["ratio_high"], r["conversion_rel_error"],
        )  # fmt: skip
        values.append(raw)
        mark = " ?" if r["is_lost"] else ""
        cells.append((
            r["runtime"], str(r["threads"]), r["label"] + mark, maps, _span(r, "block", 1e6, "_s", 1), "", "",
            _span(r, "ratio", 100, "", 3), "", "", f"{r['conversion_rel_error']:.0e}",
        ))  # fmt: skip
    return Page("blocks", Table(columns, tuple(cells), tuple(values)), _notes(rows))


def _span(row: Row, name: str, scale: float, unit: str, digits: int) -> str:
    middle, low, high = (row[f"{name}{end}{unit}"] for end in ("", "_low", "_high"))
    return tables.span(middle, low, high, digits, scale)


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    found = []
    for first in {r["session"]: r for r in rows}.values():
        threads = f"{first['threads']} thread{'s' * (first['threads'] > 1)}"
        state = "THE CLOCK DRIFTED; " if first["drift"] == "drift" else ""
        busy = busy_words(first["wall_over_cpu"]) or f"wall/CPU {tables.plain_number(first['wall_over_cpu'])}"
        found.append(
            f"{first['device']}, {first['runtime']} {first['runtime_version']}, {first['precision']}, {threads}, "
            f"batch 1, {first['form']}; {count_of(first['processes'], 'process', 'processes')} × "
            f"{count_of(first['rounds'], 'round')} in shuffled order, warm calls, "
            f"beside {first['reference']} at {first['reference_input'][2]} px; {state}{busy}"
        )
        found += first["notes"]
        if first["processes"] < 2:
            found.append(NO_INTERVAL_WORDS)
    found.append(
        "a block's time is that between two neighbours, without the call and the change of layout that a block alone "
        "pays: two copying neighbours are put around it and their time is taken off"
    )
    if any(r["is_lost"] for r in rows):
        found.append("? cannot be told from nothing here: measure a larger map, or longer (--budget)")
    return tuple(found)


@report("estimates")
def estimates(rows: Sequence[Row]) -> Page:
    """One line a net: measured whole, added up from its blocks, and how far the sum is off."""
    has_runtimes = len({r["runtime"] for r in rows}) > 1
    columns = (
        Column("runtime" * has_runtimes, "runtime", align="left"),
        Column("net", "label", align="left"),
        Column("blocks", "num_blocks"),
        Column("measured", "measured_ratio", "× reference, 95 %"),
        Column("", "measured_ratio_low"),
        Column("", "measured_ratio_high"),
        Column("sum of blocks", "added_ratio", "× reference, 95 %"),
        Column("", "added_ratio_low"),
        Column("", "added_ratio_high"),
        Column("sum's error", "error", "%, 95 %"),
        Column("", "error_low"),
        Column("", "error_high"),
        Column("costliest row", "costliest", align="left"),
        Column("its share", "costliest_share"),
    )
    cells, values = [], []
    for r in rows:
        top = max(r["blocks"], key=lambda b: b["seconds"])
        # Where noise makes the sum nothing or less, no row has a share of it.
        share = top["ratio"] / r["added_ratio"] if r["added_ratio"] > 0 else None
        spans = ("measured_ratio", "added_ratio", "error")
        raw: tuple[Cell, ...] = (
            r["runtime"], r["label"], len(r["blocks"]),
            *(r[f"{name}{end}"] for name in spans for end in ("", "_low", "_high")), top["row"], share,
        )  # fmt: skip
        values.append(raw)
        cells.append((
            r["runtime"], r["label"], str(len(r["blocks"])), _span(r, "measured_ratio", 1, "", 4), "", "",
            _span(r, "added_ratio", 1, "", 4), "", "", _span(r, "error", 100, "", 1), "", "", top["row"],
            tables.plain_number(share, ".0%"),
        ))  # fmt: skip
    return Page(
        "estimates", Table(columns, tuple(cells), tuple(values)), _notes([{**r, "is_lost": False} for r in rows])
    )
