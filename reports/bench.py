"""Nets ranked by their warm latency, one row a net and session: what is tied, what drifted, where runtimes disagree."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bblab.latency import agreement, agreement_words, machine_words
from bblab.latency.words import NO_INTERVAL_WORDS, busy_words, count_of, interval_of
from bblab.reports import Cell, Column, Page, Table, report
from bblab.reports.kit import tables

Row = Mapping[str, Any]  # a `latency` element of --json, with its `rank` and `tied_with`
Group = tuple[str, int]  # runtime, threads: one session, ranked together


@report("bench")
def bench(rows: Sequence[Row]) -> Page:
    """Fastest first within each runtime and number of threads; cold and paced times beside the warm ones that rank.

    Nets of several input sizes rank by their own ratios; the ratio to the reference at the net's size does not order.
    """
    groups: dict[Group, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["runtime"], row["threads"]), []).append(row)
    has_runtimes = len({runtime for runtime, _ in groups}) > 1
    has_threads = len({threads for _, threads in groups}) > 1
    has_sizes = len({tuple(r["input"]) for r in rows}) > 1
    pace = next((r["pace_fps"] for r in rows if r["pace_fps"]), None)
    is_shown = not all(r["is_busy"] for r in rows)
    has_p99 = any(r["wall_p99_s"] is not None for r in rows)
    columns = (
        Column("runtime" * has_runtimes, "runtime", align="left"),
        Column("threads" * has_threads, "threads"),
        Column("input" * has_sizes, "input_px", "px"),
        Column("", "rank"),
        Column("#", "place"),
        Column("net", "label", align="left"),
        Column("warm", "ratio", "× reference, 95 %"),
        Column("", "ratio_low"),
        Column("", "ratio_high"),
        Column("warm CPU", "cpu_p10_s", "ms, p10"),
        Column("cold CPU", "cold_cpu_p10_s", "ms, p10"),
        Column("cold/warm", "cold_over_warm"),
        Column(f"paced, {pace:g} fps" if pace else "", "paced_cpu_p10_s", "CPU ms, p10"),
        Column("paced/warm" if pace else "", "paced_over_warm"),
        Column("wall/CPU", "wall_over_cpu"),
        Column("warm wall p50" * is_shown, "wall_p50_s", "ms"),
        Column("p90" * is_shown, "wall_p90_s", "ms"),
        Column("p99" * (is_shown and has_p99), "wall_p99_s", "ms"),
        Column("error", "conversion_rel_error", "vs torch"),
        Column("", "cold_ratio"),
        Column("", "cold_ratio_low"),
        Column("", "cold_ratio_high"),
        Column("", "paced_ratio"),
        Column("", "paced_ratio_low"),
        Column("", "paced_ratio_high"),
    )
    cells, values = [], []
    for members in groups.values():
        for row in _ordered(members):
            shown, raw = _row(row)
            cells.append(shown)
            values.append(raw)
    return Page("bench", Table(columns, tuple(cells), tuple(values)), _notes(rows))


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """By rank; nets of a tie, and of sessions without a ranking, by their time."""
    return sorted(rows, key=lambda r: (r["rank"] or 0, r["cpu_p10_s"]))


def _row(row: Row) -> tuple[tuple[str, ...], tuple[Cell, ...]]:
    (low, high), cold, paced = interval_of(row), row["cold"], row["paced"]
    ratio = "the reference" if row["is_reference"] else tables.span(row["ratio"], low, high, 3)
    place = "–" if row["rank"] is None else f"{row['rank']}{'=' if row['tied_with'] else ''}"
    marks = "" if row["steady"] else " ~"
    slower = cold["cpu_p10_s"] / row["cpu_p10_s"]
    paced_s = paced["cpu_p10_s"] if paced else None
    paced_slower = None if paced_s is None else paced_s / row["cpu_p10_s"]
    values: tuple[Cell, ...] = (
        row["runtime"], row["threads"], row["input"][2], row["rank"], place, row["label"], row["ratio"], low, high,
        row["cpu_p10_s"], cold["cpu_p10_s"], slower, paced_s, paced_slower, row["wall_over_cpu"],
        row["wall_p50_s"], row["wall_p90_s"], row["wall_p99_s"], row["conversion_rel_error"], cold["ratio"],
        cold["ratio_low"], cold["ratio_high"], *((paced or {}).get(k) for k in ("ratio", "ratio_low", "ratio_high")),
    )  # fmt: skip
    cells = (
        row["runtime"], str(row["threads"]), str(row["input"][2]), "", place, row["label"] + marks, ratio, "", "",
        _ms(row["cpu_p10_s"]), _ms(cold["cpu_p10_s"]), f"{slower:.2f}", _ms(paced_s),
        "–" if paced_slower is None else f"{paced_slower:.2f}", tables.plain_number(row["wall_over_cpu"]),
        _ms(row["wall_p50_s"]), _ms(row["wall_p90_s"]), _ms(row["wall_p99_s"]), f"{row['conversion_rel_error']:.0e}",
        *[""] * 6,
    )  # fmt: skip
    return cells, values


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.2f}"


# What the numbers mean ------------------------------------------------------------------------------------------


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    sessions: dict[str, list[Row]] = {}
    for row in rows:
        sessions.setdefault(row["session"], []).append(row)
    notes = []
    for members in sessions.values():
        notes += _session_notes(members, many=len(sessions) > 1)
    if any(r["is_busy"] for r in rows):
        worst = busy_words(statistics.median(r["waiting"] for r in rows if r["is_busy"]))
        notes.append(f"{worst}; no wall times where wall/CPU is 1.02 or more")
    for members in sessions.values():
        if any(not r["steady"] for r in members):
            where = f" ({_name(members[0])})" if len(sessions) > 1 else ""
            notes.append(f"~ not steady{where}: {_reasons(members)}")
    if any(r["processes"] < 2 for r in rows):
        notes.append(NO_INTERVAL_WORDS)
    if any(r["form"] == "train" for r in rows):
        notes.append("train is the unfused form: not what a device runs")
    notes += dict.fromkeys(f"{r['label']}: {r['form_doubt']}" for r in rows if r.get("form_doubt"))
    notes += _disagreements(sessions)
    notes += _waste(rows)
    return tuple(notes)


def _session_notes(members: Sequence[Row], *, many: bool) -> list[str]:
    first = members[0]
    sizes = dict.fromkeys("×".join(map(str, r["input"])) for r in members)
    size = " and ".join(sizes)
    threads = count_of(first["threads"], "thread")
    pace = f", paced at {first['pace_fps']:g} fps" if first["pace_fps"] else ""
    reference = f"{first['reference']} {first['reference_form']}"
    how = (
        f"{first['device']}, {first['runtime']} {first['runtime_version']}, {first['precision']}, {threads}, "
        f"batch 1, {size}; {count_of(first['processes'], 'process', 'processes')}, a net: "
        f"{count_of(first['calls'], 'warm call')}, {first['cold']['calls']} cold{pace}; beside {reference}"
        f"{' of the same size' * (len(sizes) > 1)}"
    )
    held = "one core each" if all(cpu is not None for cpu in first["pinned_cpus"]) else "any core"
    slices = f"time slices of {first['slice_s'] * 1e3:.0f} ms" if first["slice_s"] else "usual time slices"
    how += f"; workers on {held}, {slices}"
    detail = first["drift_detail"]
    if first["drift"] is None:
        drift = "too few rounds to see the clock drift"
    elif first["drift"] == "drift" and detail:
        drift = (
            f"THE CLOCK DRIFTED: the {detail['series']} changed {detail['change_ratio']:.2f}-fold at process "
            f"{detail['process'] + 1}, round {detail['round'] + 1}"
        )
    else:
        drift = "the clock did not drift"
    state = f"{drift}; speedometer {first['speedometer_s'] * 1e3:.2f} ms"
    conditions = first.get("conditions")
    if conditions:
        state += f"; {machine_words(conditions['before'], conditions['after'])}"
    ranking = ("ranking: " if not many else f"ranking, {_name(first)}: ") + _ranking(members)
    return [how, ranking, *_turned(members), state, *first["notes"]]


def _turned(members: Sequence[Row]) -> list[str]:
    """Pairs whose order another state turns round, beyond doubt in both: one line a state."""
    found: dict[str, list[str]] = {}
    for row in members:
        for state, others in row["turned"].items():
            found.setdefault(state, []).extend(f"{row['label']} and {other}" for other in others)
    return [
        f"{state} turns the order of {'; '.join(pairs)}: the first is faster warm, the second {state}"
        for state, pairs in found.items()
    ]


def _ranking(members: Sequence[Row]) -> str:
    """`a < b = c`: groups of one rank hold ties; which pairs are tied is named where a group has more than two."""
    if any(r["rank"] is None for r in members):
        return "none: one process gives no interval"
    ordered = _ordered(members)
    text = ""
    for i, row in enumerate(ordered):
        sign = "" if i == 0 else (" = " if row["rank"] == ordered[i - 1]["rank"] else " < ")
        text += sign + row["label"]
    wide = {r["rank"] for r in ordered if sum(o["rank"] == r["rank"] for o in ordered) > 2}
    pairs = [
        f"{r['label']} = {other}"
        for i, r in enumerate(ordered)
        for other in r["tied_with"]
        if r["rank"] in wide and other in [o["label"] for o in ordered[i + 1 :]]
    ]
    return text + (f" (not told apart: {'; '.join(pairs)})" if pairs else "")


def _reasons(rows: Sequence[Row]) -> str:
    """Each doubt once, with the nets it is about where it is not about all."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        for doubt in row["doubts"]:
            by_reason.setdefault(doubt, []).append(row["label"])
    return "; ".join(
        reason if len(labels) == len(rows) > 1 else f"{', '.join(labels)}: {reason}"
        for reason, labels in by_reason.items()
    )


def _name(row: Row) -> str:
    """A session in the words that tell it from the others."""
    threads = f" {row['threads']} threads" if row["threads"] > 1 else ""
    return f"{row['runtime']}{threads}"


def _disagreements(sessions: Mapping[str, Sequence[Row]]) -> list[str]:
    """Every two sessions that differ in one thing: runtime or threads."""
    found = []
    members = list(sessions.values())
    for i, one in enumerate(members):
        for two in members[i + 1 :]:
            a, b = one[0], two[0]
            differing = sum(a[k] != b[k] for k in ("runtime", "threads"))
            compared = agreement(one, two) if differing == 1 else None
            if compared:
                found.append(agreement_words(_name(a), _name(b), compared))
    return found


def _waste(rows: Sequence[Row]) -> list[str]:
    """CPU(T) / CPU(1): what the threads spin away."""
    single = {(r["runtime"], r["label"], tuple(r["input"])): r for r in rows if r["threads"] == 1}
    found: dict[Group, list[str]] = {}
    for r in rows:
        one = single.get((r["runtime"], r["label"], tuple(r["input"])))
        if r["threads"] > 1 and one:
            text = f"{r['label']} {r['cpu_p10_s'] / one['cpu_p10_s']:.2f}"
            found.setdefault((r["runtime"], r["threads"]), []).append(text)
    return [
        f"CPU time of {threads} threads over that of 1 (spinning; 1.00 is none wasted), {runtime}: {', '.join(parts)}"
        for (runtime, threads), parts in found.items()
    ]
