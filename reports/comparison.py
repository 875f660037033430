"""Candidates side by side: what the tracker runs (deploy form, cut at its taps, at search size), one row a spec."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from bblab.reports import Cell, Column, Page, Table, report

COLUMNS = (
    Column("spec", "name", align="left"),
    Column("params", "params_backbone", "M"),
    Column("MACs", "macs_search", "M"),
    Column("elem.", "elementwise_ops_backbone", "M"),
    Column("RF", "receptive_field", "px"),
    Column("RF/z", "rf_over_template"),
    Column("", "stride"),
    Column("template", "template_map", "px→map"),
    Column("search", "search_map", "px→map"),
    Column("", "xcorr_map"),
    Column("latency", "latency_ratio", "× reference, 95 %"),
    Column("", "latency_ratio_low"),
    Column("", "latency_ratio_high"),
    Column("CPU", "cpu_p10_s", "ms"),
    Column("broken", "findings", "✗ ▲ ·"),
)


@report("comparison")
def comparison(rows: Sequence[Mapping[str, Any]]) -> Page:
    """One row a profile, fastest first where latency was measured, else by MACs at search size."""
    ordered = sorted(rows, key=_order)
    cells, values = [], []
    for row in ordered:
        shown, raw = _row(row)
        cells.append(shown)
        values.append(raw)
    return Page("comparison", Table(COLUMNS, tuple(cells), tuple(values)), _notes(ordered))


def _deploy_timing(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((t for t in row["latency"] if t["form"] == "deploy"), None)


def _order(row: Mapping[str, Any]) -> tuple[int, float]:
    timing = _deploy_timing(row)
    return (0, timing["cpu_p10_s"]) if timing else (1, _search_macs(row))


def _search_macs(row: Mapping[str, Any]) -> int:
    return row["tracker"]["search"]["macs_backbone"] if row["tracker"] else row["forms"]["deploy"]["macs_backbone"]


def _row(row: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Cell, ...]]:
    deploy, tracker, timing = row["forms"]["deploy"], row["tracker"], _deploy_timing(row)
    rf, ratio = row["receptive_field"], tracker and tracker["rf_over_template"]
    glob = "+" if row["is_receptive_field_global"] else ""
    open_ones = [f["severity"] for f in row["findings"] if not f["waived"]]
    counts = [open_ones.count(s) for s in ("error", "warning", "note")]

    def side(which: str) -> str:
        return "–" if not tracker else f"{tracker[which]['size']}→{tracker[which]['map'][1]}"

    if timing:
        interval = f"{timing['ratio']:.3f} [{timing['ratio_low']:.3f}, {timing['ratio_high']:.3f}]"
        cpu_ms = f"{timing['cpu_p10_s'] * 1e3:.2f}"
    else:
        interval = cpu_ms = "–"
    score = tracker["xcorr_map"] if tracker else None
    low, high = (timing["ratio_low"], timing["ratio_high"]) if timing else (None, None)
    cells = (
        row["name"],
        _millions(deploy["params_backbone"]),
        _millions(_search_macs(row)),
        _millions(deploy["elementwise_ops_backbone"]),
        "–" if rf is None else f"{rf}{glob}",
        "–" if ratio is None else f"{ratio:.2f}",
        "",
        side("template"),
        side("search"),
        "",
        interval,
        "",
        "",
        cpu_ms,
        " ".join(map(str, counts)),
    )
    values: tuple[Cell, ...] = (
        row["name"],
        deploy["params_backbone"],
        _search_macs(row),
        deploy["elementwise_ops_backbone"],
        rf,
        ratio,
        row["stride"],
        tracker["template"]["map"][1] if tracker else None,
        tracker["search"]["map"][1] if tracker else None,
        score[0] if score else None,
        timing["ratio"] if timing else None,
        low,
        high,
        timing["cpu_p10_s"] if timing else None,
        " ".join(map(str, counts)),
    )
    return cells, values


def _millions(value: float) -> str:
    return f"{value / 1e6:.3g}" if value < 1e9 else f"{value / 1e6:.0f}"


def _notes(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    notes = ["deploy form as far as the last tap; MACs at search size, elements written elementwise at the input size"]
    sizes = {r["tracker"]["search"]["size"] for r in rows if r["tracker"]}
    if len(sizes) > 1:
        notes.append(
            f"search sizes differ ({', '.join(map(str, sorted(sizes)))} px): MACs and times are at each net's own"
        )
    if any(r["tracker"] and r["tracker"]["assumed"] for r in rows):
        names = [r["name"] for r in rows if r["tracker"] and r["tracker"]["assumed"]]
        notes.append(f"127 and 255 px assumed where a spec names no sizes: {', '.join(names)}")
    if any(r["is_receptive_field_global"] for r in rows):
        notes.append("+ squeeze-excitation or attention also sees the whole map")
    timings = [t for r in rows if (t := _deploy_timing(r))]
    if timings:
        t = timings[0]
        notes.append(
            f"latency against {t['reference']}, deploy form, at the same size; {t['device']}, {t['runtime']} "
            f"{t['runtime_version']}, {t['precision']}, {t['threads']} thread, batch 1"
        )
        ties = _ties(timings)
        if ties:
            notes.append("not told apart (their intervals overlap): " + "; ".join(ties))
        if any(t["is_busy"] for t in timings):
            notes.append("other work kept the machine busy: trust the ratios, not the milliseconds")
        if not all(t["steady"] for t in timings):
            notes.append("not steady: " + ", ".join(t["spec"] for t in timings if not t["steady"]))
    return tuple(notes)


def _ties(timings: Sequence[Mapping[str, Any]]) -> list[str]:
    ordered = sorted(timings, key=lambda t: t["ratio"])
    return [
        f"{a['spec']} = {b['spec']}"
        for a, b in itertools.pairwise(ordered)
        if a["ratio_high"] >= b["ratio_low"] and a["input"] == b["input"]
    ]
