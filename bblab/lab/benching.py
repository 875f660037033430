"""What `bblab bench` measures beside whole nets: operators, blocks, a pipeline. Wires the rooms and the notebook."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from bblab.analysis.net import SUMS
from bblab.errors import BblabError, RunError
from bblab.ops import Form
from bblab.spec import ArchSpec
from bblab.store import NewRun

if TYPE_CHECKING:
    from bblab.lab import Lab, Progress
    from bblab.latency import stats
    from bblab.latency.perop import Place
    from bblab.latency.pipeline import Tracker


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows as `--json` prints them, each with its `run_id` where it was stored, and what went wrong."""

    rows: tuple[Mapping[str, Any], ...]
    problems: tuple[BblabError, ...]

    @property
    def run_ids(self) -> list[int]:
        return [row["run_id"] for row in self.rows if row.get("run_id")]


class Budget:
    """Of a whole command, from now on; what is left is shared by what is still to be measured."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock, self._began = seconds, clock, clock()

    def share(self, parts: int) -> float | None:
        return None if self._seconds is None else (self._seconds - (self._clock() - self._began)) / parts

    @property
    def spent_s(self) -> float:
        return self._clock() - self._began


class Timed(Protocol):
    """What was measured of one net besides its latency."""

    @property
    def conditions_before(self) -> Mapping[str, Any]: ...

    @property
    def conditions_after(self) -> Mapping[str, Any]: ...

    def raw(self) -> Mapping[str, stats.Series]: ...


class Kept:
    """Rows as they come, stored where that is wanted, and what went wrong so far."""

    def __init__(self, lab: Lab, store: bool) -> None:
        self._lab, self._store = lab, store
        self.rows: list[Mapping[str, Any]] = []
        self.problems: list[BblabError] = []

    def add(self, kind: str, spec: ArchSpec, row: Mapping[str, Any], timed: Timed, asked: Sequence[str]) -> None:
        state = {"before": dict(timed.conditions_before), "after": dict(timed.conditions_after)}
        self.keep(kind, spec, {**row, "conditions": state}, asked, timed.raw())

    def keep(
        self, kind: str, spec: ArchSpec, row: Mapping[str, Any], asked: Sequence[str], raw: Mapping[str, stats.Series]
    ) -> Mapping[str, Any]:
        """The row with its id, where it could be stored."""
        if self._store:
            try:
                row = stored(self._lab, kind, spec, row, asked, raw)
            except RunError as error:
                if not any(str(error) == str(p) for p in self.problems):
                    self.problems.append(error)
        self.rows.append(row)
        return row

    def not_reached(self, title: str) -> None:
        self.problems.append(RunError(f"the budget did not reach {title}", hint="give a larger --budget"))

    def is_over(self, problem: BblabError | None) -> bool:
        """Whether somebody has stopped it all; other problems end their own measurement only."""
        from bblab.latency import Interrupted

        if problem is not None:
            self.problems.append(problem)
        return isinstance(problem, Interrupted)

    def measured(self) -> Measured:
        return Measured(tuple(self.rows), tuple(self.problems))


def stored(
    lab: Lab,
    kind: str,
    spec: ArchSpec,
    row: Mapping[str, Any],
    asked: Sequence[str],
    raw: Mapping[str, stats.Series],
) -> dict[str, Any]:
    """A row of the notebook from a row of `--json`: what was asked, what came out, every sample. Gives it its id."""
    from bblab.lab import code_version

    inputs = {k: row[k] for k in asked if k in row}
    counts = {name: [len(process) for process in series] for name, series in raw.items()}
    result = {k: v for k, v in row.items() if k not in inputs} | {"samples_per_process": counts}
    run = NewRun(
        kind=kind,
        spec_id=spec.spec_id,
        name=spec.name,
        code_version=code_version(),
        inputs=inputs,
        result=result,
        samples={name: [s for process in series for s in process] for name, series in raw.items()},
        spec_text=spec.canonical,
    )
    with lab.notebook() as store:
        return {**row, "run_id": store.add_many([run])[0]}


# Operators --------------------------------------------------------------------------------------------------------

ASKED = (
    "spec", "device", "runtime", "runtime_version", "form", "precision", "threads", "protocol", "input", "model_sha256",
)  # fmt: skip


def per_op(
    lab: Lab,
    references: Sequence[str | ArchSpec],
    *,
    edits: Sequence[str] = (),
    device: str = "host",
    runtimes: Sequence[str] = ("ort",),
    threads: Sequence[int] = (1,),
    forms: Sequence[Form] = ("deploy",),
    size: str | int = "search",
    budget: float | None = None,
    waits: bool = False,
    store: bool = True,
    on_progress: Progress | None = None,
) -> Measured:
    """Where the time of each spec goes: one row a spec, form, runtime and number of threads; see `perop.OpTimes`."""
    from bblab.latency import perop
    from bblab.latency import runtimes as engines

    clock = Budget(budget)
    specs = lab.every(references, edits)
    opened = lab.device(device, waits=waits)
    for name in runtimes:  # every mistake before the first measurement
        engine = engines.find(name)
        perop.refuse_silent(engine)
        engine.version()
    kept = Kept(lab, store)
    shapes = {spec.spec_id: lab._bench_input(spec, size) for spec in specs}
    todo = [(spec, form, name, count) for spec in specs for form in forms for name in runtimes for count in threads]
    for done, (spec, form, runtime, count) in enumerate(todo):
        shape = shapes[spec.spec_id]
        candidate = lab.candidate(spec, form, shape[1:])
        title = f"{candidate.label}, {runtime}, {count} thread{'s' * (count > 1)}"
        share = clock.share(len(todo) - done)
        if share is not None and share <= 0:
            kept.not_reached(title)
            continue
        times, problem = perop.measure(
            candidate,
            places(lab, spec, form, shape),
            device=opened,
            runtime=runtime,
            plan=replace(perop.PLAN, threads=count, budget_s=share),
            weighted=weighted(lab, spec, form, shape),
            on_progress=on_progress,
        )
        if times is not None:
            kept.add("operators", spec, {"label": candidate.label, **times.to_json()}, times, ASKED)
        if kept.is_over(problem):
            break
    return kept.measured()


def places(lab: Lab, spec: ArchSpec, form: Form, shape: tuple[int, int, int]) -> list[Place]:
    """The rows of a spec with their module paths and MACs; of a library's net its own modules, by stride."""
    from bblab.latency.perop import Place

    if spec.library:
        return _library_places(lab, replace(spec, input=shape), form)
    found = []
    shapes: tuple[tuple[int, ...], ...] = (shape,)
    for stage in spec.backbone_stages:
        for position, row in enumerate(stage.rows):
            summary = lab.analyst.summary(row, shapes, form)
            name = f"{stage.name}.{position}"
            found.append(Place(stage.name, name, name, row.kind, summary.sums[SUMS.index("macs")]))
            shapes = summary.outputs
    return found


def weighted(lab: Lab, spec: ArchSpec, form: Form, shape: tuple[int, int, int]) -> list[tuple[str, int]]:
    """Each convolution and linear layer as it runs: the module of its row, and how many weights it has."""
    if spec.library:
        return []
    found = []
    graphs = lab.analyst.graphs(replace(spec, input=shape), form)
    rows = [f"{stage.name}.{i}" for stage in spec.backbone_stages for i in range(len(stage.rows))]
    for row, (_, _, graph) in zip(rows, graphs, strict=True):
        for op in graph.ops:
            if op.params and op.name.removeprefix("conv_").startswith(("conv", "linear")):
                found.append((f"{row}.{op.layer}".rstrip("."), graph.params[op.params[0]].numel))
    return found


def _library_places(lab: Lab, spec: ArchSpec, form: Form) -> list[Place]:
    """Modules as the library names them, as deep as its own units ("layer1.0"), in the stage where they end."""
    from bblab import library
    from bblab.analysis.cost import op_costs
    from bblab.latency.perop import Place

    graph = library.graph_of(spec, form)
    points = library.stage_points(graph)
    end = library.cut_point(graph, spec)
    macs: dict[str, int] = {}
    stage_of: dict[str, str] = {}
    for number, (op, cost) in enumerate(zip(graph.ops, op_costs(graph), strict=True)):
        if number >= end.num_ops:
            break
        unit = _unit(op.layer)
        macs[unit] = macs.get(unit, 0) + (cost.macs or 0)
        stride = next((p.stride for p in points if number < p.num_ops), end.stride)
        stage_of[unit] = f"s{stride}"
    return [Place(stage_of[u], u or "(net)", f"net.{u}" if u else "net", "", macs[u]) for u in macs]


def _unit(layer: str) -> str:
    """ "layer1.0.conv1" -> "layer1.0": as far as the last of the leading numbers, at most two deep."""
    parts = layer.split(".")
    depth = 1
    while depth < min(3, len(parts)) and parts[depth].isdigit():
        depth += 1
    return ".".join(parts[:depth])


# The tracker's pipeline -------------------------------------------------------------------------------------------

PIPELINE_ASKED = (
    "spec", "device", "runtime", "runtime_version", "form", "precision", "threads", "protocol", "template_px",
    "search_px", "head", "photo", "resized_by", "frame",
)  # fmt: skip


def pipeline(
    lab: Lab,
    references: Sequence[str | ArchSpec],
    *,
    edits: Sequence[str] = (),
    runtimes: Sequence[str] = ("ort",),
    threads: Sequence[int] = (1,),
    form: Form = "deploy",
    fps: float = 30.0,
    budget: float | None = None,
    waits: bool = False,
    store: bool = True,
    on_progress: Progress | None = None,
) -> Measured:
    """A tracker's frame with each spec as its backbone: one row a spec, runtime and number of threads."""
    from bblab.latency import pipeline as stages
    from bblab.latency import runtimes as engines

    clock = Budget(budget)
    trackers = [(spec, tracker(lab, spec, form)) for spec in lab.every(references, edits)]
    for name in runtimes:
        engines.find(name).version()
    opened = lab.device("host", waits=waits)
    kept = Kept(lab, store)
    todo = [(spec, nets, name, count) for spec, nets in trackers for name in runtimes for count in threads]
    for done, (spec, nets, runtime, count) in enumerate(todo):
        share = clock.share(len(todo) - done)
        if share is not None and share <= 0:
            kept.not_reached(f"{spec.name}, {runtime}, {count} thread{'s' * (count > 1)}")
            continue
        split, problem = stages.measure(
            nets, device=opened, runtime=runtime, threads=count, fps=fps, plan=replace(stages.PLAN, budget_s=share),
            on_progress=on_progress,
        )  # fmt: skip
        if split is not None:
            kept.add("pipeline", spec, {"label": spec.name, **split.to_json()}, split, PIPELINE_ASKED)
        if kept.is_over(problem):
            break
    return kept.measured()


def tracker(lab: Lab, spec: ArchSpec, form: Form) -> Tracker:
    """The nets of a tracker around a backbone, whose last tap the head takes. Raises BblabError where none fits."""
    from bblab.latency import trackerhead
    from bblab.latency.pipeline import Tracker

    sizes = spec.sizes_px
    maps = []
    for side in (sizes.template, sizes.search):
        cost = lab.analyst.cost(spec, form, (side, side))
        if not cost.taps:
            raise BblabError(f"{spec.name} gives no map to correlate", hint="cut it at a stage: NAME@s16")
        maps.append(cost.taps[-1])
    small, large = maps
    head = trackerhead.candidate(large.channels, (small.height, small.width), (large.height, large.width))
    return Tracker(
        lab.candidate(spec, form, (sizes.template, sizes.template)),
        lab.candidate(spec, form, (sizes.search, sizes.search)),
        head,
        large.channels,
        (small.height, small.width),
        (large.height, large.width),
        max(1, round(sizes.search / large.height)) if large.stride is None else round(large.stride),
    )
