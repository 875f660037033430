"""Where in a net the time goes: a runtime's own times of its operators, brought home to the spec's stages and rows.

    rows = tabulate([Layer("conv_1", 12e-6, module="s8.0.point"), ...], places)

Whatever a runtime can tell comes in as layers: name, seconds, and the torch module where that is known. An operator
that belongs to no place is listed as such; nothing is dropped, so the parts add up to their sum, and that sum is held
against calls that nobody profiled.
"""

from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bblab.errors import BblabError, RunError
from bblab.latency import protocol, runtimes, session, stats, wire
from bblab.latency.devices import Device
from bblab.latency.devices.remote import STAND_IN
from bblab.latency.runtimes import Runtime
from bblab.latency.session import Measured, ProcessResult, Progress
from bblab.latency.values import Candidate, Conditions, Plan

PLAN = Plan(processes=3, rounds=10)
NOWHERE = "(not mapped)"


@dataclass(frozen=True, slots=True)
class Place:
    """A row of a spec: its stage, its own name, the module that computes it, what it costs."""

    stage: str
    row: str
    module: str  # "s8.0": operators of modules that begin so are of this row
    kind: str = ""
    macs: int = 0


@dataclass(frozen=True, slots=True)
class Layer:
    """One operator of a runtime: the median of its times over all calls, with the middle 80 % of them."""

    name: str
    seconds: float
    op: str = ""
    module: str = ""
    told_by: str = ""
    kernel: str = ""
    low_s: float = 0.0
    high_s: float = 0.0
    samples_s: stats.Series = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Part:
    """Some operators together: a stage, a row or a type of operator. `share` is of the sum over all operators."""

    name: str
    seconds: float
    share: float
    count: int
    stage: str = ""
    kind: str = ""
    macs: int = 0

    @property
    def macs_per_s(self) -> float | None:
        return self.macs / self.seconds if self.macs and self.seconds > 0 else None


@dataclass(frozen=True, slots=True)
class OpTable:
    """The operators with their places, and the sums over them. `mapped[i]` is the row of `layers[i]`."""

    layers: tuple[Layer, ...]
    mapped: tuple[Place | None, ...]
    stages: tuple[Part, ...]
    rows: tuple[Part, ...]
    ops: tuple[Part, ...]

    @property
    def sum_s(self) -> float:
        return sum(layer.seconds for layer in self.layers)

    @property
    def unmapped(self) -> tuple[Layer, ...]:
        return tuple(layer for layer, place in zip(self.layers, self.mapped, strict=True) if place is None)

    def to_json(self) -> dict[str, Any]:
        total = self.sum_s
        return {
            "sum_s": total,
            "unmapped": [layer.name for layer in self.unmapped],
            "unmapped_s": sum(layer.seconds for layer in self.unmapped),
            "stages": [_part_json(part) for part in self.stages],
            "rows": [_part_json(part) for part in self.rows],
            "op_types": [_part_json(part) for part in self.ops],
            "operators": [
                {
                    "name": layer.name,
                    "op": layer.op,
                    "kernel": layer.kernel,
                    "module": layer.module,
                    "told_by": layer.told_by,
                    "stage": place.stage if place else None,
                    "row": place.row if place else None,
                    "median_s": layer.seconds,
                    "p10_s": layer.low_s,
                    "p90_s": layer.high_s,
                    "share": layer.seconds / total if total else 0.0,
                }
                for layer, place in zip(self.layers, self.mapped, strict=True)
            ],
        }


def _part_json(part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "stage": part.stage,
        "kind": part.kind,
        "seconds": part.seconds,
        "share": part.share,
        "operators": part.count,
        "macs": part.macs or None,
        "macs_per_s": part.macs_per_s,
    }


_NCNN_WEIGHTS = {"InnerProduct": "2", "Gemm": "", "MultiHeadAttention": "2"}  # the key of their number of weights


def ncnn_modules(param: str, weighted: Sequence[tuple[str, int]]) -> dict[str, str]:
    """The torch module of each layer of an ncnn.param file: ncnn keeps no scopes, but order and sizes of weights.

    `weighted`: module and number of weights (without biases) of every convolution and linear layer as the net runs
    them. A layer without weights belongs to the one before it. Layers that find no partner have no module.
    """
    left = list(weighted)
    found: dict[str, str] = {}
    before = next((module for module, _ in weighted), "")
    for line in param.splitlines()[2:]:
        words = line.split()
        if len(words) < 4 or words[0] == "Input":
            continue
        kind, name = words[:2]
        values = dict(word.split("=", 1) for word in words[4:] if "=" in word)
        key = _NCNN_WEIGHTS.get(kind, "6" if "Convolution" in kind else None)
        if key is not None:
            count = int(values.get(key, 0))
            partner = next((i for i, (_, numel) in enumerate(left) if numel == count), None)
            before = left.pop(partner)[0] if partner is not None else ""
        found[name] = before
    return found


def summed_up(name: str, samples_s: stats.Series, *, overhead_s: float = 0.0, **about: str) -> Layer:
    """A layer from its times in every call; what timing it costs is taken off, never below nothing."""
    values = stats.pooled(samples_s)
    low, middle, high = (max(0.0, stats.quantile(values, q) - overhead_s) for q in (0.1, 0.5, 0.9))
    return Layer(name, middle, low_s=low, high_s=high, samples_s=samples_s, **about)


def tabulate(layers: Sequence[Layer], places: Sequence[Place]) -> OpTable:
    """Stages and rows in the spec's order, types of operators by time; what has no place stands last, by name."""
    mapped = tuple(place_of(layer.module, places) for layer in layers)
    total = sum(layer.seconds for layer in layers)

    def part(name: str, members: Sequence[Layer], stage: str = "", kind: str = "", macs: int = 0) -> Part:
        seconds = sum(m.seconds for m in members)
        return Part(name, seconds, seconds / total if total else 0.0, len(members), stage, kind, macs)

    def of(test: Callable[[Place | None], bool]) -> list[Layer]:
        return [layer for layer, place in zip(layers, mapped, strict=True) if test(place)]

    nowhere = of(lambda p: p is None)
    rest = [part(NOWHERE, nowhere)] if nowhere else []
    stages = [
        part(stage, of(lambda p, s=stage: p is not None and p.stage == s), stage, macs=_macs(places, stage))  # type: ignore[misc]
        for stage in dict.fromkeys(p.stage for p in places)
    ]
    rows = [part(x.row, of(lambda p, x=x: p == x), x.stage, x.kind, x.macs) for x in places]  # type: ignore[misc]
    rows = [r for r in rows if r.count or r.kind or r.macs]  # a foreign module that was fused into its neighbour
    kinds = [
        part(op, [layer for layer in layers if layer.op == op]) for op in dict.fromkeys(layer.op for layer in layers)
    ]
    kinds.sort(key=lambda p: -p.seconds)
    return OpTable(tuple(layers), mapped, (*stages, *rest), (*rows, *rest), tuple(kinds))


def _macs(places: Sequence[Place], stage: str) -> int:
    return sum(p.macs for p in places if p.stage == stage)


def place_of(module: str, places: Sequence[Place]) -> Place | None:
    """The place whose module is the longest beginning of this one."""
    fitting = [p for p in places if module == p.module or module.startswith(p.module + ".")]
    return max(fitting, key=lambda p: len(p.module), default=None)


# Measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpTimes:
    """One net's operators on one runtime, and the warm calls that they are held against: `[process][call]`, seconds.

    `sum_as_profiled_s` still holds what the profile adds to each operator (`overhead_s`); the table's does not.
    """

    candidate: Candidate
    device: str
    runtime: str
    runtime_version: str
    precision: str
    threads: int
    table: OpTable
    sum_as_profiled_s: float
    overhead_s: float
    wall_s: stats.Series
    cpu_s: stats.Series
    profiled_wall_s: stats.Series
    speedometer_cpu_s: stats.Series
    model_sha256: str
    conversion_rel_error: float
    session: str
    conditions_before: Conditions = field(default_factory=dict, compare=False, repr=False)
    conditions_after: Conditions = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def whole_wall_s(self) -> float:
        return stats.quantile(stats.pooled(self.wall_s), 0.5)

    @property
    def whole_cpu_s(self) -> float:
        return stats.quantile(stats.pooled(self.cpu_s), 0.5)

    @property
    def wall_over_cpu(self) -> float:
        return stats.wall_over_cpu(self.wall_s, self.cpu_s)

    @property
    def whole_s(self) -> float:
        """The call that the parts are held against: wall time, or CPU time where other work held one thread up."""
        return self.whole_cpu_s if self.threads == 1 and protocol.is_busy(self.wall_over_cpu) else self.whole_wall_s

    @property
    def sum_over_whole(self) -> float:
        return self.table.sum_s / self.whole_s

    def to_json(self) -> dict[str, Any]:
        c = self.candidate
        return {
            "spec": c.spec,
            "device": self.device,
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "form": c.form,
            "precision": self.precision,
            "threads": self.threads,
            "input": list(c.input),
            "protocol": wire.PROTOCOL,
            "state": wire.WARM,
            "processes": len(self.wall_s),
            "calls": sum(map(len, self.wall_s)),
            "whole_s": self.whole_s,
            "whole_wall_p50_s": self.whole_wall_s,
            "whole_cpu_p50_s": self.whole_cpu_s,
            "profiled_wall_p50_s": stats.quantile(stats.pooled(self.profiled_wall_s), 0.5),
            "wall_over_cpu": self.wall_over_cpu,
            "sum_over_whole": self.sum_over_whole,
            "sum_as_profiled_s": self.sum_as_profiled_s,
            "profile_adds_s_an_operator": self.overhead_s,
            "speedometer_s": stats.quantile(stats.pooled(self.speedometer_cpu_s), 0.5),
            "model_sha256": self.model_sha256,
            "conversion_rel_error": self.conversion_rel_error,
            "session": self.session,
            "notes": list(self.notes),
            **self.table.to_json(),
        }

    def raw(self) -> dict[str, stats.Series]:
        """Every sample: the whole calls, and each operator's time in every call, operator after operator."""
        return {
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "profiled_wall_s": self.profiled_wall_s,
            "speedometer_cpu_s": self.speedometer_cpu_s,
            "operators_s": tuple(stats.pooled(layer.samples_s) for layer in self.table.layers),
        }


def measure(
    candidate: Candidate,
    places: Sequence[Place],
    *,
    device: str | Device = "host",
    runtime: str = "ort",
    plan: Plan = PLAN,
    weighted: Sequence[tuple[str, int]] = (),
    on_progress: Progress | None = None,
) -> tuple[OpTimes | None, BblabError | None]:
    """The operators of one net as far as they were measured, and what ended it early.

    `weighted` as for `ncnn_modules`: where the runtime keeps no names of modules.
    Raises BblabError for a runtime that cannot tell.
    """
    refuse_silent(runtimes.find(runtime))
    measured, problem = session.attempt(
        [candidate],
        candidate,
        device=device,
        runtime=runtime,
        plan=plan,
        ask=lambda request, number: replace(request, probe="layers"),
        on_progress=on_progress,
    )
    if measured is None:
        return None, problem
    if not any(isinstance(m, wire.Layer) for result in measured.results for m in result.told):
        ended = RunError(
            f"{candidate.label}: measuring ended before the worker had reported the times of its operators",
            hint="a runtime reports them when a process ends: give a larger --budget",
        )
        return None, problem or ended
    return op_times(candidate, places, measured, weighted), problem


def op_times(
    candidate: Candidate, places: Sequence[Place], measured: Measured, weighted: Sequence[tuple[str, int]] = ()
) -> OpTimes:
    """From what the processes of a session with the probe `layers` said."""
    (timing,) = measured.timings
    (file,) = measured.files
    modules = modules_in(file.path, weighted)
    # A process that the budget ended may have reported none: its whole calls count all the same.
    answers = [layers for result in measured.results if (layers := _layers(result, modules))]
    told = [float(m.text) for r in measured.results for m in r.told if isinstance(m, wire.Note)]
    overhead = stats.quantile(told, 0.5) if told else 0.0
    layers, raw_sum = _joined(answers, overhead)
    notes = list(timing.notes)
    if len({len(layers) for layers in answers}) > 1:
        notes.append("processes ran different operators: those that all of them ran are shown with all their times")
    profiled = [r.calls[0, wire.PROFILED] for r in measured.results]
    return OpTimes(
        candidate=candidate,
        device=timing.device,
        runtime=timing.runtime,
        runtime_version=timing.runtime_version,
        precision=timing.precision,
        threads=timing.threads,
        table=tabulate(layers, places),
        sum_as_profiled_s=raw_sum,
        overhead_s=overhead,
        wall_s=timing.warm.wall_s,
        cpu_s=timing.warm.cpu_s,
        profiled_wall_s=tuple(tuple(c.wall_s for c in calls) for calls in profiled),
        speedometer_cpu_s=timing.speedometer.cpu_s,
        model_sha256=file.sha256,
        conversion_rel_error=file.rel_error,
        session=measured.name,
        conditions_before=measured.before,
        conditions_after=measured.after,
        notes=tuple(notes),
    )


def tells_layers(engine: Runtime) -> bool:
    """Whether its own program does (the runner), here or on a device that has no Python."""
    return hasattr(engine, "program") or engine.name in STAND_IN


def refuse_silent(engine: Runtime) -> None:
    """Raises BblabError, naming those that can, for a runtime that does not tell the times of its operators."""
    if not (runtimes.can_profile(engine) or tells_layers(engine)):
        found = {name: runtimes.RUNTIMES[name]() for name in runtimes.names()}
        able = ", ".join(name for name, e in found.items() if runtimes.can_profile(e) or tells_layers(e))
        raise BblabError(f"{engine.name} does not tell the times of its operators", hint=f"these do: {able}")


def modules_in(path: Path, weighted: Sequence[tuple[str, int]]) -> dict[str, str]:
    """The modules of an ncnn model's layers, from the .param file in its zip; none where it is another format."""
    try:
        with zipfile.ZipFile(path) as packed:
            name = next(n for n in packed.namelist() if n.endswith(".param"))
            return ncnn_modules(packed.read(name).decode(), weighted)
    except (OSError, StopIteration, zipfile.BadZipFile):
        return {}


def _layers(result: ProcessResult, modules: Mapping[str, str]) -> list[Layer]:
    """The operators of one process in the order of execution, each with its time in every profiled call."""
    by_place: dict[int, list[wire.Layer]] = defaultdict(list)
    for message in result.told:
        if isinstance(message, wire.Layer):
            by_place[message.place].append(message)
    found = []
    for place in sorted(by_place):
        first, seconds = by_place[place][0], tuple(m.wall_s for m in by_place[place])
        module = first.module or modules.get(first.name, "")
        told_by = first.told_by or ("weights" if module else "")
        found.append(Layer(first.name, 0.0, first.type, module, told_by, first.kernel, samples_s=(seconds,)))
    return found


def _joined(answers: Sequence[Sequence[Layer]], overhead_s: float) -> tuple[list[Layer], float]:
    """Each operator's times in all processes: the same place of the same module and type is the same operator.

    Its name may change: a runtime numbers the operators that move data anew in every process.
    """
    found: dict[tuple[str, str, int], list[Layer]] = {}
    for answer in answers:
        seen: dict[tuple[str, str], int] = {}
        for layer in answer:
            at = (layer.module, layer.op)
            seen[at] = seen.get(at, -1) + 1
            found.setdefault((*at, seen[at]), []).append(layer)
    layers, raw_sum = [], 0.0
    for members in found.values():
        first, samples = members[0], tuple(m.samples_s[0] for m in members)
        about = {"op": first.op, "module": first.module, "told_by": first.told_by, "kernel": first.kernel}
        layers.append(summed_up(first.name, samples, overhead_s=overhead_s, **about))
        raw_sum += stats.quantile(stats.pooled(samples), 0.5)
    return layers, raw_sum
