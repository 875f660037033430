"""Latencies that an older protocol measured: apart from all others, each with the command that measures it again."""

from __future__ import annotations

from bblab.reports import Table
from bblab.reports.kit import tables
from bblab.reports.kit.stored import Stored, TimingRow
from bblab.reports.kit.words import Words

TITLE = "apart: measured by an older protocol, comparable with none of the above"
COLUMNS = tables.columns_of(
    ("net", "name", "", "left"), ("form", "form", "", "left"), ("latency", "ratio", "× reference, 95 %", "right"),
    ("", "ratio_low", "", "right"), ("", "ratio_high", "", "right"), ("time", "time_s", "ms", "right"),
    ("measured on", "setting", "", "left"), ("run", "run", "", "right"), ("measure again", "command", "", "left"),
)  # fmt: skip


def command(device: str) -> str:
    """What measures again all that an older protocol has timed on a device."""
    return "bblab bench --again" + ("" if device == "host" else f" --device {device}")


def sections(stored: Stored, say: Words) -> list[tuple[str, Table]]:
    """A section of a page; none where there is nothing of that sort. What has been measured again says so."""
    rows = [t for t in stored.older if not t.is_reference]
    new = {_subject(t) for t in stored.timings}
    commands = [say.t("measured again") if _subject(t) in new else command(t.setting.device) for t in rows]
    cells = tuple(
        (t.name, say.t(t.form), tables.with_interval(t.ratio, t.ratio_low, t.ratio_high), "", "",
         tables.significant(t.time_s * 1e3), say.setting(t.setting), str(t.run_id), again)
        for t, again in zip(rows, commands, strict=True)
    )  # fmt: skip
    values = tuple(
        (t.name, t.form, t.ratio, t.ratio_low, t.ratio_high, t.time_s, t.setting.title, t.run_id, again)
        for t, again in zip(rows, commands, strict=True)
    )  # fmt: skip
    return [(say.t(TITLE), Table(say.columns(COLUMNS), cells, values))] if rows else []


def _subject(t: TimingRow) -> tuple[object, ...]:
    s = t.setting
    return t.spec_id, t.form, s.device, s.runtime, s.threads, s.input


def commands(stored: Stored) -> str:
    """The commands of all devices, for an error that has nothing else to show; "" where nothing is older."""
    return "; ".join(dict.fromkeys(command(t.setting.device) for t in stored.older))
