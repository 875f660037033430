"""Nets timed beside each other: what `bench`, `duel`, `profile` and `bench --again` have in common.

entries (spec, form, input) -> candidates and a reference of each input size -> sessions -> stored rows
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError, RunError
from bblab.lab.benching import Budget
from bblab.ops import Form
from bblab.spec import ArchSpec
from bblab.store import NewRun, Run, Store

if TYPE_CHECKING:
    from bblab.lab import Bench, Lab, Progress
    from bblab.latency import Candidate, Outcome, Plan, Race, Timing, Verdict

Side = tuple[int, int]  # height, width


@dataclass(frozen=True, slots=True)
class Entry:
    """A net to be timed, in a form, at an input size; `label` is the usual one where empty."""

    spec: ArchSpec
    form: Form
    side: Side
    label: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """Who runs: candidates, the references at their sizes, and the spec behind each label."""

    candidates: tuple[Candidate, ...]
    references: tuple[Candidate, ...]
    specs: Mapping[str, ArchSpec]


def field(lab: Lab, entries: Sequence[Entry], base: ArchSpec) -> Field:
    """A candidate for each entry, under a label of its own, and the base net's deploy form at each of their sizes."""
    candidates: dict[str, Candidate] = {}
    specs: dict[str, ArchSpec] = {}
    references: dict[Side, Candidate] = {}
    for entry in entries:
        c = lab.candidate(entry.spec, entry.form, entry.side)
        label = entry.label or c.label
        taken = candidates.get(label)
        if taken is not None and taken.key != c.key:  # two files of one name, or one net at two sizes
            is_other = specs[label].spec_id != entry.spec.spec_id
            label = f"{entry.spec.name} {entry.spec.spec_id} {entry.form}" if is_other else f"{label} {entry.side[0]}px"
        candidates[label] = replace(c, label=label)
        specs[label] = entry.spec
        if entry.spec.spec_id == base.spec_id and entry.form == "deploy":
            references[entry.side] = candidates[label]
    sides = dict.fromkeys(entry.side for entry in entries)
    for side in sides:
        if side in references:
            continue
        c = lab.candidate(replace(base, head=None, input=(base.input[0], *side)), "deploy", side)
        c = replace(c, label=f"{c.label} {side[0]}px") if len(sides) > 1 else c
        references[side] = replace(c, label=f"{c.label} (reference)") if c.label in candidates else c
        specs[references[side].label] = base
    return Field(tuple(candidates.values()), tuple(references[side] for side in sides), specs)


def race(
    lab: Lab,
    races: Sequence[Race],
    specs: Mapping[str, ArchSpec],
    *,
    device: str,
    plan: Plan,
    clock: Budget,
    waits: bool = False,
    store: bool = True,
    on_progress: Progress | None = None,
) -> Bench:
    """Every session, stored when it ends. Raises BblabError for what is wrong before anything is measured."""
    from bblab.lab import Bench
    from bblab.latency import places, run_races, runtimes

    opened = lab.device(device, waits=waits)
    for each in races:
        runtimes.find(each.runtime).version()
        replace(plan, threads=each.threads)
    outcomes: list[Outcome] = []
    rows: list[Mapping[str, Any]] = []
    problems: list[BblabError] = []
    for outcome in run_races(races, device=opened, plan=plan, on_progress=on_progress, spent_s=clock.spent_s):
        outcomes.append(outcome)
        title = outcome.race.title
        if outcome.problem is not None:
            where = f"{title}: " if len(races) > 1 else ""
            problems.append(RunError(where + outcome.problem.message, hint=outcome.problem.hint))
        problems += [RunError(f"left out of {title}: {text}") for text in outcome.left_out]
        if outcome.not_reached:
            problems.append(
                RunError(
                    f"not reached in {plan.budget_s:g} s, {title}: {', '.join(outcome.not_reached)}",
                    hint="give a larger --budget; models that are converted once are remembered",
                )
            )
        if not outcome.timings:
            continue
        placed = places(outcome.timings)
        extras = {
            t.label: {**placed[t.label].to_json(), "form_doubt": lab.form_doubt(specs[t.label], t.form) or None}
            for t in outcome.timings
        }
        made: Sequence[Mapping[str, Any]] = [
            {**t.to_json(), **extras[t.label], "conditions": conditions_of(t)} for t in outcome.timings
        ]
        if store:
            try:
                made = keep(lab, outcome.timings, specs, extras)
            except RunError as error:
                problems.append(error)
        rows += made
    return Bench(tuple(outcomes), tuple(rows), tuple(problems))


def bench(
    lab: Lab,
    references: Sequence[str | ArchSpec],
    *,
    edits: Sequence[str] = (),
    device: str = "host",
    runtimes: Sequence[str] = ("ort",),
    threads: Sequence[int] = (1,),
    forms: Sequence[Form] = ("deploy",),
    size: str | int = "search",
    reference: str | ArchSpec | None = None,
    fps: float | None = None,
    plan: Plan | None = None,
    waits: bool = False,
    store: bool = True,
    on_progress: Progress | None = None,
) -> Bench:
    """Latency of each spec beside the reference, in one session a runtime and number of threads.

    `size` is "search", "template" or pixels; nets of several sizes run in the same rounds, each beside the reference
    of its own. With `fps` each net is also timed at that pace. A session goes on until the ranking has separated, as
    far as `plan` lets it. Raises BblabError for wrong names before anything is measured; what goes wrong later is in
    `Bench.problems`.
    """
    from bblab.latency import Plan, Race

    plan = replace(plan or Plan(max_processes=11), pace_fps=fps)
    clock = Budget(plan.budget_s)
    specs = list({s.spec_id + s.name: s for s in lab.every(references, edits)}.values())
    base = _base(lab, reference)
    entries = [Entry(spec, form, lab._bench_input(spec, size)[1:]) for spec in specs for form in forms]
    runners = field(lab, entries, base)
    races = [Race(runners.candidates, runners.references, name, count) for name in runtimes for count in threads]
    return race(
        lab, races, runners.specs, device=device, plan=plan, clock=clock, waits=waits, store=store,
        on_progress=on_progress,
    )  # fmt: skip


def duel(
    lab: Lab,
    a: str | ArchSpec,
    b: str | ArchSpec | None = None,
    *,
    edits: Sequence[str] = (),
    device: str = "host",
    runtimes: Sequence[str] = ("ort",),
    threads: Sequence[int] = (1,),
    forms: Sequence[Form] = ("deploy",),
    size: str | int = "search",
    reference: str | ArchSpec | None = None,
    fps: float | None = None,
    plan: Plan | None = None,
    waits: bool = False,
    store: bool = True,
    on_progress: Progress | None = None,
) -> tuple[list[Verdict], Bench]:
    """Two specs, or without `b` one and its edit, in turn until it is clear which is faster, or the budget ends.

    A verdict a session. A is the reference of B, so nothing else runs between them; the speedometer and A itself show
    a drift.
    """
    from bblab.latency import DUEL, Race, verdict

    plan = replace(plan or DUEL, pace_fps=fps)
    clock = Budget(plan.budget_s)
    if b is None and not edits:
        raise BblabError("a duel needs two nets", hint="name another spec, or an edit of this one: --set s8.0.kernel=5")
    one, two = (lab.every([a], ())[0], lab.every([a], edits)[0]) if b is None else lab.every([a, b], edits)
    third = None if reference is None else _base(lab, reference)
    shapes = {lab._bench_input(spec, size) for spec in (one, two)}
    if len(shapes) > 1:
        sides = " and ".join(f"{shape[2]} px" for shape in sorted(shapes))
        raise BblabError(f"the two have different sizes, {sides}", hint="give both the same with --size N")
    side = shapes.pop()[1:]
    specs: dict[str, ArchSpec] = {}
    races = []
    for form in forms:
        names = [f"{spec.name} {form}" for spec in (one, two)]
        if names[0] == names[1]:
            marks = ("A", "B") if b is not None else ("as it is", ", ".join(edits))
            names = [f"{name} ({mark})" for name, mark in zip(names, marks, strict=True)]
        pair = tuple(
            replace(lab.candidate(spec, form, side), label=name)
            for spec, name in zip((one, two), names, strict=True)
        )  # fmt: skip
        specs |= dict(zip(names, (one, two), strict=True))
        against = pair[:1]
        if third is not None:
            net = lab.candidate(replace(third, head=None, input=(third.input[0], *side)), "deploy", side)
            against = (replace(net, label=f"{net.label} (reference)"),)
            specs[against[0].label] = third
        races += [Race(pair, against, name, count) for name in runtimes for count in threads]
    done = race(
        lab, races, specs, device=device, plan=plan, clock=clock, waits=waits, store=store, on_progress=on_progress
    )
    verdicts = []
    for outcome in done.outcomes:
        found = {t.label: t for t in outcome.timings}
        first, second = (found.get(c.label) for c in outcome.race.candidates)
        if first is not None and second is not None:
            verdicts.append(verdict(first, second))
    return verdicts, done


def _base(lab: Lab, reference: str | ArchSpec | None) -> ArchSpec:
    from bblab.lab import REFERENCE

    if isinstance(reference, ArchSpec):
        return reference
    return lab._built_in(REFERENCE) if reference in (None, REFERENCE) else lab.spec(reference)


# Again ----------------------------------------------------------------------------------------------------------


def again(
    lab: Lab,
    *,
    device: str = "host",
    runtimes: Sequence[str] | None = None,
    plan: Plan | None = None,
    waits: bool = False,
    store: bool = True,
    on_progress: Progress | None = None,
) -> Bench:
    """The nets of this device's timings by an older protocol, measured by this one, in one session a runtime.

    What has been measured again already is left out. A net whose spec is another by now is listed in the problems.
    """
    from bblab.latency import Plan, Race

    plan = plan or Plan(max_processes=11)
    clock = Budget(plan.budget_s)
    rows = _old_rows(lab, device)
    entries: dict[tuple[str, int], dict[tuple[Any, ...], Entry]] = {}
    changed: dict[str, str] = {}
    for run in rows:
        i = run.inputs
        if runtimes is not None and i["runtime"] not in runtimes:
            continue
        try:
            spec = lab.spec(run.name)
        except BblabError as error:
            changed[run.name] = error.message.splitlines()[0]
            continue
        if spec.spec_id != run.spec_id:
            changed[run.name] = f"its spec has changed since run {run.id}"
            continue
        group = entries.setdefault((i["runtime"], i["threads"]), {})
        group[run.spec_id, i["form"], tuple(i["input"])] = Entry(spec, i["form"], (i["input"][1], i["input"][2]))
    specs: dict[str, ArchSpec] = {}
    races = []
    for (name, count), group in entries.items():
        runners = field(lab, list(group.values()), _base(lab, None))
        specs |= runners.specs
        races.append(Race(runners.candidates, runners.references, name, count))
    left = tuple(RunError(f"not measured again: {name}: {why}") for name, why in changed.items())
    if not races:
        raise left[0] if left else BblabError("no runtime of these has timings by an older protocol here")
    done = race(
        lab, races, specs, device=device, plan=plan, clock=clock, waits=waits, store=store, on_progress=on_progress
    )
    return replace(done, problems=(*done.problems, *left))


def _old_rows(lab: Lab, device: str) -> list[Run]:
    """Timings of protocol 1 on a device that have none of this protocol yet."""
    with lab.notebook(read_only=True) as store:
        every = store.runs(kind="timing")
    new = {_subject(run) for run in every if protocol_of(run) > 1}
    old = [run for run in every if protocol_of(run) == 1 and _subject(run) not in new]
    here = [run for run in old if run.inputs.get("device") == device]
    if not here:
        others = sorted({str(run.inputs.get("device")) for run in old} - {device})
        hint = f"there are some of {', '.join(others)}: --device {others[0]}" if others else "bblab bench SPEC..."
        raise BblabError(f"no timing of {device} is left that an older protocol measured", hint=hint)
    return here


def _subject(run: Run) -> str:
    keys = ("device", "runtime", "threads", "form", "input")
    return json.dumps([run.spec_id, *(run.inputs.get(k) for k in keys)])


def protocol_of(run: Run) -> int:
    """The latency protocol of a stored row: rows without one are of the first."""
    return int(run.inputs.get("protocol") or run.result.get("protocol") or 1)


# Rows -----------------------------------------------------------------------------------------------------------


def conditions_of(t: Timing) -> dict[str, Any]:
    return {"before": dict(t.conditions_before), "after": dict(t.conditions_after)}


def keep(
    lab: Lab, timings: Sequence[Timing], specs: Mapping[str, ArchSpec], extras: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of one session with further keys by label, stored with every sample.

    Raises RunError where the notebook cannot be written.
    """
    from bblab.lab import code_version

    first = timings[0]
    with lab.notebook() as store:
        conditions_id = store.add(
            "conditions",
            spec_id="",
            name=first.device,
            code_version=code_version(),
            inputs={"session": first.session},
            result=conditions_of(first),
        )
        return [
            {**_keep_one(store, specs[t.label], t, conditions_id, extras[t.label]), "conditions": conditions_of(t)}
            for t in timings
        ]


_ASKED = (
    "spec", "device", "runtime", "runtime_version", "form", "precision", "threads", "input", "batch", "warmups",
    "pace_fps", "reference", "model_sha256", "protocol",
)  # fmt: skip


def _keep_one(store: Store, spec: ArchSpec, t: Timing, conditions_id: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    from bblab.lab import code_version

    row = {**t.to_json(), **extra}
    raw = t.raw()
    series = {name: value for name, value in raw.items() if not isinstance(value, str)}
    inputs = {k: row[k] for k in _ASKED}
    result = {k: v for k, v in row.items() if k not in inputs}
    result.update({name: value for name, value in raw.items() if isinstance(value, str)})
    counts = {name: [len(process) for process in value] for name, value in series.items()}
    result.update(conditions_id=conditions_id, samples_per_process=counts, conditions=conditions_of(t))
    run = NewRun(
        kind="timing",
        spec_id=spec.spec_id,
        name=spec.name,
        code_version=code_version(),
        inputs=inputs,
        result=result,
        samples={name: [float(s) for process in value for s in process] for name, value in series.items()},
        spec_text=spec.canonical,
    )
    return {**row, "conditions_id": conditions_id, "samples_id": store.add_many([run])[0]}
