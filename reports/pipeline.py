"""Where a tracker's frame goes, stage by stage: warm (frames without a pause) and paced at a camera's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bblab.latency import machine_words
from bblab.reports import Cell, Column, Page, Table, report
from bblab.reports.kit import tables

Row = Mapping[str, Any]  # an element of `bblab bench --pipeline --json`


@report("pipeline")
def pipeline(rows: Sequence[Row]) -> Page:
    """One line a stage, for every net and runtime; what is done once a target stands below, without a share."""
    many = len(rows) > 1
    pace = next(s["pace_fps"] for s in rows[0]["stages"] if s["pace_fps"])
    clock = rows[0]["times_are"] if len({r["times_are"] for r in rows}) == 1 else ""
    unit = f"ms {'CPU' if clock == 'cpu' else clock}".strip()
    columns = (
        Column("net" * many, "label", align="left"),
        Column("stage", "stage", align="left"),
        Column("warm", "p50_s", f"p50, {unit}"),
        Column("p90", "p90_s"),
        Column("share", "share", "of a frame"),
        Column(f"paced, {pace:g} fps", "paced_p50_s", f"p50, {unit}"),
        Column("p90", "paced_p90_s"),
        Column("share", "paced_share", "of a frame"),
        Column("paced/warm", "paced_over_warm"),
    )
    cells, values = [], []
    for row in rows:
        every = [*row["stages"], *row["whole"]]
        names = list(dict.fromkeys(s["stage"] for s in every))
        order = [n for n in names if _of(every, n, None)["is_per_frame"]]
        for name in [*order, *(n for n in names if n not in order)]:
            plain, paced = _of(every, name, None), _of(every, name, pace)
            ratio = paced["p50_s"] / plain["p50_s"]
            is_part = any(s["stage"] == name for s in row["stages"]) and plain["is_per_frame"]
            shares = [s["share"] if is_part else None for s in (plain, paced)]
            raw: tuple[Cell, ...] = (
                row["label"], name, plain["p50_s"], plain["p90_s"], shares[0], paced["p50_s"], paced["p90_s"],
                shares[1], ratio,
            )  # fmt: skip
            values.append(raw)
            cells.append((
                f"{row['label']}, {row['runtime']}", name, _ms(plain["p50_s"]), _ms(plain["p90_s"]), _share(shares[0]),
                _ms(paced["p50_s"]), _ms(paced["p90_s"]), _share(shares[1]), f"{ratio:.2f}",
            ))  # fmt: skip
    notes = tuple(note for row in rows for note in _notes(row, many))
    return Page("pipeline", Table(columns, tuple(cells), tuple(values)), notes)


def _of(stages: Sequence[Row], name: str, pace: float | None) -> Row:
    return next(s for s in stages if s["stage"] == name and s["pace_fps"] == pace)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"


def _notes(row: Row, many: bool) -> list[str]:
    name = f"{row['label']}: " if many else ""
    threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    z, x = ("×".join(map(str, row[m])) for m in ("template_map", "search_map"))
    found = [
        f"{name}{row['device']}, {row['runtime']} {row['runtime_version']}, {row['precision']}, {threads}, batch 1, "
        f"{row['form']}; template {row['template_px']} px → {z}, search {row['search_px']} px → {x}, "
        f"{row['channels']} channels; {row['processes']} processes, {row['frames']} frames at each pace",
        f"{name}frames: {row['photo']}, {row['frame'][1]}×{row['frame'][0]}; resized by {row['resized_by']}, "
        f"cropped and decoded by numpy; {row['head']}, random weights; a template is done once a target",
    ]
    for fps, late in row["late_frames"].items():
        total = next(s["samples"] for s in row["whole"] if s["pace_fps"])
        found.append(f"{name}{late} of {total} frames took longer than the {1e3 / float(fps):.1f} ms of {fps} fps")
    state = f"wall/CPU {tables.plain_number(row['wall_over_cpu'])}"
    if row["times_are"] == "cpu":
        state += ": other work held the machine, so all times are CPU times"
    if "conditions" in row:
        state += f"; {machine_words(row['conditions']['before'], row['conditions']['after'])}"
    return [*found, f"{name}{state}", *(f"{name}{note}" for note in row["notes"])]
