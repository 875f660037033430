"""What `bblab bench` measures beside whole nets: operators, blocks, a pipeline. Wires the rooms and the notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bblab.analysis.net import SUMS
from bblab.errors import BblabError, RunError
from bblab.ops import Form
from bblab.spec import ArchSpec
from bblab.store import NewRun

if TYPE_CHECKING:
    from bblab.lab import Lab, Progress
    from bblab.latency import protocol
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


def stored(
    lab: Lab,
    kind: str,
    spec: ArchSpec,
    row: Mapping[str, Any],
    asked: Sequence[str],
    raw: Mapping[str, protocol.Series],
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

ASKED = ("spec", "device", "runtime", "runtime_version", "form", "precision", "threads", "input", "model_sha256")


def per_op(
    lab: Lab,
    references: Sequence[str | ArchSpec],
    *,
    edits: Sequence[str] = (),
    runtimes: Sequence[str] = ("ort",),
    threads: Sequence[int] = (1,),
    forms: Sequence[Form] = ("deploy",),
    size: str | int = "search",
    store: bool = True,
    on_progress: Progress | None = None,
) -> Measured:
    """Where the time of each spec goes: one row a spec, form, runtime and number of threads; see `perop.OpTimes`."""
    from bblab.latency import perop
    from bblab.latency import runtimes as engines

    specs = lab.every(references, edits)
    for name in runtimes:  # every mistake before the first measurement
        engine = engines.find(name)
        perop.refuse_silent(engine)
        engine.version()
    rows: list[Mapping[str, Any]] = []
    problems: list[BblabError] = []
    for spec in specs:
        shape = lab._bench_input(spec, size)
        for form in forms:
            candidate = lab.candidate(spec, form, shape[1:])
            found = places(lab, spec, form, shape)
            weights = weighted(lab, spec, form, shape)
            for runtime in runtimes:
                for count in threads:
                    try:
                        times = perop.measure(
                            candidate, found, runtime=runtime, threads=count, weighted=weights, on_progress=on_progress
                        )
                    except RunError as error:
                        problems.append(error)
                        continue
                    row: Mapping[str, Any] = {"label": candidate.label, **times.to_json()}
                    state = {"before": dict(times.conditions_before), "after": dict(times.conditions_after)}
                    row = {**row, "conditions": state}
                    if store:
                        try:
                            row = stored(lab, "operators", spec, row, ASKED, times.raw())
                        except RunError as error:
                            problems.append(error)
                    rows.append(row)
    return Measured(tuple(rows), tuple(problems))


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
    "spec", "device", "runtime", "runtime_version", "form", "precision", "threads", "template_px", "search_px", "head",
    "photo", "resized_by", "frame",
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
    store: bool = True,
    on_progress: Progress | None = None,
) -> Measured:
    """A tracker's frame with each spec as its backbone: one row a spec, runtime and number of threads."""
    from bblab.latency import pipeline as stages
    from bblab.latency import runtimes as engines

    trackers = [(spec, tracker(lab, spec, form)) for spec in lab.every(references, edits)]
    for name in runtimes:
        engines.find(name).version()
    rows: list[Mapping[str, Any]] = []
    problems: list[BblabError] = []
    for spec, nets in trackers:
        for runtime in runtimes:
            for count in threads:
                try:
                    split = stages.measure(nets, runtime=runtime, threads=count, fps=fps, on_progress=on_progress)
                except RunError as error:
                    problems.append(error)
                    continue
                state = {"before": dict(split.conditions_before), "after": dict(split.conditions_after)}
                row: Mapping[str, Any] = {"label": spec.name, **split.to_json(), "conditions": state}
                if store:
                    try:
                        row = stored(lab, "pipeline", spec, row, PIPELINE_ASKED, split.raw())
                    except RunError as error:
                        problems.append(error)
                rows.append(row)
    return Measured(tuple(rows), tuple(problems))


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
