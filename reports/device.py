"""One device over time: the same net, day by day, with the conditions, so that a slow day is seen as one.

The upper chart is the ratio to the reference, which a slower clock leaves alone; the lower one is the reference's own
time, which follows the device's state.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from bblab.errors import BblabError
from bblab.reports import Options, Page, Table, notebook_report
from bblab.reports.kit import older, tables
from bblab.reports.kit.charts import Axis, Chart, Curve, LineChart
from bblab.reports.kit.stored import Setting, Stored, TimingRow
from bblab.reports.kit.words import Words
from bblab.reports.pareto import conditions_words

MOST_NETS = 12


@notebook_report("device")
def device(stored: Stored, options: Options) -> Page:
    """Two charts a setting, and every session with what the device said of itself."""
    say = Words(options.lang)
    if not stored.timings:
        again = older.commands(stored)
        raise BblabError(
            "nothing is timed here" + " by this protocol, only by an older one" * bool(again),
            hint=f"{again or 'bblab bench SPEC'}, then bblab report device",
        )
    by_setting: dict[Setting, list[TimingRow]] = {}
    for row in stored.timings:
        by_setting.setdefault(row.setting, []).append(row)
    charts: list[Chart] = []
    notes = []
    cells, values = [], []
    for number, (setting, rows) in enumerate(sorted(by_setting.items(), key=lambda i: (-len(i[1]), i[0].title)), 1):
        rows = sorted(rows, key=lambda r: r.run_id)
        made, left_out = _charts(setting, rows, number, say)
        charts += made
        if left_out:
            nets = say.many("net", left_out)
            text = "{setting}: {nets} with fewer sessions in the table only"
            notes.append(say.t(text, setting=say.setting(setting), nets=nets))
        for r in rows:
            own_ms = tables.significant(r.time_s * 1e3)
            unit = r.reference_s
            cells.append(
                (
                    str(r.run_id), r.created_utc[:16].replace("T", " "), r.name, say.t(r.form),
                    say.t("the reference") if r.is_reference
                    else tables.with_interval(r.ratio, r.ratio_low, r.ratio_high),
                    "", "", own_ms, tables.significant(unit * 1e3), conditions_words(r, say), "",
                )
            )  # fmt: skip
            values.append(
                (r.run_id, r.created_utc, r.name, r.form, r.ratio, r.ratio_low, r.ratio_high, r.time_s, unit,
                 conditions_words(r, say), say.setting(setting))
            )  # fmt: skip
    busy = sum(r.is_busy for r in stored.timings)
    if busy:
        text = "{busy} of {all} timings were taken on a busy machine: no wall times of them"
        notes.append(say.t(text, busy=busy, all=len(stored.timings)))
    return Page(
        "device", Table(say.columns(COLUMNS), tuple(cells), tuple(values)), tuple(notes), tuple(charts),
        tuple(older.sections(stored, say)), heading=charts[0].title if charts else "", about=stored.about,
    )  # fmt: skip


COLUMNS = tables.columns_of(
    ("run", "run", "", "right"), ("when", "created_utc", "UTC", "left"), ("net", "name", "", "left"),
    ("form", "form", "", "left"), ("latency", "ratio", "× reference, 95 %", "right"), ("", "ratio_low", "", "right"),
    ("", "ratio_high", "", "right"), ("time", "time_s", "ms", "right"), ("reference", "reference_s", "ms", "right"),
    ("conditions", "conditions", "", "left"), ("", "setting", "", "left"),
)  # fmt: skip


def _charts(setting: Setting, rows: list[TimingRow], number: int, say: Words) -> tuple[list[Chart], int]:
    nets: dict[tuple[str, str, str], list[TimingRow]] = {}
    for r in rows:
        if not r.is_reference:
            nets.setdefault((r.name, r.spec_id, f"{r.form}, × {r.reference[0]}"), []).append(r)
    began = {r.session: _seconds(r.created_utc) for r in reversed(rows)}
    chosen = sorted(nets, key=lambda k: (-len(nets[k]), k))[:MOST_NETS]
    time = Axis("time", say("time"))
    place = say.setting(replace(setting, device="", machine=""))
    reference = rows[0].reference[0]
    slug = "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in setting.device).split())
    title = say("device_title", device=setting.device, place=place)
    curves = []
    for key in chosen:
        members = nets[key]
        told = tuple({say.t("runs"): ", ".join(str(r.run_id) for r in members[-8:])}.items())
        curves.append(
            Curve(
                f"{key[0]} {say.t(members[0].form)}", tuple((began[r.session], r.ratio) for r in members),
                provenance=told, dots=True,
                low=tuple(r.ratio if r.ratio_low is None else r.ratio_low for r in members),
                high=tuple(r.ratio if r.ratio_high is None else r.ratio_high for r in members),
            )
        )  # fmt: skip
    made: list[Chart] = []
    if curves:
        axis = Axis("ratio", say("ratio", reference=reference), is_log=True)
        made.append(LineChart(f"{slug}-{number}-ratios", title, time, axis, tuple(curves)))
    sessions: dict[str, TimingRow] = {r.session: r for r in rows}
    points = tuple((began[r.session], r.reference_s) for r in sessions.values())
    steady = [say.t("yes" if r.is_steady else "no") for r in list(sessions.values())[-8:]]
    told = ((say.t("steady"), ", ".join(steady)),)
    own = Curve(f"{reference} ({say('reference')})", points, provenance=told, dots=True)
    made.append(
        LineChart(f"{slug}-{number}-reference", title + say.t(": ") + say("reference"), time,
                  Axis("time_s", reference, "ms", 1e3), (own,))
    )  # fmt: skip
    return made, len(nets) - len(chosen)


def _seconds(created_utc: str) -> float:
    return datetime.fromisoformat(created_utc.replace("Z", "+00:00")).astimezone(UTC).timestamp()
