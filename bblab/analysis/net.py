"""ArchSpec -> Cost: a network is the sum of its remembered blocks.

Each block is recorded once for its arguments, input size and form; a candidate made of known blocks costs a few
additions. Everything that `bblab profile` prints about a network's cost and geometry comes from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bblab import library
from bblab.analysis import cost as costing
from bblab.analysis import sight as seeing
from bblab.analysis.cost import SecondCount
from bblab.analysis.window import SAME, Range, Window
from bblab.errors import BblabError, Complaint, SpecError
from bblab.ops import Form, OpGraph, Shape, block_graph
from bblab.spec import ArchSpec, BlockInfo, Row

# Order of the sums in BlockSummary.sums.
SUMS = (
    "params",
    "weight_bytes",
    "macs",
    "activations",
    "elementwise_ops",
    "memory_traffic_bytes",
    "num_ops",
)


# ---------------------------------------------------------------------------------------------- one block


@dataclass(frozen=True, slots=True)
class BlockSummary:
    """What a network needs to know of one block at one input size and form.

    `views[o][i]`: the windows of output o on input i; None where it does not see it. `clean[o]`: its units that no
    padding inside the block has touched.
    """

    sums: tuple[int, ...]
    peak_bytes: int
    peak_keeping_input_bytes: int
    outputs: tuple[Shape, ...]
    views: tuple[tuple[tuple[Window, Window] | None, ...], ...]
    clean: tuple[tuple[Range, Range], ...]
    uncounted: tuple[str, ...]
    is_global: bool
    unknown: str
    second: SecondCount | None = None
    is_simple: bool = field(init=False)
    """One map in, one map out, the same window along both axes, no upsampling: the common fast case."""
    has_remarks: bool = field(init=False)
    """Ops that are not counted, or a second count: what the common fast case has not."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "has_remarks", bool(self.uncounted) or self.second is not None)
        view = self.views[0][0] if len(self.outputs) == 1 and len(self.views[0]) == 1 else None
        is_simple = view is not None and not self.unknown and view[0] == view[1] and view[0].period == 1
        object.__setattr__(self, "is_simple", is_simple)


def summarise(graph: OpGraph) -> BlockSummary:
    """The summary of a recorded block."""
    costs = costing.op_costs(graph)
    sights = seeing.follow(graph)
    inputs = range(len(graph.inputs))
    return BlockSummary(
        sums=costing.totals(graph, costs).astuple(),
        peak_bytes=costing.peak_bytes(graph),
        peak_keeping_input_bytes=costing.peak_bytes(graph, keeps_input=True),
        outputs=tuple(shape[1:] for shape in graph.output_shapes),
        views=tuple(tuple(s.windows.get(i) for i in inputs) for s in sights),
        clean=tuple(s.clean for s in sights),
        uncounted=(
            *dict.fromkeys(f"{c.name} ({c.layer})" if c.layer else c.name for c in costs if c.macs is None),
            *graph.escapes,
        ),
        is_global=any(s.is_global for s in sights),
        unknown=next((s.unknown for s in sights if s.unknown), next(iter(graph.escapes), "")),
        second=costing.second_count(graph, costs),
    )


# ---------------------------------------------------------------------------------------------- a network


@dataclass(frozen=True, slots=True)
class MapCost:
    """One stage's output map, and what the stage alone costs.

    `window_h/w` describe the units in input pixels; None where they could not be followed. `clean_h/w`: the units
    that no padding has touched.
    """

    stage: str
    channels: int
    height: int
    width: int
    window_h: Window | None
    window_w: Window | None
    clean_h: Range
    clean_w: Range
    is_global: bool
    sums: tuple[int, ...]
    num_blocks: int

    @property
    def receptive_field(self) -> int | None:
        """Pixels that the central unit sees; the longer side where height and width differ."""
        if self.window_h is None or self.window_w is None:
            return None
        return max(self.window_h.extent(self.height // 2), self.window_w.extent(self.width // 2))

    @property
    def stride(self) -> int | float | None:
        """Input pixels between neighbouring units."""
        if self.window_h is None:
            return None
        jump = self.window_h.jump
        return int(jump) if jump.denominator == 1 else float(jump)

    def offset_px(self, size: int) -> float | None:
        """How far the map's centre lies from the centre of an input of `size` pixels, along the height."""
        if self.window_h is None:
            return None
        return self.window_h.centre((self.height - 1) / 2) - (size - 1) / 2

    @property
    def padded_units(self) -> int:
        """Rows of units, counted from the border inwards, whose windows reach into padding (the worse side)."""
        low, high = self.clean_h
        return self.height if high < low else max(low, self.height - 1 - high)

    @property
    def params(self) -> int:
        return self.sums[0]

    @property
    def macs(self) -> int:
        return self.sums[2]


@dataclass(frozen=True, slots=True)
class NetCost:
    """The cost of a network in one form at one input size, batch 1, float32.

    `sums` covers the head too; `backbone_sums` ends at the last tap. Order as in `SUMS`.
    """

    form: Form
    input: Shape
    sums: tuple[int, ...]
    backbone_sums: tuple[int, ...]
    peak_activation_bytes: int
    peak_backbone_bytes: int
    uncounted: tuple[str, ...]
    unknown: str
    maps: tuple[MapCost, ...]
    taps: tuple[MapCost, ...]
    second: tuple[tuple[str, SecondCount], ...] = ()
    """(place, both counts) of every row that torch's own counter counted too: the blocks of a lab."""
    params_behind: int = 0
    """Learnable parameters of another library's net that lie behind the cut."""

    def sum(self, name: str, *, backbone: bool = False) -> int:
        return (self.backbone_sums if backbone else self.sums)[SUMS.index(name)]

    @property
    def params(self) -> int:
        return self.sums[0]

    @property
    def macs(self) -> int:
        return self.sums[2]

    @property
    def params_backbone(self) -> int:
        return self.backbone_sums[0]

    @property
    def macs_backbone(self) -> int:
        return self.backbone_sums[2]


@dataclass(slots=True)
class _Map:
    """One live map of the walk: its shape, its windows on the network's input, its clean units."""

    shape: Shape
    views: tuple[Window, Window] | None
    clean: tuple[Range, Range]


_NOTHING = (0,) * len(SUMS)
_NOWHERE: tuple[Range, Range] = ((0, -1), (0, -1))


class Analyst:
    """Costs of specs, with every block seen once held in memory."""

    def __init__(self, kinds: Mapping[str, BlockInfo]) -> None:
        self.kinds = kinds
        self._summaries: dict[tuple[str, tuple[Shape, ...], str], BlockSummary] = {}

    # -- blocks

    def summary(self, row: Row, shapes: tuple[Shape, ...], form: Form) -> BlockSummary:
        """The summary of one row's block. Raises BblabError where the block refuses or breaks its promise."""
        key = (row.key, shapes, form)
        known = self._summaries.get(key)
        if known is None:
            info = self.kinds[row.kind]
            graph = block_graph(row, info, shapes, form)
            _check_promise(row, info, graph, shapes)
            known = summarise(graph)
            _check_stride(row, known, shapes)
            self._summaries[key] = known
        return known

    def graphs(self, spec: ArchSpec, form: Form) -> Iterator[tuple[str, str, OpGraph]]:
        """(stage, place, recorded ops) of every block as far as the last tap, at the spec's own input."""
        if spec.library:
            whole = library.graph_of(spec, form)
            point = library.cut_point(whole, spec)
            yield f"s{point.stride}", spec.library, upto(whole, point)
            return
        shapes: tuple[Shape, ...] = (spec.input,)
        for stage in spec.backbone_stages:
            for position, row in enumerate(stage.rows):
                graph = block_graph(row, self.kinds[row.kind], shapes, form)
                yield stage.name, f"{stage.name}.{position}" if len(stage.rows) > 1 else stage.name, graph
                shapes = tuple(s[1:] for s in graph.output_shapes)

    # -- networks

    def cost(self, spec: ArchSpec, form: Form, size: tuple[int, int] | None = None) -> NetCost:
        """The cost of a network at an input of `size` (height, width); the spec's own input by default.

        Raises SpecError with every block that cannot be built or run at this size.
        """
        channels, *own = spec.input
        height, width = size or (own[0], own[1])
        given: Shape = (channels, height, width)
        if spec.library:
            return _library_cost(spec, form, given)
        try:
            return self._walk(spec, form, given)
        except BblabError as error:
            found = self._complaints(spec, form, given)
            raise SpecError(found or [Complaint(None, error.message, error.hint)]) from None

    def _walk(self, spec: ArchSpec, form: Form, given: Shape) -> NetCost:
        summaries = self._summaries
        shapes: tuple[Shape, ...] = (given,)
        # The fast state: one map, the same window on both axes, as plain numbers.
        step, low, high = 1, 0, 0
        view_h = view_w = SAME
        clean_h: Range = (0, given[1] - 1)
        clean_w: Range = (0, given[2] - 1)
        is_square, is_global, unknown = True, False, ""
        rows: list[tuple[int, ...]] = []
        uncounted: list[str] = []
        second: list[tuple[str, SecondCount]] = []
        maps: list[MapCost] = []
        taps: list[MapCost] = []
        several: list[_Map] | None = None
        peak = held = backbone_peak = 0
        backbone_rows = 0
        is_after_tap = False
        wanted = set(spec.taps)
        left = len(wanted)
        for stage in spec.stages:
            first = len(rows)
            for row in stage.rows:
                s = summaries.get((row.key, shapes, form)) or self.summary(row, shapes, form)
                rows.append(s.sums)
                if s.has_remarks:
                    uncounted.extend(s.uncounted)
                    if s.second is not None:
                        at = len(rows) - first - 1
                        second.append((f"{stage.name}.{at}" if len(stage.rows) > 1 else stage.name, s.second))
                block_peak = (s.peak_keeping_input_bytes if is_after_tap else s.peak_bytes) + held
                if block_peak > peak:
                    peak = block_peak
                if is_after_tap:
                    held += 4 * _numel(shapes)
                    is_after_tap = False
                is_global = is_global or s.is_global
                unknown = unknown or (f"{stage.name}: {s.unknown}" if s.unknown else "")
                if several is None and s.is_simple:
                    view = s.views[0][0]
                    assert view is not None
                    inner = view[0]
                    own_h, own_w = s.clean[0]
                    if is_square:
                        clean_h = _clean(inner, clean_h, own_h)
                        clean_w = _clean(inner, clean_w, own_w)
                        low += step * inner.lows[0]
                        high += step * inner.highs[0]
                        step *= inner.step
                    else:
                        clean_h, clean_w = _clean(inner, clean_h, own_h), _clean(inner, clean_w, own_w)
                        view_h, view_w = view_h.after(inner), view_w.after(inner)
                else:
                    if several is None:
                        if is_square:
                            view_h = view_w = Window(step, (low,), (high,))
                        several = [_Map(shapes[0], (view_h, view_w), (clean_h, clean_w))]
                    several = _general(s, several)
                    is_square = False
                    if len(several) == 1 and several[0].views is not None:
                        view_h, view_w = several[0].views
                        clean_h, clean_w = several[0].clean
                        if view_h == view_w and view_h.period == 1:
                            step, low, high = view_h.step, view_h.lows[0], view_h.highs[0]
                            is_square = True
                        several = None
                shapes = s.outputs
            if several is None and not unknown:
                here = [_Map(shapes[0], (Window(step, (low,), (high,)),) * 2 if is_square else (view_h, view_w),
                             (clean_h, clean_w))]  # fmt: skip
            else:
                here = several or [_Map(shapes[0], None, _NOWHERE)]
            sums = tuple(map(sum, zip(*rows[first:], strict=True))) if len(rows) > first else _NOTHING
            made = _map_costs(stage.name, here, is_global, unknown, sums, len(stage.rows))
            maps.extend(made)
            if stage.name in wanted:
                taps.extend(made)
                left -= 1
                is_after_tap = True
                if left == 0:
                    backbone_rows, backbone_peak = len(rows), peak
        if spec.head is not None:
            s = self.summary(spec.head, shapes, form)
            rows.append(s.sums)
            uncounted.extend(s.uncounted)
            if s.second is not None:
                second.append(("head", s.second))
            peak = max(peak, (s.peak_keeping_input_bytes if is_after_tap else s.peak_bytes) + held)
        total = tuple(map(sum, zip(*rows, strict=True)))
        cut = backbone_rows
        backbone = total if cut == len(rows) else tuple(map(sum, zip(*rows[:cut], strict=True)))
        names = tuple(dict.fromkeys(uncounted)) if uncounted else ()
        return NetCost(
            form, given, total, backbone, peak, backbone_peak, names, unknown, tuple(maps), tuple(taps), tuple(second)
        )

    def _complaints(self, spec: ArchSpec, form: Form, given: Shape) -> list[Complaint]:
        """Every row that fails, with its place; after a failure the walk goes on with the promised shape."""
        found: list[Complaint] = []
        shapes: tuple[Shape, ...] = (given,)
        for stage in spec.stages:
            for position, row in enumerate(stage.rows):
                try:
                    shapes = self.summary(row, shapes, form).outputs
                except BblabError as error:
                    where = f"stage {stage.name}" + (f" row {position}" if len(stage.rows) > 1 else "")
                    complaint = Complaint(row.mark, f"{where}: {error.message}", error.hint)
                    if complaint not in found:
                        found.append(complaint)
                    shapes = _promised(row, shapes)
                    if shapes[0][1] < 1 or shapes[0][2] < 1:
                        return found
        if spec.head is not None:
            try:
                self.summary(spec.head, shapes, form)
            except BblabError as error:
                found.append(Complaint(spec.head.mark, f"head: {error.message}", error.hint))
        return found


def _numel(shapes: Sequence[Shape]) -> int:
    return sum(c * h * w for c, h, w in shapes)


def _clean(inner: Window, given: Range, own: Range) -> Range:
    """Units clean in the block whose windows lie in clean units of its input (period 1)."""
    low = -((inner.lows[0] - given[0]) // inner.step)
    high = (given[1] - inner.highs[0]) // inner.step
    return (low if low > own[0] else own[0]), (high if high < own[1] else own[1])


def _general(s: BlockSummary, given: Sequence[_Map]) -> list[_Map]:
    """Any block: several maps in or out, oblong windows, upsampling."""
    made = []
    for shape, views, clean in zip(s.outputs, s.views, s.clean, strict=True):
        joined: tuple[Window, Window] | None = None
        (h0, h1), (w0, w1) = clean
        is_known = bool(views) and not s.unknown
        for view, source in zip(views, given, strict=False):
            if view is None:
                continue
            if source.views is None:
                is_known = False
                break
            mine = (source.views[0].after(view[0]), source.views[1].after(view[1]))
            if joined is not None:
                both = (joined[0].joined(mine[0]), joined[1].joined(mine[1]))
                if both[0] is None or both[1] is None:
                    is_known = False
                    break
                mine = (both[0], both[1])
            joined = mine
            h = view[0].clean(source.clean[0], shape[-2])
            w = view[1].clean(source.clean[1], shape[-1])
            h0, h1, w0, w1 = max(h0, h[0]), min(h1, h[1]), max(w0, w[0]), min(w1, w[1])
        made.append(_Map(shape, joined, ((h0, h1), (w0, w1))) if is_known else _Map(shape, None, _NOWHERE))
    return made


def _map_costs(
    stage: str, maps: Sequence[_Map], is_global: bool, unknown: str, sums: tuple[int, ...], num_blocks: int
) -> list[MapCost]:
    made = []
    for number, m in enumerate(maps):
        c, h, w = m.shape if len(m.shape) == 3 else (m.shape[0], 1, 1)
        view_h, view_w = m.views if m.views is not None and not unknown else (None, None)
        name = stage if len(maps) == 1 else f"{stage}[{number}]"
        made.append(
            MapCost(
                name, c, h, w, view_h, view_w, m.clean[0], m.clean[1], is_global,
                sums if number == 0 else _NOTHING, num_blocks,
            )
        )  # fmt: skip
    return made


def _promised(row: Row, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """The shapes that a row declares, for going on after it failed."""
    _, h, w = shapes[0]
    h, w = -(-h // row.stride), -(-w // row.stride)
    if isinstance(row.out, tuple):
        return tuple((c, -(-h // 2**i), -(-w // 2**i)) for i, c in enumerate(row.out))
    return ((row.out, h, w),)


def _check_promise(row: Row, info: BlockInfo, graph: OpGraph, shapes: tuple[Shape, ...]) -> None:
    """Refuse a block that returns something else than the row's `out` says."""
    outputs = graph.output_shapes
    wanted = row.out if isinstance(row.out, tuple) else (row.out,)
    shown = " and ".join("x".join(map(str, s)) for s in outputs)
    given = " and ".join("x".join(map(str, s)) for s in shapes)
    if info.is_head:
        if outputs[0] != (1, row.out):
            raise BblabError(f"{row.kind} returned {shown} for a map of {given}, expected 1x{row.out} class scores")
        return
    if any(len(s) != 4 or s[0] != 1 for s in outputs):
        raise BblabError(
            f"{row.kind} returned {shown} for a map of {given}, expected 1 x channels x height x width",
            hint="a block hands on a map; flatten in the head",
        )
    if tuple(s[1] for s in outputs) != wanted:
        promise = ", ".join(map(str, wanted))
        hint = "make `out` and the block's forward agree"
        raise BblabError(f"{row.kind} returned {shown} for a map of {given}, but out promises {promise}", hint=hint)
    if any(0 in s for s in outputs):
        raise BblabError(f"{row.kind} shrinks a map of {given} below 1x1", hint="use fewer strides or a larger input")


def _check_stride(row: Row, summary: BlockSummary, shapes: tuple[Shape, ...]) -> None:
    view = summary.views[0][0] if summary.views and summary.views[0] else None
    if view is None or len(shapes) != 1 or len(summary.outputs) != 1 or summary.unknown:
        return
    if view[0].jump != row.stride or view[1].jump != row.stride:
        seen = float(view[0].jump) if view[0].jump != row.stride else float(view[1].jump)
        raise BblabError(
            f"{row.kind} moves by {seen:g} pixels a unit, but the row says stride {row.stride}",
            hint="cuts and taps count on the row's stride: make them agree",
        )


# ---------------------------------------------------------------------------------------------- other libraries


def upto(graph: OpGraph, point: library.Cut) -> OpGraph:
    """The ops of a whole net up to a cut, with the weights that they read."""
    done = graph.ops[: point.num_ops]
    read = {i for op in done for i in op.params}
    # Indexes stay valid: weights that are not read are kept as empty places.
    params = tuple(w if i in read else replace(w, shape=(0,)) for i, w in enumerate(graph.params))
    ended = replace(graph, ops=done, outputs=(point.tensor,), params=params, module_outputs=())
    return library.with_map(ended, point)


def _library_cost(spec: ArchSpec, form: Form, given: Shape) -> NetCost:
    """The cost of another library's net; its stages are named by their strides (s2, s4, ...)."""
    whole = library.graph_of(spec, form, (given[1], given[2]))
    end = library.cut_point(whole, spec)
    maps: list[MapCost] = []
    before = _NOTHING
    unknown = ""
    s = summarise(whole)
    for point in library.stage_points(whole):
        if point.num_ops > end.num_ops:
            break
        s = summarise(upto(whole, point))
        here = _Map(s.outputs[0], s.views[0][0], s.clean[0])
        unknown = unknown or s.unknown
        own = tuple(a - b for a, b in zip(s.sums, before, strict=True))
        before = s.sums
        maps.extend(_map_costs(f"s{point.stride}", [here], s.is_global, s.unknown, own, 0))
    backbone = s
    total = backbone if spec.cut else summarise(whole)
    return NetCost(
        form, given, total.sums, backbone.sums, total.peak_bytes, backbone.peak_bytes, total.uncounted, unknown,
        tuple(maps), tuple(maps[-1:]), (), sum(w.numel for w in whole.params if w.is_learnable) - backbone.sums[0],
    )  # fmt: skip
