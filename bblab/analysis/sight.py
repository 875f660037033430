"""What each output unit of a block sees of the block's input, followed through the recorded ops.

Every tensor carries, for each input of the block, a window per axis, and the range of units that no padding has
touched. Pools over the whole map and attention make a tensor global; they do not widen the windows, which follow
convolutions and pools. An op that cannot be followed makes the window unknown and is named; nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bblab.analysis import window as win
from bblab.analysis.cost import einsum_terms
from bblab.analysis.window import SAME, Range, Window
from bblab.ops import Op, OpGraph, Shape

Pair = tuple[Window, Window]
"""Windows along height and width."""

Atom = tuple[str, int, int]
"""A part of a dimension: what it runs along ("h", "w", "" for channels), its size, its step in rows or columns."""
Layout = tuple[tuple[Atom, ...], ...]
"""The parts of every dimension, outermost first: what reshapes and permutes do to a map, without loss."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What one tensor sees.

    `axes`: which of its dimensions run along height and width; None for a tensor whose places have been pooled away
    or spread over other dimensions, which `layout` then tells. After attention, where places are mixed, there is no
    layout; `grid`, the map's height and width, tells when the map comes back.

    `resized_from`: the map before it was resized, as long as its places have not moved since; `is_mixed`: attention
    has mixed them since.
    """

    windows: dict[int, Pair]
    clean: tuple[Range, Range]
    axes: tuple[int, int] | None
    grid: tuple[int, int]
    is_global: bool = False
    unknown: str = ""
    layout: Layout | None = None
    resized_from: Sight | None = None
    is_mixed: bool = False


class _Lost(Exception):
    """The op's effect on places is not known."""


def follow(graph: OpGraph) -> list[Sight]:
    """The sight of each output of the graph."""
    sights: dict[int, Sight] = {}
    for number, index in enumerate(graph.inputs):
        sights[index] = _fresh(graph.tensors[index], number)
    seen_through: dict[int, int] = {}  # a view -> what it is a view of
    for op in graph.ops:
        given = [sights[i] for i in op.inputs if i in sights]
        if not given:
            continue
        if op.is_view:
            seen_through.update(dict.fromkeys(op.outputs, op.inputs[0]))
        for index in op.outputs:
            sights[index] = _step(op, graph, [(i, sights[i]) for i in op.inputs if i in sights], index)
        if op.is_in_place:
            written = op.inputs[0]
            sights[written] = sights[op.outputs[0]]
            seen_through[op.outputs[0]] = written
            while written in seen_through:  # x[:, :8].add_(y) changes x too
                outer = seen_through[written]
                if outer in sights and graph.tensors[outer] != graph.tensors[written]:
                    sights[outer] = _written_into(op, graph, (outer, sights[outer]), (written, sights[written]))
                elif outer in sights:
                    sights[outer] = sights[written]
                written = outer
    lost = Sight({}, ((0, -1), (0, -1)), None, (1, 1), unknown="an output that does not depend on the input")
    return [_ended(sights.get(i, lost)) for i in graph.outputs]


def _ended(sight: Sight) -> Sight:
    """An output whose places were not put back into height and width is not a map that can be followed."""
    if sight.unknown or not sight.windows or sight.axes == (2, 3) or (sight.axes is None and sight.is_global):
        return sight
    return replace(sight, unknown="an output whose places are not in its last two dimensions")


def _written_into(op: Op, graph: OpGraph, whole: tuple[int, Sight], part: tuple[int, Sight]) -> Sight:
    """A tensor of which a view was overwritten: its windows and the part's, where their places agree."""
    merged = _merge([whole, part], op, graph.tensors[whole[0]], graph)
    is_same_map = whole[1].axes == part[1].axes and whole[1].grid == part[1].grid
    unknown = whole[1].unknown or part[1].unknown or merged.unknown
    return replace(merged, unknown=unknown or ("" if is_same_map else f"{op.name} into a part of a map ({op.layer})"))


def _fresh(shape: Shape, number: int) -> Sight:
    if len(shape) != 4:
        return Sight({}, ((0, -1), (0, -1)), None, (1, 1), unknown="an input that is not a map")
    h, w = shape[2:]
    return Sight({number: (SAME, SAME)}, ((0, h - 1), (0, w - 1)), (2, 3), (h, w))


def _step(op: Op, graph: OpGraph, given: Sequence[tuple[int, Sight]], index: int) -> Sight:
    shape = graph.tensors[index]
    unknown = next((s.unknown for _, s in given if s.unknown), "")
    if op.name.startswith(("conv", "deform_conv")) and len(given) > 1 and given[0][0] == op.inputs[0]:
        # A kernel that was made of the map: the windows are those of what it slides over.
        given = [(given[0][0], replace(given[0][1], is_global=True))]
    merged = _merge(given, op, shape, graph)
    if unknown:
        return replace(merged, unknown=unknown)
    if merged.axes is None and merged.layout is None and merged.is_global and not merged.windows:
        return merged  # whatever is done to a vector of the whole map, it knows the whole map
    try:
        if op.name in _PRODUCTS and (places := _kept(op, given)) is not None:
            return _rearranged(merged, places, shape)
        rule = RULES.get(op.name)
        if rule is not None:
            return rule(op, graph, merged, shape)
        if op.name in _RESHAPING:
            return _relocate(merged, graph.tensors[given[0][0]], shape)
        if op.name in _POINTWISE:
            return _pointwise(merged, shape)
        raise _Lost
    except (_Lost, KeyError, IndexError, TypeError, ValueError):
        where = f"{op.name} ({op.layer})" if op.layer else op.name
        return replace(merged, unknown=where)


def _merge(given: Sequence[tuple[int, Sight]], op: Op, shape: Shape, graph: OpGraph) -> Sight:
    """One sight for all inputs: joined windows, the clean range common to all."""
    maps = [(i, s) for i, s in given if s.axes is not None or s.windows]
    if not maps:
        first = given[0][1]
        return replace(first, is_global=any(s.is_global for _, s in given))
    placed = [(i, s) for i, s in maps if s.axes is not None] or maps
    # A map met by a vector (a gate, a bias per channel) keeps its own places.
    rank = max(len(graph.tensors[i]) for i, _ in placed)
    largest = [s for i, s in placed if len(graph.tensors[i]) == rank]
    lead = max(largest, key=lambda s: (math.prod(s.grid), s.axes is not None or s.layout is not None))
    is_global = any(s.is_global for _, s in given)
    if lead.grid != (1, 1) and any(s.grid == (1, 1) for _, s in placed):
        # A map pooled to one unit by a window of its own size, then spread over all places: a global path.
        placed, maps = ([(i, s) for i, s in some if s.grid != (1, 1)] for some in (placed, maps))
        is_global = True
    windows: dict[int, Pair] = {}
    unknown = ""
    told = [_places(s, len(graph.tensors[i])) for i, s in placed if s.axes is not None or s.layout is not None]
    if op.name not in _PRODUCTS and len(set(told)) > 1:
        unknown = f"{op.name} of maps with their places in different dimensions ({op.layer})"
    for _, s in maps:
        for number, pair in s.windows.items():
            old = windows.get(number)
            if old is None:
                windows[number] = pair
                continue
            h, w = old[0].joined(pair[0]), old[1].joined(pair[1])
            if op.name in _PRODUCTS and (h is None or w is None):
                continue  # attention to a coarser map: global anyway, the windows follow the queries
            if h is None or w is None:
                unknown = f"{op.name} of maps at different strides ({op.layer})"
            else:
                windows[number] = (h, w)
    clean_h = (max(s.clean[0][0] for _, s in placed), min(s.clean[0][1] for _, s in placed))
    clean_w = (max(s.clean[1][0] for _, s in placed), min(s.clean[1][1] for _, s in placed))
    is_one_origin = all(s.resized_from == lead.resized_from for _, s in placed)
    return Sight(
        windows, (clean_h, clean_w), lead.axes, lead.grid, is_global, unknown, lead.layout,
        lead.resized_from if is_one_origin else None, any(s.is_mixed for _, s in maps),
    )  # fmt: skip


def _places(sight: Sight, rank: int) -> object:
    """Where a tensor has its places, counted from the last dimension, as broadcasting does."""
    if sight.axes is not None:
        return tuple(rank - a for a in sight.axes)
    return sight.layout


def _pointwise(sight: Sight, shape: Shape) -> Sight:
    """Elementwise with broadcasting: the places stay; one unit spread over a map is a global path."""
    if sight.axes is not None:
        h, w = sight.axes
        if (shape[h], shape[w]) == sight.grid:
            return sight
        if sight.grid == (1, 1):
            return _gathered(sight)
        raise _Lost
    if sight.layout is not None and _sizes(sight.layout) != shape:
        raise _Lost
    return sight


# ---------------------------------------------------------------------------------------------- moving windows


def _moved(sight: Sight, h: Window, w: Window, grid: tuple[int, int], axes: tuple[int, int] | None = None) -> Sight:
    """The sight after an op whose units see `h` and `w` of its input."""
    windows = {n: (pair[0].after(h), pair[1].after(w)) for n, pair in sight.windows.items()}
    clean = (h.clean(sight.clean[0], grid[0]), w.clean(sight.clean[1], grid[1]))
    made = replace(sight, windows=windows, clean=clean, grid=grid, axes=axes or sight.axes)
    stays = h == w == SAME and grid == sight.grid
    return made if stays else replace(made, resized_from=None, is_mixed=False)


def _gathered(sight: Sight) -> Sight:
    """The sight of a value pooled over the whole map: no places any more, it knows everything."""
    return Sight({}, ((0, 0), (0, 0)), None, (1, 1), is_global=True)


def _two(value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    assert isinstance(value, (list, tuple))
    return (int(value[0]), int(value[0])) if len(value) == 1 else (int(value[0]), int(value[1]))


def _on_map(sight: Sight, rank: int) -> bool:
    """Whether the op's window runs over the map's places; False for a pooled vector. Lost when axes are elsewhere."""
    if sight.axes is None:
        if sight.is_global and not sight.windows:
            return False
        raise _Lost
    if sight.axes != (rank - 2, rank - 1):
        raise _Lost
    return True


def _conv2d(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    if not _on_map(sight, len(shape)):
        return sight
    kernel = op.attrs["weight_shape"][-2:]
    return _slide(op, sight, shape, kernel)


def _pool2d(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    if not _on_map(sight, len(shape)):
        return sight
    return _slide(op, sight, shape, op.attrs["kernel"])


def _slide(op: Op, sight: Sight, shape: Shape, kernel: object) -> Sight:
    k = _two(kernel)
    given = op.attrs.get("stride")
    s = _two(given) if given not in (None, []) else (k if op.name.endswith("pool2d") else (1, 1))
    d = _two(op.attrs.get("dilation") or 1)
    pad = op.attrs.get("padding", 0)
    if pad == "same":
        pad = [(k[0] - 1) * d[0] // 2, (k[1] - 1) * d[1] // 2]
    p = (0, 0) if pad in ("valid", None) else _two(pad)
    h, w = (win.sliding(k[a], s[a], p[a], d[a]) for a in (0, 1))
    return _moved(sight, h, w, (shape[-2], shape[-1]))


def _transposed(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    if not _on_map(sight, len(shape)):
        return sight
    k, s = _two(op.attrs["weight_shape"][-2:]), _two(op.attrs.get("stride") or 1)
    p, d = _two(op.attrs.get("padding") or 0), _two(op.attrs.get("dilation") or 1)
    h, w = (win.transposed(k[a], s[a], p[a], d[a]) for a in (0, 1))
    if h is None or w is None:
        raise _Lost
    return _moved(sight, h, w, (shape[-2], shape[-1]))


def _adaptive(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    if not _on_map(sight, len(shape)):
        return sight
    out, size = (shape[-2], shape[-1]), sight.grid
    if out == (1, 1):
        return _gathered(sight)
    if size[0] % out[0] or size[1] % out[1]:
        raise _Lost
    steps = (size[0] // out[0], size[1] // out[1])
    return _moved(sight, win.sliding(steps[0], steps[0]), win.sliding(steps[1], steps[1]), out)


def _dims(value: object, rank: int) -> set[int]:
    if value is None:
        return set(range(rank))
    numbers = [value] if isinstance(value, int) else list(value)  # type: ignore[call-overload]
    return {int(n) % rank for n in numbers}


def _reduce(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    """mean, max, ... over some dimensions; max(a, b) of two maps is elementwise."""
    before = graph.tensors[op.inputs[0]]
    if op.name in ("max", "min") and len(op.inputs) > 1:
        return sight
    is_kept = len(shape) == len(before)
    gone = _dims(op.attrs.get("dim"), len(before))
    if sight.axes is None:
        if sight.layout is None:
            return sight
        if any(_has_places(sight.layout[d]) for d in gone):
            if any(_has_places(dim) for d, dim in enumerate(sight.layout) if d not in gone):
                raise _Lost
            return _gathered(sight)
        kept = (() if d in gone else dim for d, dim in enumerate(sight.layout) if is_kept or d not in gone)
        return replace(sight, layout=tuple(kept))
    if gone & set(sight.axes):
        return _gathered(sight)
    if is_kept:
        return sight
    h, w = (a - sum(g < a for g in gone) for a in sight.axes)
    return replace(sight, axes=(h, w))


def _along(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    """softmax, normalize, cumsum, a norm over trailing dimensions: global when it runs along the map."""
    rank = len(graph.tensors[op.inputs[0]])
    if op.name == "layer_norm":
        normalized = op.attrs.get("normalized_shape")
        count = 1 if isinstance(normalized, int) else len(normalized)  # type: ignore[arg-type]
        touched = set(range(rank - count, rank))
    else:
        touched = _dims(op.attrs.get("dim", 1), rank)
    if sight.axes is None:
        if sight.layout is None:
            return replace(sight, is_global=True)
        return replace(sight, is_global=sight.is_global or any(_has_places(sight.layout[d]) for d in touched))
    return replace(sight, is_global=True) if touched & set(sight.axes) else sight


def _whole_map_statistics(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    return replace(sight, is_global=True)


def _linear(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    if sight.axes is not None and len(shape) - 1 in sight.axes:
        return replace(sight, axes=None, is_global=True)
    if sight.layout is not None:
        if _has_places(sight.layout[-1]):
            return replace(sight, layout=None, is_global=True)
        return replace(sight, layout=(*sight.layout[:-1], _channels(shape[-1])))
    return sight


def _product(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    """A product of two activations mixes places (attention); with a weight it is a linear layer."""
    if len(op.inputs) == 1:
        return _linear(op, graph, sight, shape)
    return replace(sight, axes=None, layout=None, is_global=True, is_mixed=True)


def _kept(op: Op, given: Sequence[tuple[int, Sight]]) -> list[int | None] | None:
    """Of a product of one activation with weights: where each of its axes is in the result, None where summed over.

    None for a product of two activations, and where the axes are not known.
    """
    read, shapes = op.attrs.get("read"), op.attrs.get("shapes")
    if not read or not shapes:
        return None
    sighted = {i for i, _ in given}
    active = [n for n, index in enumerate(read) if index in sighted]
    if len(active) != 1 or len(sighted) != 1:
        return None
    terms, result = _axes_of(op, shapes)
    return [result.index(letter) if letter in result else None for letter in terms[active[0]]]


def _axes_of(op: Op, shapes: Sequence[Sequence[int]]) -> tuple[list[list[str]], list[str]]:
    """The axes of a product's factors and of its result, by letters. Raises _Lost for a product without them."""
    if op.name == "einsum":
        return einsum_terms(str(op.attrs["equation"]), shapes)
    if len(shapes) != 2 or op.name not in ("matmul", "rmatmul", "mm", "bmm", "addmm", "baddbmm", "linalg_matmul",
                                           "tensordot"):  # fmt: skip
        raise _Lost
    left, right = (len(s) for s in shapes)
    if op.name == "tensordot":
        first, second = op.attrs["dims"]
        a = [f"a{i}" for i in range(left)]
        b = [f"b{i}" for i in range(right)]
        for i, j in zip(first, second, strict=True):
            b[j % right] = a[i % left]
        summed = {a[i % left] for i in first}
        return [a, b], [letter for letter in (*a, *b) if letter not in summed]
    if left == 1 or right == 1:
        raise _Lost
    rank = max(left, right) - 2
    lead = [f"...{i}" for i in reversed(range(rank))]
    terms = [[*lead[rank - (left - 2) :], "n", "k"], [*lead[rank - (right - 2) :], "k", "m"]]
    return terms, [*lead, "n", "m"]


def _rearranged(sight: Sight, places: Sequence[int | None], shape: Shape) -> Sight:
    """A map whose axes went to `places`; where height or width was summed over with weights, it is global."""
    if sight.axes is not None:
        h, w = (places[a] for a in sight.axes)
        if h is None or w is None:
            return replace(sight, axes=None, is_global=True, is_mixed=True)
        return replace(sight, axes=(h, w))
    if sight.layout is None:
        return sight
    if any(_has_places(dim) for dim, place in zip(sight.layout, places, strict=True) if place is None):
        return replace(sight, layout=None, is_global=True, is_mixed=True)
    parts = [_channels(n) for n in shape]
    for dim, place in zip(sight.layout, places, strict=True):
        if place is not None and _has_places(dim):
            parts[place] = dim
    return _as_map(replace(sight, layout=tuple(parts)), shape)


def _batch_norm(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    """A norm with stored statistics is pointwise; one of the map's own looks at all of it."""
    return replace(sight, is_global=True) if op.attrs.get("training") else _pointwise(sight, shape)


def _cat(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    rank = len(graph.tensors[op.inputs[0]])
    dim = int(op.attrs.get("dim") or 0) % (rank + (op.name == "stack"))
    if sight.axes is None:
        if sight.layout is None:
            return sight
        parts = list(sight.layout)
        if op.name == "stack":
            parts.insert(dim, ())
        if _has_places(parts[dim]):
            raise _Lost
        parts[dim] = _channels(shape[dim])
        return replace(sight, layout=tuple(parts))
    if op.name == "stack":
        h, w = (a + (dim <= a) for a in sight.axes)
        return replace(sight, axes=(h, w))
    if dim in sight.axes:
        raise _Lost
    return sight


def _pad(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    pads = op.attrs["pad"]
    if any(not isinstance(p, int) for p in pads):
        raise _Lost
    rank = len(shape)
    if sight.axes is None:
        moved_dims = {rank - 1 - at // 2 for at, p in enumerate(pads) if p}
        if sight.layout is None:
            return sight
        if any(_has_places(sight.layout[d]) for d in moved_dims):
            raise _Lost
        parts = (_channels(shape[d]) if d in moved_dims else dim for d, dim in enumerate(sight.layout))
        return replace(sight, layout=tuple(parts))
    moved = []
    for axis in sight.axes:
        at = 2 * (rank - 1 - axis)
        moved.append(win.shifted(-pads[at] if at < len(pads) else 0))
    return _moved(sight, moved[0], moved[1], (shape[sight.axes[0]], shape[sight.axes[1]]))


def _resize(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    if not _on_map(sight, len(shape)):
        return sight
    mode = op.attrs.get("mode") or "nearest"
    if mode not in ("nearest", "nearest-exact", "bilinear", "area") or op.attrs.get("align_corners"):
        raise _Lost
    out = (shape[-2], shape[-1])
    if sight.grid == (1, 1) != out:
        return _gathered(sight)
    before = sight.resized_from
    if before is not None and sight.is_mixed and before.grid == out:
        # Attention wanted a map of another size, and it is back at its own. What interpolation spread on the way lies
        # on a path that sees everything; the windows, which follow convolutions and pools, are those of before.
        return replace(before, is_global=True)
    scale = op.attrs.get("scale_factor")
    if scale is not None:
        scales = [scale] * 2 if isinstance(scale, (int, float)) else scale
        if any(o != n * s for n, o, s in zip(sight.grid, out, scales, strict=True)):
            raise _Lost  # torch takes the places from the factor, not from the sizes
    h, w = (win.resized(n, o, mode) for n, o in zip(sight.grid, out, strict=True))
    return replace(_moved(sight, h, w, out), resized_from=replace(sight, resized_from=None))


def _pixel_shuffle(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    if not _on_map(sight, len(shape)):
        raise _Lost
    f = int(op.attrs["factor"])
    step = win.upsampled(f) if op.name == "pixel_shuffle" else win.sliding(f, f)
    return _moved(sight, step, step, (shape[-2], shape[-1]))


def _getitem(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    """Slices and indexes: a slice along the map is a crop; along other dimensions the places stay."""
    if sight.axes is None and sight.layout is None:
        return sight
    before = graph.tensors[op.inputs[0]]
    index = list(op.attrs["index"])
    if "..." in index:
        at = index.index("...")
        given = sum(i is not None for i in index) - 1
        index[at : at + 1] = [["slice", None, None, None]] * (len(before) - given)
    steps: dict[int, Window] = {}
    new_axis: dict[int, int] = {}
    axes = sight.axes or tuple(d for d, dim in enumerate(sight.layout or ()) if _has_places(dim))
    old = new = 0
    for item in index + [["slice", None, None, None]] * (len(before) - sum(i is not None for i in index)):
        if item is None:
            new += 1
            continue
        if isinstance(item, list) and item[:1] == ["slice"]:
            first, _, by = slice(*item[1:]).indices(before[old])
            steps[old] = win.shifted(first, by)
            new_axis[old] = new
            new += 1
        elif old in axes or (item != "tensor" and (not isinstance(item, int) or isinstance(item, bool))):
            raise _Lost
        elif item == "tensor":  # a list of indexes, as torch.tensor([...])
            new_axis[old] = new
            new += 1
        old += 1
    if new != len(shape):
        raise _Lost
    if sight.axes is None:
        if any(shape[new_axis[d]] != before[d] for d in axes):
            raise _Lost
        parts: list[tuple[Atom, ...]] = [_channels(n) for n in shape]
        for d in axes:
            parts[new_axis[d]] = (sight.layout or ())[d]
        return replace(sight, layout=tuple(parts))
    h, w = sight.axes
    grid = (shape[new_axis[h]], shape[new_axis[w]])
    return _moved(sight, steps[h], steps[w], grid, (new_axis[h], new_axis[w]))


def _setitem(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    """x[:, :8] = y: some channels of x become y's; a write to some places only is not followed."""
    if sight.axes is None:
        raise _Lost
    index = list(op.attrs["index"])
    if "..." in index:
        at = index.index("...")
        index[at : at + 1] = [["slice", None, None, None]] * (len(shape) - len(index) + 1)
    for axis in sight.axes:
        item = index[axis] if axis < len(index) else ["slice", None, None, None]
        if not isinstance(item, list) or slice(*item[1:]).indices(shape[axis]) != (0, shape[axis], 1):
            raise _Lost
    if not all(isinstance(item, list) for item in index):
        raise _Lost
    return _pointwise(sight, shape)


def _narrow(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    """A slice by another name; the start counts from the end where it is negative."""
    before = graph.tensors[op.inputs[0]]
    dim, start = int(op.attrs["dim"]) % len(before), int(op.attrs["start"])
    if sight.axes is None or dim not in sight.axes:
        return _split(op, graph, sight, shape)
    first = win.shifted(start % before[dim])
    h, w = (first if a == dim else SAME for a in sight.axes)
    return _moved(sight, h, w, (shape[sight.axes[0]], shape[sight.axes[1]]))


def _split(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    before = graph.tensors[op.inputs[0]]
    dim = int(op.attrs.get("dim") or 0) % len(before)
    if sight.axes is None:
        if sight.layout is None:
            return sight
        if _has_places(sight.layout[dim]):
            raise _Lost
        rest = (*sight.layout[:dim], *sight.layout[dim + 1 :])
        if op.name in ("unbind", "select"):
            return replace(sight, layout=rest)
        return replace(sight, layout=(*rest[:dim], _channels(shape[dim]), *rest[dim:]))
    if dim in sight.axes:
        raise _Lost
    if op.name in ("unbind", "select"):
        h, w = (a - (dim < a) for a in sight.axes)
        return replace(sight, axes=(h, w))
    return sight


def _permute(op: Op, graph: OpGraph, sight: Sight, shape: Shape) -> Sight:
    if sight.axes is None and sight.layout is None:
        return sight
    rank = len(shape)
    order = list(range(rank))
    if op.name == "permute":
        order = [int(d) % rank for d in op.attrs["dims"]]
    elif op.name in ("t", "T", "mT"):
        order[-1], order[-2] = order[-2], order[-1]
    else:
        a, b = int(op.attrs["dim0"]) % rank, int(op.attrs["dim1"]) % rank
        order[a], order[b] = order[b], order[a]
    if sight.axes is None:
        layout = sight.layout or ()
        return _as_map(replace(sight, layout=tuple(layout[d] for d in order)), shape)
    h, w = (order.index(a) for a in sight.axes)
    return replace(sight, axes=(h, w))


# ---------------------------------------------------------------------------------------------- reshapes


def _sizes(layout: Layout) -> Shape:
    return tuple(math.prod(size for _, size, _ in dim) for dim in layout)


def _channels(size: int) -> tuple[Atom, ...]:
    return () if size == 1 else (("", size, 1),)


def _has_places(dim: Sequence[Atom]) -> bool:
    return any(along for along, _, _ in dim)


def _relocate(sight: Sight, before: Shape, shape: Shape) -> Sight:
    """Where the places are after a reshape: the parts of the old dimensions, dealt out to the new ones."""
    if sight.axes is None and sight.layout is None:
        if sight.is_global and sight.windows and len(shape) == 4 and shape[2:] == sight.grid:
            return replace(sight, axes=(2, 3))  # back from attention: the map is known by its size
        return sight
    layout = sight.layout
    if layout is None:
        assert sight.axes is not None
        names = dict(zip(sight.axes, "hw", strict=True))
        layout = tuple(((names[d], n, 1),) if d in names and n > 1 else _channels(n) for d, n in enumerate(before))
    dealt = _dealt([atom for dim in layout for atom in dim], shape)
    if sight.axes is not None and 1 in sight.grid:  # a side of one unit leaves no trace in the parts
        return _relocate_thin(sight, before, shape)
    return _as_map(replace(sight, axes=None, layout=dealt), shape)


def _dealt(atoms: list[Atom], shape: Shape) -> Layout:
    """Row-major order kept: atoms, outermost first, cut and joined to dimensions of these sizes."""
    atoms, found = atoms[::-1], []
    for size in shape:
        dim: list[Atom] = []
        while size > 1:
            along, n, step = atoms.pop()
            if n > size:
                if n % size:
                    raise _Lost
                inner = n // size
                atoms.append((along, inner, step))
                n, step = size, step * inner
            if size % n:
                raise _Lost
            size //= n
            if dim and dim[-1][0] == along and (along == "" or dim[-1][2] == n * step):
                n *= dim.pop()[1]
            dim.append((along, n, step))
        found.append(tuple(dim))
    return tuple(found)


def _relocate_thin(sight: Sight, before: Shape, shape: Shape) -> Sight:
    """A map with a side of one unit: the dimensions with the same size and the same count of elements outside."""
    found: list[int] = []
    for axis in sight.axes or ():
        outer = math.prod(before[:axis])
        same = (d for d in range(len(shape)) if shape[d] == before[axis] and math.prod(shape[:d]) == outer)
        places = [d for d in same if d not in found]
        if not places:
            if sight.grid == (1, 1):  # a vector of all that one unit sees
                return replace(sight, axes=None, is_global=True)
            raise _Lost
        found.append(places[-1] if before[axis] == 1 else places[0])
    return replace(sight, axes=(found[0], found[1]))


def _as_map(sight: Sight, shape: Shape) -> Sight:
    """The sight as a map again, once height and width stand in a dimension each.

    Rows or columns left in the channels were moved there from every unit (space to depth); channels behind a height
    or width repeat each of its rows (depth to space).
    """
    layout = sight.layout or ()
    where = [d for d, dim in enumerate(layout) if _has_places(dim)]
    is_plain = len(where) == 2 and all(len(layout[d]) == 1 for d in where)
    if not is_plain and (len(shape) != 4 or not {2, 3} <= set(where) <= {1, 2, 3}):
        return sight
    if is_plain:
        axes = sorted(where, key=lambda d: layout[d][0][0])  # "h" before "w"
    else:
        axes = [2, 3]
    moves = []
    for axis, along in zip(axes, "hw", strict=True):
        dim = layout[axis]
        if dim[0][0] != along or any(name for name, _, _ in dim[1:]):
            return sight
        rest = [(n - 1) * step for d in layout for name, n, step in d if name == along and d is not dim]
        copies = math.prod(n for _, n, _ in dim[1:])
        moves.append(Window(dim[0][2], (0,) * copies, (sum(rest),) * copies))
    grid = (shape[axes[0]], shape[axes[1]])
    return replace(_moved(sight, moves[0], moves[1], grid, (axes[0], axes[1])), layout=None)


Rule = Callable[[Op, OpGraph, Sight, Shape], Sight]
RULES: dict[str, Rule] = {
    "conv2d": _conv2d,
    "max_pool2d": _pool2d,
    "avg_pool2d": _pool2d,
    "lp_pool2d": _pool2d,
    "conv_transpose2d": _transposed,
    "adaptive_avg_pool2d": _adaptive,
    "adaptive_max_pool2d": _adaptive,
    "pad": _pad,
    "interpolate": _resize,
    "upsample": _resize,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_shuffle,
    "getitem": _getitem,
    "linear": _linear,
    "layer_norm": _along,
    "batch_norm": _batch_norm,
    "group_norm": _whole_map_statistics,
    "instance_norm": _whole_map_statistics,
}
RULES.update(dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "std", "var", "norm"), _reduce))
RULES.update(dict.fromkeys(("softmax", "log_softmax", "normalize", "cumsum"), _along))
RULES["narrow"] = _narrow
RULES["setitem"] = _setitem
_PRODUCTS = frozenset(
    """
    matmul rmatmul mm bmm addmm baddbmm einsum linalg_matmul tensordot scaled_dot_product_attention flex_attention
    multi_head_attention_forward
    """.split()
)
RULES.update(dict.fromkeys(_PRODUCTS, _product))
RULES.update(dict.fromkeys(("cat", "stack"), _cat))
RULES.update(dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "select"), _split))
RULES.update(dict.fromkeys(("permute", "transpose", "swapaxes", "t", "T", "mT"), _permute))

_RESHAPING = frozenset("view reshape flatten unflatten squeeze unsqueeze ravel view_as reshape_as".split())
_POINTWISE = frozenset(
    """
    abs add addcmul addcdiv ceil celu clamp clamp_min clamp_max clip clone contiguous cos div dropout alpha_dropout
    dropout2d elu eq erf exp expm1 feature_dropout floor ge gelu gt hardshrink hardsigmoid hardswish hardtanh le
    leaky_relu log log1p log2 logsigmoid lt masked_fill maximum minimum mish mul ne neg nan_to_num pow prelu
    reciprocal relu relu6 remainder round rrelu rsqrt selu sigmoid sign silu sin softplus softsign sqrt square sub tan
    tanh tanhshrink threshold to type type_as float half double bfloat16 true_divide where lerp batch_norm detach data
    alias expand expand_as channel_shuffle copy zeros_like ones_like rms_norm
    """.split()
)
