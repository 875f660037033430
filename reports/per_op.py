"""Where the time of a net goes: its stages and rows, its operators, and how well the parts add up to the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bblab.latency import machine_words
from bblab.reports import Cell, Column, Page, Table, report
from bblab.reports.kit import tables

Row = Mapping[str, Any]  # an element of `bblab bench --per-op --json`
TOP = 12
APART = 0.10  # parts and whole that differ by more are called apart


@report("per_op")
def per_op(rows: Sequence[Row]) -> Page:
    """One line a row of the spec, for every net, form and runtime."""
    many = len(rows) > 1
    columns = (
        Column("net" * many, "label", align="left"),
        Column("", "runtime"),
        Column("stage", "stage", align="left"),
        Column("row", "row", align="left"),
        Column("block", "kind", align="left"),
        Column("time", "seconds", "ms, median"),
        Column("share", "share", "of the sum"),
        Column("stage's", "stage_share", "share"),
        Column("operators", "operators"),
        Column("GMAC/s", "macs_per_s"),
    )
    cells, values = [], []
    for row in rows:
        of_stage = {part["name"]: part["share"] for part in row["stages"]}
        before = None
        for part in row["rows"]:
            stage = part["stage"] or part["name"]
            is_first, before = stage != before, stage
            share = of_stage.get(stage)
            speed = part["macs_per_s"]
            raw: tuple[Cell, ...] = (
                row["label"], row["runtime"], part["stage"], part["name"], part["kind"], part["seconds"],
                part["share"], share, part["operators"], speed,
            )  # fmt: skip
            values.append(raw)
            cells.append((
                f"{row['label']}, {row['runtime']}", "", part["stage"] if is_first else "", part["name"], part["kind"],
                _ms(part["seconds"]), f"{part['share']:.1%}", f"{share:.1%}" if is_first and share is not None else "",
                str(part["operators"]), "–" if speed is None else f"{speed / 1e9:.1f}",
            ))  # fmt: skip
    notes = tuple(note for row in rows for note in _notes(row, many))
    return Page("operators", Table(columns, tuple(cells), tuple(values)), notes)


@report("per_op_top")
def per_op_top(rows: Sequence[Row]) -> Page:
    """The slowest operators of each net; all of them in CSV."""
    many = len(rows) > 1
    columns = (
        Column("net" * many, "label", align="left"),
        Column("", "runtime"),
        Column("operator", "op", align="left"),
        Column("row", "row", align="left"),
        Column("of", "module", align="left"),
        Column("", "name"),
        Column("time", "median_s", "ms, median"),
        Column("p10", "p10_s", "ms"),
        Column("p90", "p90_s", "ms"),
        Column("share", "share"),
        Column("kernel" * any(o["kernel"] for r in rows for o in r["operators"]), "kernel", align="left"),
    )
    cells, values = [], []
    for row in rows:
        for op in sorted(row["operators"], key=lambda o: -o["median_s"])[:TOP]:
            within = op["module"].removeprefix("net.").removeprefix(f"{op['row'] or ''}.")
            values.append((
                row["label"], row["runtime"], op["op"], op["row"], op["module"], op["name"], op["median_s"],
                op["p10_s"], op["p90_s"], op["share"], op["kernel"],
            ))  # fmt: skip
            cells.append((
                f"{row['label']}, {row['runtime']}", "", op["op"], op["row"] or "–",
                within.partition("_output_")[0] or op["name"], "", _ms(op["median_s"]), _ms(op["p10_s"]),
                _ms(op["p90_s"]), f"{op['share']:.1%}", op["kernel"],
            ))  # fmt: skip
    return Page("slowest operators", Table(columns, tuple(cells), tuple(values)))


def _notes(row: Row, many: bool) -> list[str]:
    name = f"{row['label']}: " if many else ""
    threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    size = "×".join(map(str, row["input"]))
    found = [
        f"{name}{row['device']}, {row['runtime']} {row['runtime_version']}, {row['precision']}, {threads}, batch 1, "
        f"{size}; {row['processes']} processes, {row['calls']} plain and as many profiled calls in turn, warm; medians "
        "over calls"
    ]
    added = row["profile_adds_s_an_operator"]
    profiled = (
        f"{_ms(row['sum_as_profiled_s'])} as profiled, which adds {added * 1e6:.1f} us to each; " if added else ""
    )
    ratio = row["sum_over_whole"]
    which = "CPU, as other work held the machine" if row["whole_s"] == row["whole_cpu_p50_s"] else "wall"
    apart = " THE PARTS DO NOT ADD UP TO THE WHOLE" if abs(ratio - 1) > APART else ""
    found.append(
        f"{name}sum of {len(row['operators'])} operators {_ms(row['sum_s'])} ms ({profiled}{ratio:.1%} of the whole "
        f"call, {_ms(row['whole_s'])} ms {which}, median, unprofiled){apart}"
    )
    kinds = ", ".join(f"{k['name']} {k['share']:.1%} ({k['operators']})" for k in row["op_types"][:6])
    found.append(f"{name}by type: {kinds}")
    guessed = [o for o in row["operators"] if o["told_by"] == "neighbour"]
    if guessed:
        share = sum(o["share"] for o in guessed)
        found.append(
            f"{name}{len(guessed)} operators that only move data ({share:.1%}) are counted to the row whose data it is"
        )
    if any(o["told_by"] == "weights" for o in row["operators"]):
        found.append(
            f"{name}this runtime keeps no names of modules: layers are told by order and numbers of weights, those "
            "without weights belong to the one before"
        )
    if row["unmapped"]:
        found.append(f"{name}not mapped to a row ({_ms(row['unmapped_s'])} ms): {', '.join(row['unmapped'])}")
    if "conditions" in row:
        state = machine_words(row["conditions"]["before"], row["conditions"]["after"])
        found.append(f"{name}wall/CPU {tables.plain_number(row['wall_over_cpu'])}; {state}")
    return [*found, *(f"{name}{note}" for note in row["notes"])]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"
