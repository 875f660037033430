"""Candidates side by side: what the tracker runs (deploy form, cut at its taps, at search size), one row a spec."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bblab.errors import BblabError
from bblab.latency import stats
from bblab.latency.words import NO_INTERVAL_WORDS, busy_words, count_of, interval_of
from bblab.reports import Cell, Column, Options, Page, Table, notebook_report, report
from bblab.reports.kit import older, tables
from bblab.reports.kit.stored import Setting, Stored, TimingRow
from bblab.reports.kit.words import Words

HOW = "deploy form as far as the last tap; MACs at search size, elements written elementwise at the input size"
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
    Column("latency, warm", "latency_ratio", "× reference, 95 %"),
    Column("", "latency_ratio_low"),
    Column("", "latency_ratio_high"),
    Column("CPU, warm", "cpu_p10_s", "ms"),
    Column("broken", "findings", "✗ ▲ ·"),
)
TIMED = ("latency_ratio", "cpu_p10_s")  # in files only, where nothing is timed yet


@report("comparison")
def comparison(rows: Sequence[Mapping[str, Any]]) -> Page:
    """One row a profile, fastest first where latency was measured, else by MACs at search size."""
    ordered = sorted(rows, key=_order)
    cells, values = [], []
    for row in ordered:
        shown, raw = _row(row)
        cells.append(shown)
        values.append(raw)
    is_timed = any(map(_deploy_timing, rows))
    columns = tuple(c if is_timed or c.key not in TIMED else replace(c, title="") for c in COLUMNS)
    return Page("comparison", Table(columns, tuple(cells), tuple(values)), _notes(ordered))


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
        interval = tables.span(timing["ratio"], *interval_of(timing), 3)
        cpu_ms = f"{timing['cpu_p10_s'] * 1e3:.2f}"
    else:
        interval = cpu_ms = "–"
    score = tracker["xcorr_map"] if tracker else None
    low, high = interval_of(timing) if timing else (None, None)
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
    notes = [HOW]
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
            f"latency: warm calls against {t['reference']}, deploy form, at the same size; {t['device']}, "
            f"{t['runtime']} {t['runtime_version']}, {t['precision']}, {count_of(t['threads'], 'thread')}, batch 1"
        )
        if any(interval_of(t) == (None, None) for t in timings):
            notes.append(NO_INTERVAL_WORDS)
        ties = _ties(timings)
        if ties:
            notes.append("not told apart: " + "; ".join(ties))
        if any(t["is_busy"] for t in timings):
            notes.append(busy_words(statistics.median(t["waiting"] for t in timings if t["is_busy"])))
        if not all(t["steady"] for t in timings):
            notes.append("not steady: " + ", ".join(t["spec"] for t in timings if not t["steady"]))
    return tuple(notes)


def _ties(timings: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{a['spec']} = {b['spec']}" for a, b in itertools.combinations(timings, 2) if b["label"] in a["tied_with"]]


# From the notebook ------------------------------------------------------------------------------------------------

SIDE_BY_SIDE = tables.columns_of(
    ("spec", "name", "", "left"), ("params", "params_backbone", "M, deploy", "right"),
    ("", "params_backbone_train", "M, train", "right"), ("train", "train_over_deploy", "× params", "right"),
    ("MACs", "macs_search", "M", "right"), ("elem.", "elementwise_ops_backbone", "M", "right"),
    ("RF", "receptive_field", "px", "right"), ("RF/z", "rf_over_template", "", "right"),
    ("template", "template_map", "px→map", "right"), ("search", "search_map", "px→map", "right"),
    ("score map", "xcorr_map", "", "right"), ("broken", "findings", "✗ ▲ ·", "right"), ("", "spec_id", "", "left"),
)  # fmt: skip
TIMES = tables.columns_of(
    ("spec", "name", "", "left"), ("form", "form", "", "left"), ("latency", "ratio", "× reference, 95 %", "right"),
    ("", "ratio_low", "", "right"), ("", "ratio_high", "", "right"), ("time", "time_s", "ms", "right"),
    ("not told apart from", "tied_with", "", "left"), ("run", "run", "", "right"),
)  # fmt: skip


@notebook_report("comparison")
def from_notebook(stored: Stored, options: Options) -> Page:
    """Candidates side by side, cheapest first: costs and geometry, then a table of latencies a setting, then findings.

    Latencies of different settings stand in different tables, each with its newest session of a net.
    """
    say = Words(options.lang)
    profiles = sorted(stored.profiles.values(), key=lambda p: _search_macs({"tracker": None, **p.result}))
    if not profiles:
        raise BblabError("nothing is profiled here", hint="bblab profile SPEC SPEC, then bblab report comparison")
    cells, values = [], []
    for p in profiles:
        shown, raw = _side(p.result, p.spec_id)
        cells.append(shown)
        values.append(raw)
    by_setting: dict[Setting, list[TimingRow]] = {}
    for t in stored.timings:
        by_setting.setdefault(t.setting, []).append(t)
    sections = [
        (say.t("latency: {setting}", setting=say.setting(setting)), _times(rows, say))
        for setting, rows in sorted(by_setting.items(), key=lambda item: (-len(item[1]), item[0].title))
    ]
    told = tuple(
        (p.name, say.t(str(f["severity"])), str(f["rule"]), str(f["where"]), str(f["message"]))
        for p in profiles
        for f in p.result.get("findings") or ()
        if not f.get("waived")
    )
    if told:
        columns = tables.columns_of(
            ("spec", "name", "", "left"), ("severity", "severity", "", "left"), ("rule", "rule", "", "left"),
            ("where", "where", "", "left"), ("finding", "message", "", "left"),
        )  # fmt: skip
        sections.append((say.t("findings that are not waived"), Table(say.columns(columns), told, told)))
    sections += older.sections(stored, say)
    notes = [say.t(HOW)]
    if any(p.result.get("is_receptive_field_global") for p in profiles):
        notes.append(say.t("+ squeeze-excitation or attention also sees the whole map"))
    untimed = sorted({p.name for p in profiles} - {t.name for t in stored.timings})
    if untimed and stored.timings:
        names = ", ".join(untimed[:12]) + (say.and_more(len(untimed) - 12) if len(untimed) > 12 else "")
        notes.append(say.t("no latency is stored of {names}", names=names))
    return Page(
        "comparison", Table(say.columns(SIDE_BY_SIDE), tuple(cells), tuple(values)), tuple(notes), (), tuple(sections),
        heading=", ".join(p.name for p in profiles[:6]) + (" …" if len(profiles) > 6 else ""), about=stored.about,
    )  # fmt: skip


def _side(row: Mapping[str, Any], spec_id: str) -> tuple[tuple[str, ...], tuple[Cell, ...]]:
    forms, tracker = row["forms"], row.get("tracker")
    deploy, train = forms["deploy"], forms.get("train") or {}
    rf, ratio = row.get("receptive_field"), tracker and tracker.get("rf_over_template")
    open_ones = [f["severity"] for f in row.get("findings") or () if not f.get("waived")]
    counts = " ".join(str(open_ones.count(s)) for s in ("error", "warning", "note"))
    own, other = deploy["params_backbone"], train.get("params_backbone")
    glob = "+" if row.get("is_receptive_field_global") else ""

    def side(which: str) -> str:
        return "–" if not tracker else f"{tracker[which]['size']}→{tracker[which]['map'][1]}"

    score = (tracker or {}).get("xcorr_map")
    macs = _search_macs({"tracker": None, **row})
    raw: tuple[Cell, ...] = (
        row["name"], own, other, other / own if other and own else None, macs, deploy.get("elementwise_ops_backbone"),
        rf, ratio, side("template"), side("search"), score[0] if score else None, counts, spec_id,
    )  # fmt: skip
    shown = (
        row["name"], _millions(own), "–" if other is None else _millions(other), "–" if not raw[3] else f"{raw[3]:.2f}",
        _millions(macs), _millions(deploy.get("elementwise_ops_backbone") or 0), "–" if rf is None else f"{rf}{glob}",
        "–" if ratio is None else f"{ratio:.2f}", side("template"), side("search"),
        "–" if not score else f"{score[0]}×{score[1]}", counts, "",
    )  # fmt: skip
    return shown, raw


def _is_tie(a: TimingRow, b: TimingRow) -> bool:
    """By their own ratio in each process where they ran in one session, else by whether their intervals overlap."""
    if a.session == b.session and len(a.logs) == len(b.logs) > 1:
        return stats.mean_ratio([x - y for x, y in zip(a.logs, b.logs, strict=True)]).sign == 0
    ends = (a.ratio_low, a.ratio_high, b.ratio_low, b.ratio_high)
    if None in ends:
        return False
    return bool(ends[0] <= ends[3] and ends[2] <= ends[1])  # type: ignore[operator]


def _times(rows: Sequence[TimingRow], say: Words) -> Table:
    """The newest timing of each net and form beside the most used reference, fastest first."""
    references = [r.reference for r in rows]
    base = max(set(references), key=lambda ref: (references.count(ref), ref))
    newest = {(r.spec_id, r.form): r for r in rows if r.reference == base}
    ordered = sorted(newest.values(), key=lambda r: r.ratio)
    cells, values = [], []
    for r in ordered:
        ties = [f"{o.name} {say.t(o.form)}" for o in ordered if o is not r and _is_tie(r, o)]
        ratio = say.t("the reference") if r.is_reference else tables.with_interval(r.ratio, r.ratio_low, r.ratio_high)
        told = ", ".join(ties[:3]) + (say.and_more(len(ties) - 3) if len(ties) > 3 else "")
        time_ms = tables.significant(r.time_s * 1e3)
        cells.append((r.name, say.t(r.form), ratio, "", "", time_ms, told, str(r.run_id)))
        values.append((r.name, r.form, r.ratio, r.ratio_low, r.ratio_high, r.time_s, told, r.run_id))
    return Table(say.columns(TIMES), tuple(cells), tuple(values))
