"""One page a network: its stages, what each costs, how the receptive field grows, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bblab.errors import BblabError
from bblab.reports import Options, Page, Table, notebook_report
from bblab.reports.kit import older, tables
from bblab.reports.kit.charts import Axis, Bars, Box, Chart, Curve, Diagram, Heat, Level, LineChart
from bblab.reports.kit.stored import FieldRow, OperatorsRow, ProfileRow, Stored
from bblab.reports.kit.words import Words

COSTS = (("params", "parameters"), ("macs", "MACs"), ("activations", "activations"),
         ("elementwise_ops", "elementwise"), ("memory_traffic_bytes", "memory traffic"))  # fmt: skip
MOST_PARTS = 16


@notebook_report("spec_card")
def spec_card(stored: Stored, options: Options) -> Page:
    """A card for each spec that was asked for; of none, for the one that was profiled last. At most six."""
    say = Words(options.lang)
    profiles = list(stored.profiles.values())
    if not options.names:
        stored_ones = [p for p in profiles if p.run_id is not None]
        profiles = sorted(stored_ones or profiles, key=lambda p: p.run_id or 0)[-1:]
    if not profiles:
        raise BblabError("no spec is profiled here", hint="bblab profile SPEC, then bblab report spec_card SPEC")
    charts: list[Chart] = []
    sections = []
    rows = []
    notes = []
    for profile in profiles[:6]:
        charts += _charts(profile, stored, say)
        sections += _sections(profile, stored, say)
        rows += _stage_rows(profile, say)
    if len(profiles) > 6:
        notes.append(say.t("{count} more specs were asked for: the first six are shown", count=len(profiles) - 6))
    if not all(p.spec_id in stored.fields for p in profiles[:6]):
        notes.append(say.t("no effective receptive field where the net is not built on this machine"))
    cells = tuple(shown for shown, _ in rows)
    values = tuple(raw for _, raw in rows)
    return Page(
        "spec_card",
        Table(say.columns(COLUMNS), cells, values),
        tuple(notes),
        tuple(charts),
        tuple(sections),
        heading=", ".join(p.name for p in profiles[:6]),
        about=(*stored.about, *(f"{p.name} {p.spec_id}" for p in profiles[:6])),
    )


COLUMNS = tables.columns_of(
    ("spec", "name", "", "left"), ("stage", "stage", "deploy", "left"), ("map", "map", "", "right"),
    ("stride", "stride", "px", "right"), ("RF", "receptive_field", "px", "right"), ("params", "params", "K", "right"),
    ("MACs", "macs", "M", "right"), ("activations", "activations", "K", "right"),
    ("elementwise", "elementwise_ops", "K", "right"), ("traffic", "memory_traffic_bytes", "MB", "right"),
)  # fmt: skip


def _stage_rows(profile: ProfileRow, say: Words) -> list[tuple[tuple[str, ...], tuple[Any, ...]]]:
    found = []
    for m in _maps(profile):
        cost = m.get("forms", {}).get("deploy", {})
        rf = m["receptive_field"]
        raw = (
            profile.name, m["stage"], f"{m['channels']}×{m['height']}×{m['width']}", m["stride"], rf,
            *(cost.get(key) for key, _ in COSTS),
        )  # fmt: skip
        scaled = [(cost.get(k), f) for (k, _), f in zip(COSTS, (1e3, 1e6, 1e3, 1e3, 1e6), strict=True)]
        shown = (
            profile.name, m["stage"] + (f" ◂ {say.t('tap')}" if m.get("is_tap") else ""), raw[2], str(m["stride"]),
            "–" if rf is None else f"{rf}{'+' if m.get('is_receptive_field_global') else ''}",
            *("–" if v is None else tables.significant(v / f) for v, f in scaled),
        )  # fmt: skip
        found.append((shown, raw))
    return found


def _maps(profile: ProfileRow) -> Sequence[Mapping[str, Any]]:
    maps: list[Mapping[str, Any]] = list(profile.result.get("feature_maps") or [])
    taps = [i for i, m in enumerate(maps) if m.get("is_tap")]
    return maps[: taps[-1] + 1] if taps else maps


def _charts(profile: ProfileRow, stored: Stored, say: Words) -> list[Chart]:
    maps = _maps(profile)
    if not maps:
        return []
    made: list[Chart] = [_diagram(profile, stored, say), _costs(profile, say)]
    growth = _growth(profile, say)
    if growth is not None:
        made.append(growth)
    field = stored.fields.get(profile.spec_id)
    if field is not None:
        made.append(_heat(profile, field, say))
    newest: dict[tuple[str, str], OperatorsRow] = {}
    for row in stored.operators:
        if row.spec_id == profile.spec_id:
            newest[row.setting, row.form] = row
    made += [_operators(row, n, say) for n, row in enumerate(newest.values())]
    return made


def _key(profile: ProfileRow, what: str) -> str:
    return f"{what}-" + "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in profile.name).split())


def _diagram(profile: ProfileRow, stored: Stored, say: Words) -> Diagram:
    made_of = _rows_by_stage(stored.spec_texts.get(profile.spec_id, ""))
    boxes = [
        Box(m["stage"], tuple(made_of.get(m["stage"], ())), m["channels"], m["height"], m["width"],
            bool(m.get("is_tap")))
        for m in _maps(profile)
    ]  # fmt: skip
    size = "×".join(map(str, profile.result.get("input") or []))
    return Diagram(
        _key(profile, "stages"), profile.name + say.t(": ") + say("diagram_title") + f" ({size})", tuple(boxes)
    )


def _rows_by_stage(text: str) -> dict[str, list[str]]:
    """The lines of a readable spec by stage; a line that begins with a space goes on with the stage before."""
    found: dict[str, list[str]] = {}
    stage = ""
    for line in text.splitlines()[1:]:
        if line.startswith("taps "):
            break
        stage = stage if line.startswith(" ") else line.split()[0]
        line = line.partition("  (")[0]  # arguments stand in the spec itself
        row = line.strip() if line.startswith(" ") else line[len(stage) :].strip()
        found.setdefault(stage, []).append(row)
    return found


def _costs(profile: ProfileRow, say: Words) -> Bars:
    maps = _maps(profile)
    series = []
    for key, title in COSTS:
        raw = [m.get("forms", {}).get("deploy", {}).get(key) for m in maps]
        total = sum(v or 0 for v in raw) or 1
        unit = "B" if key.endswith("_bytes") else ""
        written = tuple("–" if v is None else f"{_si(v)}{unit}  {_share(v / total)}" for v in raw)
        series.append((say.t(title), tuple(None if v is None else v / total for v in raw), written))
    names = tuple(m["stage"] for m in maps)
    return Bars(_key(profile, "cost"), profile.name + say.t(": ") + say("cost_title"), names, tuple(series))


def _share(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _si(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{tables.significant(value / size)}{letter}"
    return f"{value:g}"


def _growth(profile: ProfileRow, say: Words) -> LineChart | None:
    maps = _maps(profile)
    points = [(float(i), float(m["receptive_field"])) for i, m in enumerate(maps) if m["receptive_field"]]
    if len(points) < 2:
        return None
    tracker = profile.result.get("tracker")
    level = None
    if tracker:
        size = tracker["template"]["size"]
        level = Level(f"{say('template')} {size} px", float(size))
    curve = Curve(profile.name, tuple(points), provenance=((say.t("spec"), profile.spec_id),))
    return LineChart(
        _key(profile, "receptive-field"), profile.name + say.t(": ") + say("rf_title"), Axis("stage", say("stage")),
        Axis("receptive_field", say("receptive_field"), "px", is_log=True), (curve,), level=level,
        x_names=tuple(m["stage"] for m in maps),
    )  # fmt: skip


def _heat(profile: ProfileRow, field: FieldRow, say: Words) -> Heat:
    side = len(field.rows)
    squares = []
    tracker = profile.result.get("tracker")
    if tracker:
        size = tracker["template"]["size"]
        squares.append((say.join(say("template"), f"{size} px"), float(size)))
    rf = profile.result.get("receptive_field")
    if rf and rf < side:
        squares.append((say.join(say("theory"), f"{rf} px"), float(rf)))
    squares.append((say("holds", share="95 %") + say.t(": ") + f"{field.side_95_px} px", float(field.side_95_px)))
    caption = say.t(
        "absolute gradient of the central unit of the last tap, {images} images of noise, random weights, deploy form; "
        "square root of the share of the largest (Luo et al. 2016, arXiv:1701.04128)",
        images=field.images,
    )
    rows = tuple(tuple(value**0.5 for value in row) for row in field.rows)
    title = profile.name + say.t(": ") + say("erf_title")
    return Heat(_key(profile, "effective"), title, rows, tuple(squares), field.centre, caption)


def _operators(row: OperatorsRow, number: int, say: Words) -> Bars:
    parts = sorted(row.parts, key=lambda p: -p[2])[:MOST_PARTS]
    order = [p for p in row.parts if p in parts]
    written = tuple(f"{tables.significant(seconds * 1e3)} ms  {share:.0%}" for _, _, seconds, share in order)
    ops = sorted(row.ops, key=lambda p: -p[2])[: len(order)]
    names = tuple(f"{name} {kind}".strip() for name, kind, _, _ in order)
    caption = say.t("run {run}: {setting}", run=row.run_id, setting=row.setting)
    if len(row.parts) > len(order):
        caption += say.t("; the {shown} costliest of {all} rows", shown=len(order), all=len(row.parts))
    told = "; ".join(f"{name} {share:.0%}" for name, _, _, share in ops[:6])
    return Bars(
        f"time-{number}-" + "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in row.name).split()),
        row.name + say.t(": ") + say("time_title") + f" ({say.t(row.form)})", names,
        ((say("time_of_row"), tuple(share for *_, share in order), written),),
        caption + say.t("; by sort: {sorts}", sorts=told),
    )  # fmt: skip


def _told(value: Any, say: Words) -> str:
    return "" if value in (None, False) else say.t("yes" if value is True else str(value))


def _sections(profile: ProfileRow, stored: Stored, say: Words) -> list[tuple[str, Table]]:
    made = []
    result = profile.result
    timed = {}
    for t in stored.timings:
        if t.spec_id == profile.spec_id:
            timed[t.setting, t.form] = t
    if timed:
        columns = tables.columns_of(
            ("form", "form", "", "left"), ("latency", "ratio", "× reference, 95 %", "right"),
            ("", "ratio_low", "", "right"), ("", "ratio_high", "", "right"), ("time", "time_s", "ms", "right"),
            ("measured on", "setting", "", "left"), ("run", "run", "", "right"),
        )  # fmt: skip
        rows = sorted(timed.items(), key=lambda item: (item[0][0].title, item[0][1]))
        cells = tuple(
            (say.t(form), tables.with_interval(t.ratio, t.ratio_low, t.ratio_high), "", "",
             tables.significant(t.time_s * 1e3), say.setting(setting), str(t.run_id))
            for (setting, form), t in rows
        )  # fmt: skip
        values = tuple((f, t.ratio, t.ratio_low, t.ratio_high, t.time_s, s.title, t.run_id) for (s, f), t in rows)
        made.append((say.t("{name}: latency", name=profile.name), Table(say.columns(columns), cells, values)))
    own = tuple(t for t in stored.older if t.spec_id == profile.spec_id)
    made += [(f"{profile.name}: {title}", table) for title, table in older.sections(replace(stored, older=own), say)]
    found = result.get("findings") or []
    columns = tables.columns_of(
        ("severity", "severity", "", "left"), ("rule", "rule", "", "left"), ("where", "where", "", "left"),
        ("finding", "message", "", "left"), ("waived", "waived", "", "left"),
    )  # fmt: skip
    told = tuple(
        (
            *(_told(f.get(k), say) for k in ("severity", "rule", "where", "message")),
            str(f["waived_because"]) if f.get("waived_because") else _told(f.get("waived"), say),
        )
        for f in found
    )
    if told:
        made.append((say.t("{name}: findings", name=profile.name), Table(say.columns(columns), told, told)))
    return made
