"""From the notebook's rows to what reports read: the only place that knows the keys of stored rows.

`gather` reads, selects and completes (profiles that were never stored are computed); `write_all` draws a page into a
folder. A row whose keys are not those expected is counted in a notice, never silently dropped.
"""

from __future__ import annotations

import fnmatch
import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError, RunError, near
from bblab.lab.racing import protocol_of
from bblab.latency import stats
from bblab.latency.wire import PACED, PROTOCOL, STATES, WARM
from bblab.reports.kit.stored import (
    AccuracyRow,
    FieldRow,
    OperatorsRow,
    ProfileRow,
    PublishedRow,
    Scale,
    Setting,
    Stored,
    TimingRow,
    TrainingRow,
)
from bblab.reports.kit.words import Words

if TYPE_CHECKING:
    from bblab.lab import Lab
    from bblab.reports import Page
    from bblab.store import Run, Store

IMAGENET = "ImageNet-1k"
MOST_COMPUTED = 300  # profiles that a report computes itself


# Rows ---------------------------------------------------------------------------------------------------------------


def timing_rows(run: Run, samples: Callable[[], Mapping[str, Sequence[float]]]) -> list[TimingRow]:
    """A stored timing, a row a state. Raises KeyError, TypeError or ValueError where it is not one."""
    protocol = protocol_of(run)
    raw = samples() if protocol == PROTOCOL else {}
    return [
        _timing_row(run, state, figures, protocol, raw)
        for state in ((WARM,) if protocol == 1 else STATES)
        if (figures := run.result if protocol == 1 else run.result.get(state))
    ]


def _timing_row(
    run: Run, state: str, figures: Mapping[str, Any], protocol: int, raw: Mapping[str, Sequence[float]]
) -> TimingRow:
    i, r = run.inputs, run.result
    conditions = r.get("conditions") or {}
    before, after = conditions.get("before") or {}, conditions.get("after") or {}
    pace = i.get("pace_fps") if protocol == 1 or state == PACED else None
    setting = Setting(
        str(i["device"]), str(before.get("cpu_model") or ""), str(i["runtime"]), str(i["runtime_version"]),
        r.get("processor", "cpu"), str(i["precision"]), int(i["threads"]), tuple(int(n) for n in i["input"]),
        int(i.get("batch") or 1), None if pace is None else float(pace), state, protocol,
    )  # fmt: skip
    wall = figures.get("measured_wall_p50_s") or figures.get("wall_p50_s")
    time_s = float(wall if setting.has_wall_times and wall else figures["cpu_p10_s"])
    ratio = float(figures["ratio"])
    if not (ratio > 0 and math.isfinite(ratio)):
        raise ValueError("the ratio is not a positive number")
    prefix = "" if state == WARM else f"{state}_"
    clock = "wall_s" if setting.has_wall_times else "cpu_s"
    lengths = r.get("samples_per_process") or {}
    own, beside = (
        _by_process(raw.get(name, ()), lengths.get(name) or ())
        for name in (f"{prefix}{clock}", f"{prefix}reference_{clock}")
    )
    logs: tuple[float, ...] = ()
    reference_s = time_s / ratio
    if own and list(map(len, own)) == list(map(len, beside)):
        logs = stats.process_logs(own, beside, stats.functional_of(state, setting.threads, setting.processor))
        reference_s = stats.quantile(stats.pooled(beside), 0.5 if setting.has_wall_times else 0.1)
    reference = (str(i["reference"]), str(r.get("reference_form", "deploy")), tuple(r.get("reference_input") or ()))
    return TimingRow(
        run.id, run.created_utc, run.spec_id, run.name, str(i["form"]), setting, str(r.get("session", run.id)),
        reference, bool(r.get("is_reference")), time_s, reference_s, ratio, _number(figures.get("ratio_low")),
        _number(figures.get("ratio_high")), logs, bool(r.get("steady", True)), bool(r.get("is_busy")),
        tuple(map(str, r.get("doubts") or ())), before, after,
    )  # fmt: skip


def _by_process(values: Sequence[float], lengths: Sequence[int]) -> stats.Series:
    """The joined samples cut into processes; nothing where a value is not a time."""
    if not lengths or sum(lengths) != len(values) or not all(v > 0 for v in values):
        return ()
    found, at = [], 0
    for length in lengths:
        found.append(tuple(values[at : at + length]))
        at += length
    return tuple(found)


FINISHED = "done"


def training_rows(
    run: Run, samples: Callable[[], Mapping[str, Sequence[float]]], say: Words
) -> tuple[TrainingRow, AccuracyRow | None]:
    """A stored pretraining: its curve, and its accuracy where it ran to its end."""
    i, r = run.inputs, run.result
    recipe, data, settings = i["recipe"], i["data"], i.get("settings") or {}
    seed = settings.get("seed")
    trained, planned = r.get("epochs_trained"), r.get("epochs_planned")
    raw = samples()
    losses, shares = raw.get("train_loss", ()), raw.get("top1_percent", ())
    curve = tuple(
        {
            "epoch": k + 1,
            **({"loss": losses[k]} if k < len(losses) else {}),
            **({"accuracy_top1": shares[k] / 100} if k < len(shares) else {}),
        }
        for k in range(max(len(losses), len(shares)))
    )
    name = _data_name(data)
    training = TrainingRow(
        run.id, run.created_utc, run.spec_id, run.name, str(recipe["name"]), name, None if seed is None else int(seed),
        trained, curve, options=_options(recipe, data, settings, name, planned),
    )  # fmt: skip
    if r.get("status") != FINISHED:
        return training, None
    value, low, high = (_number(r.get(f"top1_{key}percent")) for key in ("", "low_", "high_"))
    epochs = "{recipe}, {epochs} epoch at {px} px" if planned == 1 else "{recipe}, {epochs} epochs at {px} px"
    protocol = say.t(epochs, recipe=recipe["name"], epochs=planned, px=recipe.get("resolution_px"))
    if settings.get("weights"):
        protocol += say.t(", from weights")
    return training, AccuracyRow(
        run.id, run.created_utc, run.spec_id, run.name, Scale("top-1", name, "val" if name == IMAGENET else ""), "own",
        protocol, math.nan if value is None else value / 100, None if low is None else low / 100,
        None if high is None else high / 100, training.seed,
    )  # fmt: skip


def _options(
    recipe: Mapping[str, Any], data: Mapping[str, Any], settings: Mapping[str, Any], data_name: str, planned: int | None
) -> str:
    """The options of `bblab pretrain` with which another net or seed comes by its accuracy in the same way."""
    given: list[tuple[str, object]] = [("--recipe", recipe["name"]), ("--epochs", planned)]
    if data_name != "digits":
        root = Path(str(data.get("root") or "DIR"))
        lists = ((f"--ann-{part}", data.get(f"ann_{part}")) for part in ("train", "val"))
        given = [("--data", root), *((key, root / str(value)) for key, value in lists if value), *given]
    batch, rule = settings.get("batch_size"), settings.get("lr_rule")
    given += [
        ("--batch-size", batch if batch != recipe.get("base_batch") else None),
        ("--lr-rule", rule if rule != "none" else None),
        ("--accumulate", settings.get("accumulation") if settings.get("accumulation") != 1 else None),
        ("--freeze", settings.get("freeze")),
        ("--weights", settings.get("weights")),
    ]
    return " ".join(f"{key} {shlex.quote(str(value))}" for key, value in given if value is not None)


def _data_name(data: Mapping[str, Any]) -> str:
    """ImageNet-1k by its numbers; the digits that come with bblab; else the folder's name and the data's hash."""
    if data.get("num_classes") == 1000 and data.get("val_count") == 50_000:
        return IMAGENET
    name = Path(str(data.get("root") or "data")).name
    if re.fullmatch(r"digits-\d+px-v\d+", name) and data.get("val_count") == 360:
        return "digits"
    return f"{name} {str(data.get('hash') or '')[:6]}".strip()


def _last_of_each(runs: Iterable[Run]) -> list[Run]:
    """Of a training that was stopped and went on, the newest row only; `runs` newest first."""
    seen: set[str] = set()
    kept = []
    for run in runs:
        folder = str(run.result.get("folder") or run.id)
        if folder not in seen:
            kept.append(run)
        seen.add(folder)
    return kept


def score_row(run: Run, say: Words) -> AccuracyRow:
    """A stored tracker score."""
    i, r = run.inputs, run.result
    value = _number(r.get("value"))
    scale = _score_scale(str(r["metric"]), str(r.get("split") or ""), r.get("higher_is_better") is False)
    told = [] if r.get("epoch") is None else [say.t("epoch {epoch}", epoch=r["epoch"])]
    told += [str(i["tracker"])] if i.get("tracker") else []
    return AccuracyRow(
        run.id, run.created_utc, run.spec_id, run.name, scale, "recorded", "recorded",
        math.nan if value is None else value, _number(r.get("low")), _number(r.get("high")), remark=", ".join(told),
    )  # fmt: skip


def _score_scale(metric: str, split: str, is_loss: bool) -> Scale:
    """A tracker's score as it is stored; one that the catalogue knows for a share lies between 0 and 1."""
    from bblab.tracking.metrics import METRICS

    known = METRICS.get(metric)
    return Scale(metric, "", split, is_share=False, is_loss=is_loss, is_bounded=known is not None and known.is_share)


def _accuracies_of(rows: Sequence[Run], say: Words) -> tuple[list[Run], list[str]]:
    """The scores that an accuracy axis may hold, and in words why others may not."""
    from bblab.tracking.metrics import is_cost

    kept: list[Run] = []
    costs, aimless = Counter[str](), Counter[str]()
    for run in rows:
        if run.kind != "tracker_score":
            continue
        metric = str(run.result.get("metric"))
        if is_cost(metric):
            costs[metric] += 1
        elif not isinstance(run.result.get("higher_is_better"), bool):
            aimless[metric] += 1
        else:
            kept.append(run)
    told = []
    for metric, count in costs.items():
        value = "value of {metric} is" if count == 1 else "values of {metric} are"
        text = f"{{count}} stored {value} of a speed or a cost, not of an accuracy: on no chart"
        told.append(say.t(text, count=count, metric=metric))
    for metric, count in aimless.items():
        score, them = ("score of {metric} is", "it") if count == 1 else ("scores of {metric} are", "them")
        text = (
            f"{{count}} stored {score} on no chart, as nobody said which way is better: record {them} as "
            "{metric}:higher=VALUE or {metric}:lower=VALUE"
        )
        told.append(say.t(text, count=count, metric=metric))
    return kept, told


def _best_of_each(runs: Sequence[Run], rows: Sequence[AccuracyRow], say: Words) -> list[AccuracyRow]:
    """Of the checkpoints of one training (or one log, or one export), the best: another training is another sample."""
    found: dict[tuple[Any, ...], list[AccuracyRow]] = {}
    by_id = {run.id: run for run in runs}
    for row in rows:
        i = by_id[row.run_id or 0].inputs
        logs = tuple(sorted(str(f.get("sha256")) for f in i.get("logs") or () if isinstance(f, Mapping)))
        found.setdefault((row.spec_id, row.scale, i.get("training"), logs, str(i.get("export"))), []).append(row)
    best = []
    for members in found.values():
        sign = -1 if members[0].scale.is_loss else 1
        chosen = max(members, key=lambda m: sign * m.value if math.isfinite(m.value) else -math.inf)
        more = say.t("best of {count} recorded checkpoints", count=len(members)) if len(members) > 1 else ""
        best.append(replace(chosen, remark=", ".join(t for t in (chosen.remark, more) if t)))
    return best


def curve_of_log(run: Run) -> TrainingRow | None:
    """The losses of a tracker's training, epoch by epoch, as its log told them."""
    total = run.result.get("total")
    points = run.result.get("curve") or ()
    curve = tuple(
        {"epoch": p["epoch"], "loss": p[total]}
        for p in points
        if isinstance(p, Mapping)
        and total
        and _number(p.get(total)) is not None
        and _number(p.get("epoch")) is not None
    )
    if not curve:
        return None
    trainer = str(run.result.get("trainer") or "log")
    return TrainingRow(run.id, run.created_utc, run.spec_id, run.name, trainer, "", None, None, curve, True)


def operators_row(run: Run, say: Words) -> OperatorsRow:
    """A stored measurement of the time of each operator."""
    i, r = run.inputs, run.result
    parts = tuple((str(p["name"]), str(p.get("kind") or ""), float(p["seconds"]), float(p["share"])) for p in r["rows"])
    ops = tuple((str(p["name"]), "", float(p["seconds"]), float(p["share"])) for p in r["op_types"])
    threads = say.counted("{count} thread", int(i["threads"]))
    runtime = f"{i['runtime']} {i['runtime_version']}"
    older = say.t("protocol 1 (cold, mixed)") if protocol_of(run) == 1 else ""
    where = say.join(str(i["device"]), runtime, str(i["precision"]), threads, "×".join(map(str, i["input"])), older)
    return OperatorsRow(run.id, run.created_utc, run.spec_id, run.name, str(i["form"]), where, parts, ops)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


# Selection ----------------------------------------------------------------------------------------------------------

KEYS: dict[str, Callable[[TimingRow], str]] = {
    "device": lambda t: t.setting.device,
    "machine": lambda t: t.setting.machine,
    "runtime": lambda t: t.setting.runtime,
    "version": lambda t: t.setting.runtime_version,
    "precision": lambda t: t.setting.precision,
    "threads": lambda t: str(t.setting.threads),
    "size": lambda t: str(t.setting.size_px),
    "state": lambda t: t.setting.state,
    "pace": lambda t: "none" if t.setting.pace_fps is None else f"{t.setting.pace_fps:g}",
    "form": lambda t: t.form,
}
NET_KEYS = ("name", "spec_id", "family")


@dataclass(frozen=True, slots=True)
class Selection:
    """`device=host runtime=ort,ncnn size=255 name=mobile*`: all of the keys, any of a key's values."""

    wanted: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def keeps(self, key: str, value: str) -> bool:
        return all(_matches(value, choice) for k, choice in self.wanted if k == key)

    def has(self, *keys: str) -> bool:
        return any(key in keys for key, _ in self.wanted)


def parse_selection(text: str) -> Selection:
    """Raises BblabError for what is no KEY=VALUE, and for an unknown key with the near ones."""
    wanted = []
    known = (*KEYS, *NET_KEYS)
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise BblabError(
                f"--select {text!r}: {word!r} is not KEY=VALUE", hint='for example "device=host runtime=ort size=255"'
            )
        if key not in known:
            raise BblabError(f"--select {text!r}: no key {key!r}", hint=near(key, known))
        wanted.append((key, tuple(v for v in value.split(",") if v)))
    return Selection(tuple(wanted))


def _matches(value: str, choice: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(value.lower(), pattern.lower()) for pattern in choice)


def _selected(stored: Stored, selection: Selection) -> Stored:
    """What the selection leaves. Raises BblabError where a key matches nothing, with the values that there are."""
    facts = [
        *((r.spec_id, r.name) for r in (*stored.timings, *stored.older)),
        *((r.spec_id, r.name) for r in stored.accuracies),
        *((r.spec_id, r.name) for r in stored.trainings),
        *((r.spec_id, r.name) for r in stored.profiles.values()),
    ]
    for key, choice in selection.wanted:
        if key in KEYS:
            values = {KEYS[key](t) for t in (*stored.timings, *stored.older)}
        elif key == "family":
            values = {stored.families.get(spec_id, "other") for spec_id, _ in facts}
        else:
            values = {spec_id if key == "spec_id" else name for spec_id, name in facts}
        if not any(_matches(v, choice) for v in values):
            shown = near(choice[0], values) if values else "nothing is timed yet: bblab bench"
            raise BblabError(f"--select {key}={','.join(choice)} matches nothing", hint=shown)

    def keeps(spec_id: str, name: str) -> bool:
        family = stored.families.get(spec_id, "other")
        return (
            selection.keeps("name", name) and selection.keeps("spec_id", spec_id) and selection.keeps("family", family)
        )

    timings, older = (
        tuple(
            t for t in rows
            if keeps(t.spec_id, t.name) and all(selection.keeps(key, read(t)) for key, read in KEYS.items())
        )
        for rows in (stored.timings, stored.older)
    )  # fmt: skip
    if stored.timings and not timings and not older:
        asked = " ".join(f"{k}={','.join(v)}" for k, v in selection.wanted)
        there = sorted({t.setting.title for t in stored.timings})
        raise BblabError(
            f"--select {asked!r} matches nothing together",
            hint="there is: " + "; ".join(there[:6]) + (f"; and {len(there) - 6} more" if len(there) > 6 else ""),
        )
    return replace(
        stored,
        timings=timings if selection.has("state", "pace") else tuple(t for t in timings if t.setting.state == WARM),
        older=older,
        accuracies=tuple(a for a in stored.accuracies if keeps(a.spec_id, a.name)),
        trainings=tuple(t for t in stored.trainings if keeps(t.spec_id, t.name)),
        profiles={i: p for i, p in stored.profiles.items() if keeps(i, p.name)},
    )


# Gathering ----------------------------------------------------------------------------------------------------------


def gather(
    lab: Lab,
    *,
    select: str = "",
    since: str | None = None,
    names: Sequence[str] = (),
    with_published: bool = False,
    lang: str = "en",
) -> Stored:
    """Everything that the selection leaves of the notebook, with published figures and missing profiles.

    Of latencies the warm ones, unless `state=` or `pace=` selects others.
    `names`: specs or `NAME*` patterns, by stored name. Raises BblabError for an empty notebook (what to run first), a
    selection that is wrong or matches nothing (the near values).
    """
    say = Words(lang)
    selection = parse_selection(select)
    odd: Counter[str] = Counter()
    with lab.notebook(read_only=True) as store:
        runs = store.runs(since=since)
        if not runs and not with_published:
            _refuse_empty(lab, store, since)
        read = _read(runs, "timing", lambda run: timing_rows(run, lambda: store.samples(run.id)), odd)
        timings = [row for rows in read for row in rows]
        ended = _last_of_each(run for run in runs if run.kind == "pretrain")
        trained = _read(ended, "pretrain", lambda run: training_rows(run, lambda: store.samples(run.id), say), odd)
        scored, no_accuracy = _accuracies_of(runs, say)
        scores = _best_of_each(runs, _read(scored, "tracker_score", lambda run: score_row(run, say), odd), say)
        logs = [row for run in runs if run.kind == "tracker_training" and (row := curve_of_log(run))]
        operators = _read(runs, "operators", lambda run: operators_row(run, say), odd)
        profiles: dict[str, ProfileRow] = {}
        for run in runs:  # newest first
            if run.kind == "profile" and run.spec_id not in profiles and "forms" in run.result:
                profiles[run.spec_id] = ProfileRow(run.id, run.spec_id, run.name, run.result)
        accuracies = [*(a for _, a in trained if a is not None), *scores]
        known = {
            r.spec_id: r.name for rows in (timings, accuracies, list(profiles.values()), logs) for r in reversed(rows)
        }
        texts = {spec_id: store.spec_text(spec_id) or "" for spec_id in known}
    for kind, count in odd.items():
        lab.notices.append(f"{count} stored row(s) of kind {kind} are not as this version writes them: left out")
    lab.notices += no_accuracy
    published = _zoo_accuracies(lab, known, with_published, say)
    accuracies += published
    known |= {a.spec_id: a.name for a in published}
    _complete(lab, profiles, known, say)
    stored = Stored(
        tuple(t for t in reversed(timings) if t.setting.protocol == PROTOCOL),
        tuple(t for t in reversed(timings) if t.setting.protocol != PROTOCOL),
        tuple(accuracies),
        profiles,
        tuple(reversed([*(t for t, _ in trained), *logs])),
        tuple(_published_trackers()) if with_published else (),
        _families(lab, known, texts),
        {spec_id: readable(text) for spec_id, text in texts.items()},
        _about(runs, select, since, say),
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        tuple(reversed(operators)),
    )
    if names:
        stored = _named(stored, names)
    return _selected(stored, selection)


def _refuse_empty(lab: Lab, store: Store, since: str | None) -> None:
    every = store.runs(limit=1)
    if every:
        raise BblabError(
            f"nothing is stored since {since} in {lab.store_path}",
            hint=f"the newest run is of {every[0].created_utc[:16].replace('T', ' ')} UTC",
        )
    raise BblabError(
        f"the notebook {lab.store_path} is empty: there is nothing to report yet",
        hint="run first: bblab bench mobileone_s0@s16 nanotrack (latency), then bblab pretrain or bblab record "
        "(accuracy); published figures alone: bblab report --against macs --with-published",
    )


def _read(runs: Iterable[Run], kind: str, read: Callable[[Run], Any], odd: Counter[str]) -> list[Any]:
    found = []
    for run in runs:
        if run.kind == kind:
            try:
                found.append(read(run))
            except (KeyError, TypeError, ValueError, AttributeError):
                odd[kind] += 1
    return found


def _named(stored: Stored, names: Sequence[str]) -> Stored:
    there = {
        r.name: r.spec_id
        for rows in (
            stored.timings,
            stored.older,
            stored.accuracies,
            stored.trainings,
            tuple(stored.profiles.values()),
        )
        for r in rows
    }
    for name in names:
        if not any(_matches(n, [name]) or i == name for n, i in there.items()):
            raise BblabError(f"nothing is stored about {name!r}", hint=near(name, there))
    wanted = Selection((("name", tuple(names)),))
    ids = {i for n, i in there.items() if wanted.keeps("name", n)} | {i for i in there.values() if i in names}
    return replace(
        stored,
        timings=tuple(t for t in stored.timings if t.spec_id in ids),
        older=tuple(t for t in stored.older if t.spec_id in ids),
        accuracies=tuple(a for a in stored.accuracies if a.spec_id in ids),
        trainings=tuple(t for t in stored.trainings if t.spec_id in ids),
        profiles={i: p for i, p in stored.profiles.items() if i in ids},
    )


def _zoo_accuracies(lab: Lab, known: Mapping[str, str], with_all: bool, say: Words) -> list[AccuracyRow]:
    """Published top-1 of the stored nets; of a cut net its whole net's, which the row says. Only where the spec is
    the very one that the name stands for: an edited net has no published accuracy."""
    figures = {name: p for name, p in lab.published().items() if p.top1_percent is not None}
    asked = {name for name in known.values() if name.partition("@")[0] in figures}
    if with_all:
        asked |= set(figures)
    found = []
    for name in sorted(asked):
        figure = figures[name.partition("@")[0]]
        try:
            spec_id = lab.spec(name).spec_id
        except BblabError:
            continue
        if spec_id not in known and name not in figures:
            continue
        remarks = [figure.top1_note] if figure.top1_note else []
        if "@" in name:
            remarks.append(say.t("of the whole {name}, this is a cut of it", name=name.partition("@")[0]))
        assert figure.top1_percent is not None
        found.append(
            AccuracyRow(
                None, "", spec_id, name, Scale("top-1", IMAGENET, "val"), "published", "published",
                figure.top1_percent / 100, citation=figure.figures_source, remark="; ".join(remarks),
            )
        )  # fmt: skip
    return found


def _complete(lab: Lab, profiles: dict[str, ProfileRow], known: Mapping[str, str], say: Words) -> None:
    """Compute the profiles that no row has, where the name still stands for the same spec."""
    missing = [(spec_id, name) for spec_id, name in known.items() if spec_id and spec_id not in profiles]
    unknown = max(0, len(missing) - MOST_COMPUTED)
    for spec_id, name in missing[:MOST_COMPUTED]:
        try:
            spec = lab.spec(name)
            if spec.spec_id != spec_id:
                unknown += 1
                continue
            profiles[spec_id] = ProfileRow(None, spec_id, name, lab.check(spec).to_json())
        except BblabError:
            unknown += 1
    if unknown:
        text = "parameters and MACs of {nets} are not known here: bblab profile SPEC stores them"
        lab.notices.append(say.t(text, nets=say.many("net", unknown)))


def _published_trackers() -> list[PublishedRow]:
    """Scores of whole trackers from papers and repositories; a speed belongs to the device beside it."""
    from bblab.tracking.published import published

    return [
        PublishedRow(
            row.tracker, _score_scale(row.metric, row.split, not row.higher_is_better), row.value,
            row.source + (f" ({row.note})" if row.note else ""), row.params, row.macs,
            "; ".join(f"{s.bound}{s.fps:g} fps, {s.device}" for s in row.speeds),
            "; ".join(dict.fromkeys(s.source for s in row.speeds)), row.cost_source,
        )
        for row in published()
    ]  # fmt: skip


def _families(lab: Lab, known: Mapping[str, str], texts: Mapping[str, str]) -> dict[str, str]:
    """The published family of a built-in net; of others the block that most of their rows are made of."""
    published = lab.published()
    found = {}
    for spec_id, name in known.items():
        base = name.partition("@")[0]
        figure = published.get(base)
        if figure is not None:
            found[spec_id] = figure.family
        elif ":" in base:
            found[spec_id] = base.partition(":")[2].partition("_")[0]
        else:
            found[spec_id] = _most_used_block(texts.get(spec_id, "")) or "other"
    return found


def _most_used_block(canonical: str) -> str:
    try:
        kinds = Counter(row[0] for _, rows in json.loads(canonical)["stages"] for row in rows)
    except (ValueError, KeyError, TypeError, IndexError):
        return ""
    return str(kinds.most_common(1)[0][0]) if kinds else ""


def readable(canonical: str) -> str:
    """A stored spec as lines that a person reads: a stage, then its rows (equal ones once)."""
    try:
        value = json.loads(canonical)
        lines = ["input " + "×".join(map(str, value["input"]))]
        for stage, rows in value["stages"]:
            shown: list[list[Any]] = []
            for row in rows:
                if shown and shown[-1][0] == row:
                    shown[-1][1] += 1
                else:
                    shown.append([row, 1])
            for i, ((kind, out, stride, args), count) in enumerate(shown):
                more = ", ".join(f"{k} {_plain(v)}" for k, v in args)
                times = f"  × {count}" if count > 1 else ""
                step = f" /{stride}" if stride != 1 else ""
                lines.append(
                    f"{stage if i == 0 else '':<8} {kind} {_plain(out)}{step}{times}" + f"  ({more})" * bool(more)
                )
        lines.append("taps " + ", ".join(value["taps"]))
        return "\n".join(lines)
    except (ValueError, KeyError, TypeError):
        return canonical


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _about(runs: Sequence[Run], select: str, since: str | None, say: Words) -> tuple[str, ...]:
    from bblab.lab import code_version

    told = [say.counted("{count} stored run", len(runs)), f"bblab {code_version()}"]
    if runs:
        first, last = runs[-1].created_utc[:10], runs[0].created_utc[:10]
        told.insert(1, first if first == last else say.t("{first} to {last}", first=first, last=last))
    if select:
        told.append(say.t("selected: {select}", select=select))
    if since:
        told.append(say.t("since {since}", since=since))
    return tuple(told)


def with_fields(lab: Lab, stored: Stored, names: Sequence[str], most: int = 6) -> Stored:
    """With the effective receptive field of each spec that a card is drawn of, where it can be built here.

    Built from its stored name, if that still stands for the same spec, with random weights, at search size.
    """
    from bblab import build
    from bblab.analysis.effective import effective_field

    profiles = list(stored.profiles.values())
    if not names:
        profiles = sorted((p for p in profiles if p.run_id is not None), key=lambda p: p.run_id or 0)[-1:]
    found = {}
    for profile in profiles[:most]:
        tracker = profile.result.get("tracker")
        given = profile.result.get("input") or [3, 224, 224]
        side = tracker["search"]["size"] if tracker else given[1]
        try:
            spec = lab.spec(profile.name)
            if spec.spec_id != profile.spec_id:
                continue
            net = build.build(spec, lab.kinds, form="deploy")
            field = effective_field(net, (int(given[0]), int(side), int(side)))
        except (BblabError, RuntimeError, ValueError) as error:
            said = (str(error).strip().splitlines() or [""])[0]
            lab.notices.append(f"{profile.name}: no effective receptive field: {said}")
            continue
        found[profile.spec_id] = FieldRow(
            profile.spec_id, field.rows, field.centre, field.side_holding(0.95), field.images
        )
    return replace(stored, fields=found)


# Files --------------------------------------------------------------------------------------------------------------


def folder_for(lab: Lab, name: str, out: Path | str | None) -> Path:
    """The folder that a report is written to, made and tried. Raises RunError with a remedy."""
    from bblab.spec import expanded

    folder = expanded(out) if out is not None else lab.folder / "out" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror or str(error)
        raise RunError(f"{folder} cannot be written: {why}", hint="name a folder you can write to: --out DIR") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(
            f"{folder} cannot be written: you may not write there", hint="name a folder you can write to: --out DIR"
        )
    return folder


def write_all(
    page: Page, folder: Path, for_print: Page | None = None, *, lang: str = "en", print_lang: str = "en"
) -> tuple[list[Path], list[str]]:
    """HTML, PNG + SVG + PDF of each main chart, CSV, Markdown and LaTeX of a page; what was written, and notices.

    Each file is written beside its place and renamed. Raises RunError where one cannot be.
    """
    from bblab.reports.kit import draw_html, draw_print, tables

    stem = page.title
    files: dict[str, bytes] = {}
    drawn = draw_print.figures(for_print or page, print_lang)
    for name, content in drawn.files.items():
        files[f"{stem}-{name}"] = content
    if page.table.columns:
        caption = page.heading or page.title
        files[f"{stem}.csv"] = page.table.to_csv().encode()
        files[f"{stem}.md"] = _markdown(page, stem, drawn.names).encode()
        tex = [tables.latex(page.table, caption, stem, page.sources)]
        tex += [tables.latex(t, title, f"{stem}-{n}") for n, (title, t) in enumerate(page.sections, 1)]
        files[f"{stem}.tex"] = "\n".join(tex).encode()
    files[f"{stem}.html"] = draw_html.page(page, lang, print_lang).encode()
    written = []
    for name, content in files.items():
        written.append(_put(folder / name, content))
    return written, list(drawn.notices)


def _markdown(page: Page, stem: str, figures: Sequence[str]) -> str:
    from bblab.reports.kit import tables

    parts = [f"# {tables.plain_md(page.heading or page.title)}\n"]
    parts += [f"![{tables.plain_md(name)}]({stem}-{name}.png)\n" for name in figures]
    parts.append(tables.markdown(page.table, page.sources))
    parts += [f"{tables.plain_md(note)}\n" for note in page.notes]
    parts += [f"## {title}\n\n{tables.markdown(table)}" for title, table in page.sections]
    if page.about:
        parts.append(f"*{tables.plain_md(', '.join(page.about))}*\n")
    return "\n".join(parts)


def _put(path: Path, content: bytes) -> Path:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}", hint="name another folder with --out DIR"
        ) from None
    return path


def report(
    lab: Lab,
    name: str,
    names: Sequence[str],
    *,
    against: str,
    accuracy: str,
    budget_s: float | None,
    with_published: bool,
    select: str,
    since: str | None,
    out: Path | str | None,
    lang: str,
    files: bool,
) -> tuple[Page, list[Path]]:
    """Gather, think and, with `files`, draw. What the user may mistake is checked before anything is read."""
    from bblab import reports

    Words(lang)
    made = reports.find_for_notebook(name, lab.rooms)
    parse_selection(select)
    folder = folder_for(lab, name, out) if files else None
    stored = gather(lab, select=select, since=since, names=names, with_published=with_published, lang=lang)
    if name == "spec_card":
        stored = with_fields(lab, stored, names)
    options = reports.Options(against, accuracy, budget_s, with_published, lang, tuple(names))
    page = made(stored, options)
    if folder is None:
        return page, []
    from bblab.reports.kit import draw_print

    for_print, print_lang = page, lang
    if not draw_print.can_write(lang):
        print_lang = "en"
        notices = list(lab.notices)
        in_english = gather(lab, select=select, since=since, names=names, with_published=with_published)
        for_print = made(replace(in_english, fields=stored.fields), replace(options, lang=print_lang))
        lab.notices[:] = notices
        lab.notices.append(
            "no font with Chinese characters was found: the figures for print are in English, the page is in Chinese; "
            "install one (Debian: fonts-noto-cjk) and run again"
        )
    written, notices = write_all(page, folder, for_print, lang=lang, print_lang=print_lang)
    lab.notices += notices
    return page, written
