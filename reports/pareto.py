"""Accuracy against latency, MACs, parameters or activations: who is on the front, how surely, and what to measure next.

Nets share a chart only where device, runtime and its version, precision, threads, input and pace are equal, and the
accuracy is of the same metric, data and split; they share a front only where the accuracy also came about in the same
way (recipe and epochs, or publication). The front is of deploy forms: the train form is not what a device runs.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError, near
from bblab.reports import Cell, Options, Page, Table, notebook_report
from bblab.reports.kit import front, older, tables
from bblab.reports.kit.charts import Advice, Axis, Front, Gap, Level, Mark, ParetoChart
from bblab.reports.kit.stored import AccuracyRow, ProfileRow, Scale, Setting, SourceKind, Stored, TimingRow
from bblab.reports.kit.words import Words

if TYPE_CHECKING:
    import numpy as np

AXES = ("latency", "macs", "params", "activations")
DRAWS = 2000
MOST_MARKS = 2000  # drawn in one chart; the rest, far from the front, is thinned away
KINDS: tuple[SourceKind, ...] = ("own", "recorded", "published")


@notebook_report("pareto")
def pareto(stored: Stored, options: Options) -> Page:
    """The charts of every setting and scale; those of the asked axis and scale come first and are drawn for print.

    Raises BblabError for an axis or a metric that is not there, naming the near ones.
    """
    if options.against not in AXES:
        raise BblabError(f"--against {options.against!r}", hint=near(options.against, AXES))
    say = Words(options.lang)
    accuracies = _accuracies(stored.accuracies, len(stored.timings))
    scales = sorted({a.scale for a in accuracies})
    chosen = _chosen_scales(accuracies, stored, options)
    costs = {axis: _costs(axis, stored, say) for axis in AXES}
    charts = []
    for axis in sorted(AXES, key=lambda a: a != options.against):
        for place in costs[axis]:
            for scale in sorted(scales, key=lambda s: s not in chosen):
                is_main = axis == options.against and scale in chosen
                made = _chart(place, scale, [a for a in accuracies if a.scale == scale], stored, options, say, is_main)
                if made is not None:
                    charts.append(made)
    charts = _unique_keys(charts)
    sources = _sources(charts, accuracies, stored, chosen, options)
    main = [c for c in charts if c.is_main]
    apart = _apart(stored, accuracies, list(costs[options.against]), main, chosen, options, say)
    sections = [(say("apart_title"), apart)] if apart.cells else []
    if options.against == "latency":
        sections += older.sections(stored, say)
    if options.with_published and (trackers := _trackers(stored, chosen, sources, say)).cells:
        sections.append((say("trackers_title"), trackers))
    notes = _notes(main, chosen, options, stored, say)
    heading = charts[0].title if charts else say("pareto_title", scale=say("accuracy"), x=options.against)
    return Page(
        "pareto",
        _table(main, sources, say),
        tuple(notes),
        tuple(charts),
        tuple(sections),
        tuple((mark, text) for text, mark in sources.items()),
        _details(stored, charts),
        heading,
        stored.about,
    )


# Accuracies: several seeds of one recipe are one accuracy ---------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Accuracy:
    """What is known of one net on one scale by one protocol, and draws of it."""

    spec_id: str
    name: str
    scale: Scale
    kind: SourceKind
    protocol: str
    value: float
    interval: front.Interval | None
    draws: np.ndarray
    rows: tuple[AccuracyRow, ...]


def _accuracies(rows: Sequence[AccuracyRow], size: int) -> list[Accuracy]:
    groups: dict[tuple[Any, ...], list[AccuracyRow]] = {}
    for row in rows:
        if math.isfinite(row.value):
            groups.setdefault((row.spec_id, row.scale, row.kind, row.protocol, row.name), []).append(row)
    draws = _how_many(max(size, len(groups)))
    found = []
    for (spec_id, scale, kind, protocol, name), members in groups.items():
        newest = _newest_of_each_seed(members)
        values = [r.value for r in newest]
        each = [
            front.normal_draws(r.value, r.low, r.high, draws, _seed(spec_id, scale.title, r.seed, r.run_id))
            for r in newest
        ]
        drawn = front.pooled_draws(each, values, _seed(spec_id, protocol))
        if scale.is_bounded:  # no seed's luck passes 100 %
            drawn = drawn.clip(min(0.0, *values), max(1.0, *values))
        value = statistics.fmean(values)
        found.append(
            Accuracy(spec_id, name, scale, kind, protocol, value, front.interval_of(value, drawn), drawn, tuple(newest))
        )
    return found


def _newest_of_each_seed(rows: Sequence[AccuracyRow]) -> list[AccuracyRow]:
    """One row a seed: the same seed again is the same run again, not another sample. Rows without one all count."""
    newest: dict[object, AccuracyRow] = {}
    for row in sorted(rows, key=lambda r: (r.created_utc, r.run_id or 0)):
        newest[("seed", row.seed) if row.seed is not None else ("run", row.run_id, row.citation)] = row
    return list(newest.values())


def _chosen_scales(accuracies: Sequence[Accuracy], stored: Stored, options: Options) -> list[Scale]:
    """The scales that are asked for; by default those of the nearest source that is there."""
    if options.accuracy:
        wanted = options.accuracy.replace("-", "").lower()
        every = {a.scale for a in accuracies}
        if options.with_published:
            every |= {p.scale for p in stored.published}
        found = sorted(s for s in every if s.metric.replace("-", "").lower() == wanted)
        if not found and every:
            known = sorted({s.metric for s in every})
            raise BblabError(f"no accuracy {options.accuracy!r} is stored", hint=near(options.accuracy, known))
    else:
        found = []
        for kind in KINDS:
            found = sorted({a.scale for a in accuracies if a.kind == kind})
            if found:
                break
    has_own = any(a.kind != "published" and a.scale in found for a in accuracies)
    if options.with_published or not has_own:
        return found
    return [s for s in found if any(a.scale == s and a.kind != "published" for a in accuracies)]


# Costs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Cost:
    """What one net in one form costs in one place, and draws of it (None: exact)."""

    spec_id: str
    name: str
    form: str
    value: float
    interval: front.Interval | None
    draws: np.ndarray | None
    is_reference: bool = False
    provenance: tuple[tuple[str, str], ...] = ()
    run_ids: tuple[int, ...] = ()
    is_exact: bool = False  # a measured time without samples or an interval


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where costs may be compared: a setting, or an input size for what is counted."""

    axis: Axis
    axis_key: str
    title: str
    facets: tuple[tuple[str, str], ...]
    costs: tuple[Cost, ...]
    caption: str
    setting: Setting | None = None
    reference: str = ""
    strangers: tuple[tuple[str, str, bool], ...] = ()  # (spec_id, name, beside the reference, but in one process)

    @property
    def slug(self) -> tuple[str, ...]:
        s = self.setting
        if s is None:
            return tuple(value for _, value in self.facets)
        pace: tuple[str, ...] = () if s.state == "warm" else (s.state,)
        pace += () if s.pace_fps is None else (f"{s.pace_fps:g}fps",)
        threads = () if s.threads == 1 else (f"{s.threads}t",)
        return (s.device, s.runtime, *threads, str(s.size_px), *pace)


def _costs(axis: str, stored: Stored, say: Words) -> list[Place]:
    if axis == "latency":
        by_setting: dict[Setting, list[TimingRow]] = {}
        for row in stored.timings:
            by_setting.setdefault(row.setting, []).append(row)
        ordered = sorted(by_setting, key=lambda s: (-len(by_setting[s]), s.title))
        return [_latency_place(setting, by_setting[setting], say) for setting in ordered]
    return _counted_places(axis, stored.profiles, say)


def _latency_place(setting: Setting, rows: Sequence[TimingRow], say: Words) -> Place:
    """Milliseconds are the ratio to the most used reference times that reference's own time.

    Ratios of one reference can be compared over days; milliseconds of different days cannot.
    """
    import numpy as np

    base = Counter(r.reference for r in rows).most_common(1)[0][0]
    ours = [r for r in rows if r.reference == base and (r.is_reference or r.ratio_low is not None)]
    nets: dict[tuple[str, str], list[TimingRow]] = {}
    for row in ours:
        nets.setdefault((row.spec_id, row.form), []).append(row)
    here = {spec_id for spec_id, _ in nets}
    strangers = {
        (r.spec_id, r.name, r.reference == base) for r in rows if r.spec_id not in here and not r.is_reference
    }  # fmt: skip
    unit_s = statistics.median({r.session: r.reference_s for r in ours}.values())
    draws = _how_many(len(nets))
    costs = []
    for (spec_id, form), members in nets.items():
        measured = [r for r in members if not r.is_reference]
        if measured:
            drawn = np.exp(_log_draws(measured, draws, setting)) * unit_s
            value = math.exp(statistics.fmean(math.log(r.ratio) for r in measured)) * unit_s
        else:  # the reference itself: 1 by definition
            drawn, value = np.full(draws, unit_s), unit_s
        shown = measured or members
        # Of one session the interval is the stored one; only several need their draws.
        ends = (measured[0].ratio_low, measured[0].ratio_high) if len(measured) == 1 else (None, None)
        interval = front.interval_of(value, drawn)
        if ends[0] is not None and ends[1] is not None:
            interval = front.Interval(ends[0] * unit_s, ends[1] * unit_s) if ends[0] < ends[1] else None
        costs.append(
            Cost(
                spec_id, shown[-1].name, form, value, interval, drawn, not measured, _timing_provenance(shown, say),
                tuple(r.run_id for r in shown),
                bool(measured) and not any(r.logs or tables.has_interval(r.ratio_low, r.ratio_high) for r in measured),
            )
        )  # fmt: skip
    axis = Axis("latency", say("latency_wall" if setting.has_wall_times else "latency_cpu"), "ms", 1e3, True)
    caption = say(
        "caption_latency", reference=f"{base[0]} ({base[1]})", reference_ms=tables.significant(unit_s * 1e3),
        sessions=say.many("session", len({r.session for r in ours})),
    )  # fmt: skip
    facets = (
        ("device", setting.device),
        ("runtime", f"{setting.runtime} {setting.runtime_version}"),
        ("threads", str(setting.threads)),
        ("precision", setting.precision),
        ("input", "×".join(map(str, setting.input))),
        ("state", say.t(setting.state)),
        ("pace", "" if setting.pace_fps is None else f"{setting.pace_fps:g} fps"),
        ("machine", setting.machine),
    )
    return Place(
        axis, "latency", say.setting(setting), facets, tuple(costs), caption, setting, base[0], tuple(sorted(strangers))
    )


def _log_draws(rows: Sequence[TimingRow], draws: int, setting: Setting) -> np.ndarray:
    """Draws of the mean log ratio over a net's sessions; from the intervals where no samples are stored."""
    if all(r.logs for r in rows):
        seeds = [_seed(r.session, setting.state) for r in rows]
        return front.session_draws([r.logs for r in rows], seeds, draws, _seed(setting.title, len(rows)))
    logs = [(math.log(r.ratio), math.log(r.ratio_low or r.ratio), math.log(r.ratio_high or r.ratio)) for r in rows]
    each = [front.normal_draws(*ends, draws, _seed(r.session, r.spec_id)) for ends, r in zip(logs, rows, strict=True)]
    return front.pooled_draws(each, [value for value, *_ in logs], _seed(rows[0].spec_id, setting.title))


def _timing_provenance(rows: Sequence[TimingRow], say: Words) -> tuple[tuple[str, str], ...]:
    last = rows[-1]
    told = [
        (say.t("latency runs"), ", ".join(str(r.run_id) for r in rows[-8:])),
        (say.t("measured"), last.created_utc[:16].replace("T", " ") + " UTC"),
        (say.t("conditions"), conditions_words(last, say)),
    ]
    if not last.is_steady and last.doubts:
        told.append((say.t("not steady"), "; ".join(last.doubts)))
    return tuple(told)


def conditions_words(row: TimingRow, say: Words) -> str:
    """The machine's state around a session, as far as the device tells it."""
    before, after = row.before, row.after
    told = []
    for key, title, unit in (("load_average", "load", ""), ("governor", "governor", ""), ("battery", "battery", "")):
        a, b = before.get(key), after.get(key)
        first = a[0] if isinstance(a, list) and a else a
        last = b[0] if isinstance(b, list) and b else b
        if isinstance(first, (int, float, str)) and isinstance(last, (int, float, str)):
            told.append(f"{say.t(title)} {first}{unit}" + (f" → {last}{unit}" if first != last else ""))
    thermal = [max(v.values()) for v in (before.get("thermal_c"), after.get("thermal_c")) if isinstance(v, dict) and v]
    if len(thermal) == 2:
        first, last = (f"{heat:.0f}" for heat in thermal)
        told.append(say.t("hottest zone {first} → {last} °C", first=first, last=last))
    told.append(say.t("machine busy" if row.is_busy else "machine free"))
    told.append(say.t("steady" if row.is_steady else "not steady"))
    return say.join(*told)


COUNTED = {"macs": ("M", 1e-6), "params": ("M", 1e-6), "activations": ("M", 1e-6)}


def _counted_places(axis: str, profiles: Mapping[str, ProfileRow], say: Words) -> list[Place]:
    groups: dict[str, list[Cost]] = {}
    for spec_id, profile in profiles.items():
        size, value = counted(axis, profile.result)
        if value is not None:
            run = say.t("computed for this report")
            if profile.run_id is not None:
                run = say.t("profile run {run}", run=profile.run_id)
            told = ((say.t("counted"), run),)
            groups.setdefault(size, []).append(
                Cost(spec_id, profile.name, "deploy", float(value), None, None, False, told)
            )
    unit, factor = COUNTED[axis]
    made = []
    for size, costs in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        shown = size or say.t("any size")
        caption = say("caption_count", size=shown)
        facets = (("input", size),) if size else ()
        title = shown
        made.append(Place(Axis(axis, say(axis), unit, factor, True), axis, title, facets, tuple(costs), caption))
    return made


def counted(axis: str, profile: Mapping[str, Any]) -> tuple[str, float | None]:
    """(input size, count) of the backbone's deploy form: MACs at search size where the net has one."""
    deploy = profile.get("forms", {}).get("deploy", {})
    own = "×".join(map(str, profile.get("input") or []))
    if axis == "params":
        return "", deploy.get("params_backbone")
    if axis == "activations":
        return own, deploy.get("activations_backbone")
    tracker = profile.get("tracker")
    if tracker:
        side = tracker["search"]["size"]
        return f"{(profile.get('input') or [3])[0]}×{side}×{side}", tracker["search"].get("macs_backbone")
    return own, deploy.get("macs_backbone")


# One chart ----------------------------------------------------------------------------------------------------------


def _chart(
    place: Place,
    scale: Scale,
    accuracies: Sequence[Accuracy],
    stored: Stored,
    options: Options,
    say: Words,
    is_main: bool,
) -> ParetoChart | None:
    import numpy as np

    if not options.with_published and any(a.kind != "published" for a in accuracies):
        accuracies = [a for a in accuracies if a.kind != "published"]
    by_spec: dict[str, list[Accuracy]] = {}
    for accuracy in accuracies:
        by_spec.setdefault(accuracy.spec_id, []).append(accuracy)
    pairs = [(c, a) for c in place.costs for a in by_spec.get(c.spec_id, ()) if math.isfinite(c.value)]
    if not pairs:
        return None
    forms = {c.form for c, _ in pairs}
    competing = "deploy" if "deploy" in forms else min(forms)
    names = _unique_names([c for c, _ in pairs])
    marks: list[Mark | None] = [None] * len(pairs)
    fronts: list[Front] = []
    ties: list[tuple[str, str]] = []
    best: Advice | None = None
    still_open = 0.0
    draws = _how_many(len(pairs))
    protocols = sorted({(KINDS.index(a.kind), a.protocol) for _, a in pairs})
    for kind, protocol in protocols:
        members = [i for i, (_, a) in enumerate(pairs) if (KINDS.index(a.kind), a.protocol) == (kind, protocol)]
        inside = [i for i in members if pairs[i][0].form == competing]
        x, y = ([pairs[i][0].value for i in inside], [pairs[i][1].value for i in inside])
        better = -1.0 if scale.is_loss else 1.0
        is_on = front.on_front(x, [better * v for v in y])
        xs = [pairs[i][0].interval or front.Interval(v, v) for i, v in zip(inside, x, strict=True)]
        ys = [pairs[i][1].interval or front.Interval(v, v) for i, v in zip(inside, y, strict=True)]
        level = front.level_with_front(xs, ys, is_on)
        if inside:
            drawn_x = np.stack([_draws_of(pairs[i][0].draws, pairs[i][0].value, draws) for i in inside], axis=1)
            drawn_y = np.stack([_draws_of(pairs[i][1].draws, pairs[i][1].value, draws) for i in inside], axis=1)
            belongs = front.membership(drawn_x, better * drawn_y)
            share = belongs.mean(0)
            still_open += float((share * (1 - share)).sum())
            if KINDS[kind] != "published" or len(protocols) == 1:
                advice = _advice(belongs, drawn_x, drawn_y, [pairs[i] for i in inside], place, names, stored)
                if advice is not None and (best is None or advice.settled > best.settled):
                    best = advice
            corners = tuple((a, better * b) for a, b in front.steps(x, [better * v for v in y]))
            if corners:
                fronts.append(Front(protocol, KINDS[kind], corners))
        near_front = [k for k in range(len(inside)) if is_on[k] or level[k]]
        ties += [
            (names[pairs[inside[i]][0].spec_id], names[pairs[inside[j]][0].spec_id])
            for i, j in front.tied(xs, ys, near_front[:200])
        ]
        at = {i: k for k, i in enumerate(inside)}
        for i in members:
            k = at.get(i)
            cost, accuracy = pairs[i]
            marks[i] = _mark(
                cost, accuracy, names[cost.spec_id], stored, place, say,
                k is not None and is_on[k], k is not None and level[k], 0.0 if k is None else float(share[k]),
            )  # fmt: skip
    made = [m for m in marks if m is not None]
    kept = thinned(made, MOST_MARKS)
    percent = scale.is_share
    y_axis = Axis(
        scale.metric, scale.title, "%" if percent else "", 100.0 if percent else 1.0,
        least=0.0 if scale.is_bounded else None, most=1.0 if scale.is_bounded else None,
    )  # fmt: skip
    title = say("pareto_title", scale=scale.title, x=place.axis.title)
    caption = say(
        "pareto_caption", scale=scale.title, x=place.axis.title, nets=say.many("net", len({m.spec_id for m in made})),
        place=place.title,
    )  # fmt: skip
    caption += place.caption
    if any(m.x_low is not None or m.y_low is not None for m in made):
        caption += say("caption_front", draws=draws)
    if ties:
        caption += say("caption_ties", ties="; ".join(f"{a} = {b}" for a, b in ties[:6]) + ("; …" * (len(ties) > 6)))
    if len(kept) < len(made):
        caption += " " + say("thinned", hidden=len(made) - len(kept), all=len(made))
    levels = [Level(p.name, p.value, p.source) for p in stored.published if options.with_published and p.scale == scale]
    lines = []
    reference = next((c for c in place.costs if c.is_reference), None)
    if reference is not None and reference.spec_id not in by_spec:
        lines.append(Level(f"{reference.name} ({say('reference')})", reference.value))
    key = "-".join(_slug(p) for p in (place.axis_key, *place.slug, scale.metric, scale.data, scale.split) if p)
    return ParetoChart(
        key, title, place.axis_key,
        place.facets, scale.title, place.axis, y_axis, tuple(kept), tuple(fronts), tuple(ties), best, caption, is_main,
        options.budget_s if place.axis_key == "latency" else None, tuple(levels), tuple(lines), len(made) - len(kept),
        scale.is_loss, _gaps(place, scale, by_spec, stored, competing), still_open, place.reference,
        _taken_as_exact(pairs, place, names),
    )  # fmt: skip


def _gaps(
    place: Place, scale: Scale, accurate: Mapping[str, Sequence[Accuracy]], stored: Stored, form: str
) -> tuple[Gap, ...]:
    """Who would be on the chart but for one number: those without a cost, the most accurate first; then those without
    an accuracy, the cheapest first. Published figures of nets that were never measured are not candidates.
    """
    there = {c.spec_id: c for c in place.costs if c.form == form or c.is_reference}
    sign = -1.0 if scale.is_loss else 1.0
    candidates = {
        spec_id: max(sign * a.value for a in found if a.kind != "published")
        for spec_id, found in accurate.items()
        if any(a.kind != "published" for a in found)
    }
    names = {spec_id: found[0].name for spec_id, found in accurate.items()}
    no_cost = sorted((i for i in candidates if i not in there), key=lambda i: (-candidates[i], names[i]))
    no_accuracy = sorted(
        (c for i, c in there.items() if i not in accurate and not c.is_reference), key=lambda c: (c.value, c.name)
    )
    if place.axis_key == "latency":
        commands = [_bench_command(names[i], place.setting) for i in no_cost]
    else:
        commands = [f"bblab profile {names[i]}" for i in no_cost]
    unfused, strangers = {c.spec_id for c in place.costs}, {spec_id for spec_id, *_ in place.strangers}

    def instead(spec_id: str) -> str:
        return "unfused" if spec_id in unfused else "beside" if spec_id in strangers else ""

    made_by = {t.run_id: t.options for t in stored.trainings}
    runs = (r.run_id for found in accurate.values() for a in found if a.kind == "own" for r in a.rows)
    options = Counter(made_by[i] for i in runs if i is not None and i in made_by)
    return (
        *(Gap(names[i], "x", command, instead(i)) for i, command in zip(no_cost, commands, strict=True)),
        *(Gap(c.name, "y", _accuracy_command(c.name, scale, options)) for c in no_accuracy),
    )


def _accuracy_command(name: str, scale: Scale, options: Counter[str]) -> str:
    """What gives a net the accuracy that the others have, as most of them came by it."""
    if options:
        return f"bblab pretrain {name} {options.most_common(1)[0][0]}".rstrip()
    if not scale.is_share:
        return f"bblab record {name} --metric {scale.metric}=VALUE"
    return f"bblab pretrain {name}" + " --data DIR" * (scale.data != "digits")


def _taken_as_exact(pairs: Sequence[tuple[Cost, Accuracy]], place: Place, names: Mapping[str, str]) -> tuple[str, ...]:
    """Who has a number without any known spread: an accuracy without an interval, a latency without one or samples."""
    found = {
        names[cost.spec_id]
        for cost, accuracy in pairs
        if accuracy.interval is None or (place.axis_key == "latency" and cost.is_exact)
    }
    return tuple(sorted(found))


def _unique_keys(charts: Sequence[ParetoChart]) -> list[ParetoChart]:
    """Keys name files: charts that differ in the machine or a version only get a number."""
    seen: Counter[str] = Counter()
    made = []
    for chart in charts:
        seen[chart.key] += 1
        made.append(chart if seen[chart.key] == 1 else replace(chart, key=f"{chart.key}-{seen[chart.key]}"))
    return made


def _mark(
    cost: Cost,
    accuracy: Accuracy,
    name: str,
    stored: Stored,
    place: Place,
    say: Words,
    is_on: bool,
    is_level: bool,
    probability: float,
) -> Mark:
    profile = stored.profiles.get(cost.spec_id)
    params = counted("params", profile.result)[1] if profile else None
    x, y = cost.interval, accuracy.interval
    told = [(say.t("spec"), f"{cost.name} ({cost.spec_id})"), (say.t("form"), say.t(cost.form))]
    if place.setting is not None:
        told.append((say.t("setting"), place.title))
    source = _accuracy_words(accuracy, say)
    told += [*cost.provenance, (say.t("accuracy from"), source)]
    return Mark(
        f"{cost.spec_id} {cost.form} {accuracy.kind} {accuracy.protocol}", cost.spec_id, name, cost.form,
        stored.families.get(cost.spec_id, "other"), cost.value, x.low if x else None, x.high if x else None,
        accuracy.value, y.low if y else None, y.high if y else None, accuracy.kind, accuracy.protocol,
        is_on, is_level, probability, params, cost.is_reference, tuple(told), source, cost.is_exact,
    )  # fmt: skip


def _accuracy_words(accuracy: Accuracy, say: Words) -> str:
    last = accuracy.rows[-1]
    if accuracy.kind == "published":
        return say.t("published: {source}", source=_citation(last))
    ids = ", ".join(str(r.run_id) for r in accuracy.rows)
    runs = "run" if len(accuracy.rows) == 1 else "runs"
    if accuracy.kind == "recorded":
        return say.t(f"{runs} {{ids}}: recorded", ids=ids) + (f" ({last.remark})" if last.remark else "")
    seeds = [str(r.seed) for r in accuracy.rows if r.seed is not None]
    told = say.t(f"{runs} {{ids}}: {{protocol}}", ids=ids, protocol=accuracy.protocol)
    if seeds:
        told += say.t(", seed {seeds}" if len(seeds) == 1 else ", seeds {seeds}", seeds=", ".join(seeds))
    return told


def _draws_of(draws: np.ndarray | None, value: float, count: int) -> np.ndarray:
    import numpy as np

    if draws is None:
        return np.full(count, value)
    return draws[:count] if len(draws) >= count else np.resize(draws, count)


def _advice(
    belongs: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    pairs: Sequence[tuple[Cost, Accuracy]],
    place: Place,
    names: Mapping[str, str],
    stored: Stored,
) -> Advice | None:
    """The measurement, of a latency or an accuracy, that would settle most."""
    share = belongs.mean(0)
    still_open = float((share * (1 - share)).sum())
    if still_open < 0.02:
        return None
    best: tuple[float, int, str] | None = None
    for what, values in (("x", x), ("y", y)):
        spread = [i for i in range(values.shape[1]) if values[:, i].min() < values[:, i].max()]
        if what == "y":
            spread = [i for i in spread if pairs[i][1].kind != "published"]  # cannot be measured again
        # Who is never near the front settles nothing: the hundred nearest are enough.
        spread = sorted(spread, key=lambda i: -share[i])[:100]
        if not spread:
            continue
        worth = front.worth_measuring(belongs, values[:, spread])
        at = int(worth.argmax())
        if best is None or worth[at] > best[0]:
            best = (float(worth[at]), spread[at], what)
    if best is None or best[0] < 0.01:
        return None
    worth_most, i, what = best
    cost, accuracy = pairs[i]
    name = names[cost.spec_id]
    if what == "y":
        used = [r.seed for r in accuracy.rows if r.seed is not None]
        newest = max((r.run_id for r in accuracy.rows if r.run_id is not None), default=None)
        how = next((t.options for t in stored.trainings if t.run_id == newest), "")
        command = " ".join(f"bblab pretrain {cost.name} {how} --seed {max(used, default=0) + 1}".split())
        if accuracy.kind == "recorded":
            command = f"train {cost.name} once more, then bblab record {cost.name} --log LOG"
    else:
        command = _bench_command(cost.name, place.setting)
    return Advice(name, what, worth_most, still_open, command)


def _bench_command(name: str, setting: Setting | None) -> str:
    if setting is None:
        return f"bblab profile {name}"
    words = ["bblab bench", name, "--device", setting.device, "--runtime", setting.runtime]
    words += ["--size", str(setting.size_px)]
    if setting.threads != 1:
        words += ["--threads", str(setting.threads)]
    if setting.pace_fps is not None:
        words += ["--fps", f"{setting.pace_fps:g}"]
    return " ".join(words)


def thinned(marks: Sequence[Mark], most: int) -> list[Mark]:
    """At most about `most` marks: the front, all that may be on it or is level with it, and an even share of the rest.

    The rest is taken by rank of cost, so that the cloud keeps its outline along the axis.
    """
    if len(marks) <= most:
        return list(marks)
    kept = {i for i, m in enumerate(marks) if m.is_on_front or m.is_reference}
    likely = sorted((i for i, m in enumerate(marks) if m.is_level or m.probability > 0.005),
                    key=lambda i: -marks[i].probability)  # fmt: skip
    kept |= set(likely[: max(0, most // 2)])
    rest = sorted((i for i in range(len(marks)) if i not in kept), key=lambda i: marks[i].x)
    room = max(0, most - len(kept))
    kept |= {rest[k * len(rest) // room] for k in range(room)} if room and rest else set()
    return [m for i, m in enumerate(marks) if i in kept]


def _unique_names(costs: Sequence[Cost]) -> dict[str, str]:
    """A label for each spec; two nets of one name (a file that was edited) get their id."""
    names: dict[str, set[str]] = {}
    for cost in costs:
        names.setdefault(cost.name, set()).add(cost.spec_id)
    return {c.spec_id: c.name if len(names[c.name]) == 1 else f"{c.name} {c.spec_id[:6]}" for c in costs}


# Tables and words ---------------------------------------------------------------------------------------------------


def _sources(
    charts: Sequence[ParetoChart],
    accuracies: Sequence[Accuracy],
    stored: Stored,
    scales: Sequence[Scale],
    options: Options,
) -> dict[str, str]:
    """Footnote marks of every source of a published number in the tables."""
    keys = {m.key for c in charts if c.is_main for m in c.marks}
    texts: list[str] = []
    for a in accuracies:
        if a.kind == "published" and any(f"{a.spec_id} {form} {a.kind} {a.protocol}" in keys for form in _FORMS):
            texts.append(_citation(a.rows[-1]))
    if options.with_published:
        for p in stored.published:
            if p.scale in scales:
                costs = p.cost_source if p.params or p.macs else ""
                texts += [t for t in (p.source, costs, p.speed_source if p.speeds else "") if t]
    return {text: tables.letter(i) for i, text in enumerate(dict.fromkeys(texts))}


_FORMS = ("deploy", "train")


def _citation(row: AccuracyRow) -> str:
    return row.citation + (f" ({row.remark})" if row.remark else "")


COLUMNS = tables.columns_of(
    ("chart", "chart", "", "right"),
    ("net", "name", "", "left"),
    ("form", "form", "", "left"),
    ("accuracy", "accuracy", "95 %", "right"),
    ("", "accuracy_low", "", "right"),
    ("", "accuracy_high", "", "right"),
    ("cost", "cost", "95 %", "right"),
    ("", "cost_low", "", "right"),
    ("", "cost_high", "", "right"),
    ("params", "params_backbone", "M", "right"),
    ("P(front)", "front_probability", "", "right"),
    ("front", "on_front", "", "left"),
    ("from", "accuracy_from", "", "left"),
    ("", "spec_id", "", "left"),
    ("", "scale", "", "left"),
    ("", "axis", "", "left"),
    ("", "setting", "", "left"),
    ("", "provenance", "", "left"),
)


def _table(charts: Sequence[ParetoChart], sources: Mapping[str, str], say: Words) -> Table:
    """Every point of the main charts: the front first, then by cost."""
    from dataclasses import replace as with_

    cells, values = [], []
    one_cost = charts[0].x if charts and len({c.x.unit for c in charts}) == 1 else None
    one_scale = charts[0].y if charts and len({c.y.unit for c in charts}) == 1 else None
    for number, chart in enumerate(charts, 1):
        for m in sorted(chart.marks, key=lambda m: (not m.is_on_front, m.x)):
            mark = next((s for text, s in sources.items() if m.source == say.t("published: {source}", source=text)), "")
            accuracy = tables.with_interval(m.y, m.y_low, m.y_high, chart.y.factor)
            if m.kind == "published":
                accuracy = tables.marked(f"{round(m.y * chart.y.factor, 6):g}", mark)  # as printed by its source
            place = "✗" if not m.is_on_front else "●"
            place = "=" if m.is_level else place
            cells.append(
                (
                    str(number), m.name, say.t(m.form), accuracy, "", "",
                    tables.with_interval(m.x, m.x_low, m.x_high, chart.x.factor), "", "",
                    "–" if m.params is None else tables.significant(m.params / 1e6),
                    "–"
                    if (m.form != "deploy" and not m.is_on_front) or not chart.has_intervals
                    else f"{m.probability:.2f}",
                    {"●": say.t("front"), "=": say.t("level with it"), "✗": ""}[place], say.t(m.kind),
                    "", "", "", "", "",
                )
            )  # fmt: skip
            provenance = "; ".join(f"{k}: {v}" for k, v in m.provenance)
            row: tuple[Cell, ...] = (
                number, m.name, m.form, m.y, m.y_low, m.y_high, m.x, m.x_low, m.x_high, m.params, m.probability,
                int(m.is_on_front), m.kind, m.spec_id, chart.scale, chart.axis,
                ", ".join(f"{k} {v}" for k, v in chart.place if v), provenance,
            )  # fmt: skip
            values.append(row)
    columns = list(say.columns(COLUMNS))
    if len(charts) == 1:
        columns[0] = with_(columns[0], title="")
    if one_scale is not None:
        columns[3] = with_(columns[3], unit=f"{one_scale.unit}, 95 %".strip(", "))
    if one_cost is not None:
        columns[6] = with_(
            columns[6], title="MACs" if one_cost.key == "macs" else say.t(one_cost.key), unit=f"{one_cost.unit}, 95 %"
        )
        if one_cost.key != "latency":
            columns[6] = with_(columns[6], unit=one_cost.unit)
    return Table(tuple(columns), tuple(cells), tuple(values))


def _apart(
    stored: Stored,
    accuracies: Sequence[Accuracy],
    places: Sequence[Place],
    charts: Sequence[ParetoChart],
    scales: Sequence[Scale],
    options: Options,
    say: Words,
) -> Table:
    """Who has one of the two only, and the command for the other."""
    drawn = {m.spec_id for c in charts for m in c.marks}
    on_scale = {a.spec_id: a for a in accuracies if a.scale in scales and a.kind == "published"}
    on_scale |= {a.spec_id: a for a in accuracies if a.scale in scales and a.kind != "published"}
    rows: dict[str, tuple[str, str, str]] = {}
    for place in places:
        for cost in place.costs:
            if cost.spec_id in drawn or cost.spec_id in rows:
                continue
            what = tables.with_interval(cost.value, *_ends(cost.interval), place.axis.factor)
            missing = _no_accuracy(cost.spec_id, accuracies, scales, stored, say)
            rows[cost.spec_id] = (cost.name, f"{what} {place.axis.unit}".strip(), missing)
        for spec_id, name, is_alone in place.strangers:
            if spec_id not in drawn and spec_id not in rows:
                command = _bench_command(name, place.setting)
                known = say.t("timed in one process") if is_alone else say("apart_stranger", reference=place.reference)
                missing = (
                    say.t("no interval: {command}", command=command) if is_alone
                    else say("apart_reference", command=command)
                )  # fmt: skip
                rows[spec_id] = (name, known, missing)
    for spec_id, accuracy in on_scale.items():
        if spec_id in drawn or spec_id in rows:
            continue
        if accuracy.kind == "published" and not options.names:
            continue  # the zoo's figures are not candidates
        command = f"bblab {'bench' if options.against == 'latency' else 'profile'} {accuracy.name}"
        missing = say("apart_no_cost", what=say(f"{options.against}_word"), command=command)
        shown = tables.with_interval(accuracy.value, *_ends(accuracy.interval), 100.0 if accuracy.scale.is_share else 1)
        unit = " %" if accuracy.scale.is_share else ""
        rows[spec_id] = (accuracy.name, f"{shown}{unit} {accuracy.scale.title}", missing)
    for row in stored.accuracies:
        if not math.isfinite(row.value) and row.spec_id not in rows and row.spec_id not in drawn:
            known = say("run_n", run=row.run_id)
            rows[row.spec_id] = (row.name, known, say("apart_not_a_number", run=row.run_id))
    columns = say.columns(tables.columns_of(
        ("net", "name", "", "left"), ("what is known", "known", "", "left"), ("what is missing", "missing", "", "left")
    ))  # fmt: skip
    ordered = sorted(rows.values())
    return Table(columns, tuple(ordered), tuple(ordered))


def _no_accuracy(
    spec_id: str, accuracies: Sequence[Accuracy], scales: Sequence[Scale], stored: Stored, say: Words
) -> str:
    """Why a net that has a cost is on no chart, as it is stored."""
    own = [a for a in accuracies if a.spec_id == spec_id]
    if any(a.scale in scales for a in own):
        return say("apart_published")
    others = sorted({a.scale for a in own})
    if others:
        known = {a.scale for a in own if a.kind != "published"}
        options = (f"--accuracy {s.metric}" + " --with-published" * (s not in known) for s in others)
        metrics = " / ".join(dict.fromkeys(options))
        here = "; ".join(s.title for s in scales) or say("accuracy")
        return say("apart_other_scale", here=here, others="; ".join(s.title for s in others), command=metrics)
    broken = next((r for r in stored.accuracies if r.spec_id == spec_id and not math.isfinite(r.value)), None)
    if broken is not None:
        return say("apart_not_a_number", run=broken.run_id)
    trained = [t.run_id for t in stored.trainings if t.spec_id == spec_id and not t.is_from_log]
    return say("apart_unfinished", run=max(trained)) if trained else say("apart_no_accuracy")


def _trackers(stored: Stored, scales: Sequence[Scale], sources: Mapping[str, str], say: Words) -> Table:
    """Published trackers on the chosen scales; costs and speeds are the whole tracker's."""
    columns = tables.columns_of(
        ("tracker", "tracker", "", "left"), ("score", "metric", "", "left"), ("value", "value", "", "right"),
        ("params", "params", "M, whole tracker", "right"), ("MACs", "macs", "M, whole tracker", "right"),
        ("speed and its device", "speeds", "", "left"), ("", "source", "", "left"),
    )  # fmt: skip
    shown = [p for p in stored.published if p.scale in scales]
    cells, values = [], []
    for p in shown:
        mark, cost = sources.get(p.source, ""), sources.get(p.cost_source, "")
        params = "–" if p.params is None else tables.marked(tables.significant(p.params / 1e6), cost)
        macs = "–" if p.macs is None else tables.marked(tables.significant(p.macs / 1e6), cost)
        value = tables.marked(f"{p.value:g}", mark)
        speeds = tables.marked(p.speeds, sources.get(p.speed_source, "")) if p.speeds else "–"
        cells.append((p.name, p.scale.title, value, params, macs, speeds, ""))
        values.append((p.name, p.scale.title, p.value, p.params, p.macs, p.speeds, p.source))
    return Table(say.columns(columns), tuple(cells), tuple(values))


def _ends(interval: front.Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _notes(
    charts: Sequence[ParetoChart],
    scales: Sequence[Scale],
    options: Options,
    stored: Stored,
    say: Words,
) -> list[str]:
    notes = []
    for number, chart in enumerate(charts, 1):
        which = say.t("chart {number}: ", number=number) if len(charts) > 1 else ""
        unsure = sorted({m.name for m in chart.marks if m.y_low is None and m.kind != "published"})
        if unsure:
            text = "taken as exact, for no interval is known: accuracy of {names}"
            notes.append(which + say.t(text, names=_some(unsure, say)))
        if chart.axis == "latency" and (untold := sorted({m.name for m in chart.marks if m.is_x_exact})):
            text = "taken as exact, for no interval is known: latency of {names}"
            notes.append(which + say.t(text, names=_some(untold, say)))
        if any(m.kind == "published" for m in chart.marks):
            notes.append(which + say.t("published accuracies are as printed, without an interval"))
        if chart.levels:
            notes.append(which + say.t("lines are published trackers on their own devices: accuracy only"))
    if options.with_published and not any(p.scale in scales for p in stored.published):
        known = ", ".join(dict.fromkeys(p.scale.metric for p in stored.published))
        notes.append(say.t("published trackers are on other scales: --accuracy with one of {known}", known=known))
    if charts and all(m.kind == "published" for c in charts for m in c.marks):
        notes.append(
            say.t("no accuracy of your own is stored: these are published ones (bblab pretrain, bblab record)")
        )
    return notes


def _some(names: Sequence[str], say: Words, most: int = 8) -> str:
    return ", ".join(names[:most]) + (say.and_more(len(names) - most) if len(names) > most else "")


def _details(stored: Stored, charts: Sequence[ParetoChart]) -> dict[str, dict[str, Any]]:
    """What a click on a point opens: the spec's text, its figures and findings."""
    shown = {m.spec_id for c in charts for m in c.marks}
    made = {}
    for spec_id in sorted(shown):
        profile = stored.profiles.get(spec_id)
        result = profile.result if profile else {}
        made[spec_id] = {
            "spec": stored.spec_texts.get(spec_id, ""),
            "profile_run": profile.run_id if profile else None,
            "about": result.get("about", ""),
            "receptive_field": result.get("receptive_field"),
            "is_receptive_field_global": bool(result.get("is_receptive_field_global")),
            "rf_over_template": (result.get("tracker") or {}).get("rf_over_template"),
            "params": counted("params", result)[1] if result else None,
            "macs": counted("macs", result)[1] if result else None,
            "findings": [
                [f["severity"], f["rule"], f["where"], f["message"], f.get("waived_because") or ""]
                for f in result.get("findings", [])
            ],
        }
    return made


def _how_many(points: int) -> int:
    """Bootstrap draws: fewer for a crowd, whose picture needs no third digit."""
    return DRAWS if points <= 300 else 600 if points <= 2_000 else 200


def _seed(*parts: object) -> int:
    """The same samples give the same picture, today and next year."""
    return zlib.crc32("|".join(map(str, parts)).encode())


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split())
