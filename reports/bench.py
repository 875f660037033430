"""Nets ranked by latency, one row a net and session: what is tied, what drifted, where runtimes disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bblab.latency import agreement, agreement_words, machine_words
from bblab.latency.words import NO_INTERVAL_WORDS, count_of, interval_of
from bblab.reports import Cell, Column, Page, Table, report
from bblab.reports.kit import tables

Row = Mapping[str, Any]  # a `latency` element of --json, with its `rank` and `tied_with`
Group = tuple[str, int, tuple[int, ...]]  # runtime, threads, input: ranked together


@report("bench")
def bench(rows: Sequence[Row]) -> Page:
    """Fastest first within each runtime, number of threads and input size; paced times beside back-to-back ones."""
    groups = _grouped(rows)
    has_runtimes = len({g[0] for g in groups}) > 1
    has_threads = len({g[1] for g in groups}) > 1
    has_sizes = len({g[2] for g in groups}) > 1
    pace = next((r["pace_fps"] for r in rows if r["pace_fps"]), None)
    has_both = pace is not None and any(r["pace_fps"] is None for r in rows)
    is_shown = not all(r["is_busy"] for r in rows)
    columns = (
        Column("runtime" * has_runtimes, "runtime", align="left"),
        Column("threads" * has_threads, "threads"),
        Column("input" * has_sizes, "input_px", "px"),
        Column("", "rank"),
        Column("#", "place"),
        Column("net", "label", align="left"),
        Column("latency", "ratio", "× reference, 95 %"),
        Column("", "ratio_low"),
        Column("", "ratio_high"),
        Column("CPU", "cpu_p10_s", "ms, p10"),
        Column("wall/CPU", "wall_over_cpu"),
        Column("wall p50" * is_shown, "wall_p50_s", "ms"),
        Column("p90" * is_shown, "wall_p90_s", "ms"),
        Column("p99" * is_shown, "wall_p99_s", "ms"),
        Column(f"at {pace:g} fps" * has_both if pace else "", "paced_cpu_p10_s", "CPU ms"),
        Column("paced/b2b" * has_both, "paced_over_back_to_back", "CPU"),
        Column("error", "conversion_rel_error", "vs torch"),
    )
    cells, values = [], []
    for group in groups.values():
        for row, paced in group:
            shown, raw = _row(row, paced)
            cells.append(shown)
            values.append(raw)
    return Page("bench", Table(columns, tuple(cells), tuple(values)), _notes(rows, groups))


def _grouped(rows: Sequence[Row]) -> dict[Group, list[tuple[Row, Row | None]]]:
    """Each group's rows, fastest first, with the paced row of the same net where there is one."""
    found: dict[Group, list[tuple[Row, Row | None]]] = {}
    paced = {(*_group(r), r["label"]): r for r in rows if r["pace_fps"]}
    plain = {(*_group(r), r["label"]): r for r in rows if not r["pace_fps"]}
    for key, row in {**paced, **plain}.items():
        found.setdefault(_group(row), []).append((row, paced.get(key) if key in plain else None))
    return {group: sorted(members, key=lambda m: m[0]["ratio"]) for group, members in found.items()}


def _group(row: Row) -> Group:
    return row["runtime"], row["threads"], tuple(row["input"])


def _row(row: Row, paced: Row | None) -> tuple[tuple[str, ...], tuple[Cell, ...]]:
    low, high = interval_of(row)
    ratio = "the reference" if row["is_reference"] else tables.span(row["ratio"], low, high, 3)
    place = f"{row['rank']}{'=' if row['tied_with'] else ''}"
    marks = "" if row["steady"] else " ~"
    paced_s: float | None = paced["cpu_p10_s"] if paced else None
    slower = None if paced_s is None else paced_s / row["cpu_p10_s"]
    values: tuple[Cell, ...] = (
        row["runtime"], row["threads"], row["input"][2], row["rank"], place, row["label"], row["ratio"], low, high,
        row["cpu_p10_s"], row["wall_over_cpu"], row["wall_p50_s"], row["wall_p90_s"], row["wall_p99_s"],
        paced_s, slower, row["conversion_rel_error"],
    )  # fmt: skip
    cells = (
        row["runtime"], str(row["threads"]), str(row["input"][2]), "", place, row["label"] + marks, ratio, "", "",
        _ms(row["cpu_p10_s"]), tables.plain_number(row["wall_over_cpu"]), _ms(row["wall_p50_s"]),
        _ms(row["wall_p90_s"]), _ms(row["wall_p99_s"]), _ms(paced_s), "–" if slower is None else f"{slower:.2f}",
        f"{row['conversion_rel_error']:.0e}",
    )  # fmt: skip
    return cells, values


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.2f}"


# What the numbers mean ------------------------------------------------------------------------------------------


def _notes(rows: Sequence[Row], groups: Mapping[Group, Sequence[tuple[Row, Row | None]]]) -> tuple[str, ...]:
    sessions: dict[str, list[Row]] = {}
    for row in rows:
        sessions.setdefault(row["session"], []).append(row)
    notes = []
    for members in sessions.values():
        notes += _session_notes(members, many=len(sessions) > 1)
    if any(r["is_busy"] for r in rows):
        notes.append(
            "other work held the machine where wall/CPU is 1.02 or more: no wall times there; trust the ratios and CPU "
            "times"
        )
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
    size = "×".join(map(str, first["input"]))
    threads = count_of(first["threads"], "thread")
    pace = f"paced at {first['pace_fps']:g} fps" if first["pace_fps"] else "back to back"
    reference = f"{first['reference']} {first['reference_form']}"
    how = (
        f"{first['device']}, {first['runtime']} {first['runtime_version']}, {first['precision']}, {threads}, "
        f"batch 1, {size}, {pace}; {count_of(first['processes'], 'process', 'processes')}, "
        f"{count_of(first['calls'], 'call')} a net, beside {reference}"
    )
    detail = first["drift_detail"]
    if first["drift"] is None:
        drift = "too few rounds to see the clock drift"
    elif first["drift"] == "drift" and detail:
        drift = (
            f"THE CLOCK DRIFTED: the {detail['series']} changed {detail['change_ratio']:.2f}-fold at process "
            f"{detail['process'] + 1}, round {detail['round'] + 1}; ratios are of paired rounds"
        )
    else:
        drift = "the clock did not drift"
    state = f"{drift}; speedometer {first['speedometer_s'] * 1e3:.2f} ms"
    conditions = first.get("conditions")
    if conditions:
        state += f"; {machine_words(conditions['before'], conditions['after'])}"
    ranking = ("ranking: " if not many else f"ranking, {_name(first)}: ") + _ranking(members)
    return [how, ranking, state, *first["notes"]]


def _ranking(members: Sequence[Row]) -> str:
    """`a < b = c`: groups of one rank hold ties; which pairs are tied is named where a group has more than two."""
    ordered = sorted(members, key=lambda r: (r["rank"], r["ratio"]))
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
    pace = f" at {row['pace_fps']:g} fps" if row["pace_fps"] else ""
    threads = f" {row['threads']} threads" if row["threads"] > 1 else ""
    return f"{row['runtime']}{threads}{pace}"


def _disagreements(sessions: Mapping[str, Sequence[Row]]) -> list[str]:
    """Every two sessions that differ in one thing: runtime, threads or pace."""
    found = []
    members = list(sessions.values())
    for i, one in enumerate(members):
        for two in members[i + 1 :]:
            a, b = one[0], two[0]
            differing = sum(a[k] != b[k] for k in ("runtime", "threads", "pace_fps"))
            compared = agreement(one, two) if differing == 1 and a["input"] == b["input"] else None
            if compared:
                found.append(agreement_words(_name(a), _name(b), compared))
    return found


def _waste(rows: Sequence[Row]) -> list[str]:
    """CPU(T) / CPU(1): what the threads spin away."""
    single = {(r["runtime"], r["label"], r["pace_fps"], tuple(r["input"])): r for r in rows if r["threads"] == 1}
    found: dict[tuple[str, int, float | None], list[str]] = {}
    for r in rows:
        one = single.get((r["runtime"], r["label"], r["pace_fps"], tuple(r["input"])))
        if r["threads"] > 1 and one:
            text = f"{r['label']} {r['cpu_p10_s'] / one['cpu_p10_s']:.2f}"
            found.setdefault((r["runtime"], r["threads"], r["pace_fps"]), []).append(text)
    return [
        f"CPU time of {threads} threads over that of 1 (spinning; 1.00 is none wasted), {runtime}"
        + (f" at {pace:g} fps" if pace else "")
        + f": {', '.join(parts)}"
        for (runtime, threads, pace), parts in found.items()
    ]
