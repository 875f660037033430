"""Which layer of one net is which layer of another, found by structure and proved by equal outputs.

Names and branch order of implementations differ; what is computed from what does not. The operations with weights
of both recorded nets form two graphs; colour refinement (Weisfeiler and Lehman 1968) in both directions pairs their
vertices. Pairing alone proves nothing: the outputs are compared in float64 with random weights and norm statistics.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bblab import build, ops
from bblab.errors import BblabError, RunError
from bblab.ops import Op, OpGraph
from bblab.spec import ArchSpec

EQUAL = 1e-9
"""Outputs whose largest relative difference is below this are equal: float64 rounding reaches 1e-13 in MobileOne-S4,
a wrong activation or epsilon 1e-3."""
SIZES = ((64, 79), (96, 96))
"""Heights and widths to compare at. Even and odd: TensorFlow's SAME and ceil_mode differ from symmetric padding at one
of them only. Nets that need their own input size get it."""


@dataclass(frozen=True, slots=True)
class Net:
    """A network to compare: `run` computes what is compared, `head` is the name of the part a tracker cuts off.

    `spec` is the declaration where there is one (its maps are compared at the last stage and at the taps).
    """

    label: str
    module: nn.Module
    run: Callable[[nn.Module, Tensor], Any]
    input: tuple[int, int, int] = (3, 224, 224)
    head: str = ""
    spec: ArchSpec | None = None

    def is_head(self, layer: str) -> bool:
        return bool(self.head) and (layer + ".").startswith(self.head + ".")


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation with weights. `before`: the layers (index, or -1 for the image) it reads, with their way in."""

    name: str
    key: tuple[Any, ...]
    params: tuple[str, ...]
    before: frozenset[tuple[int, Any]]
    attrs: Mapping[str, Any] = field(compare=False, hash=False)

    def __str__(self) -> str:
        kind, *rest = self.key
        if kind == "conv":
            out, per_group, kernel, stride, dilation, groups, bias = rest
            size = "x".join(map(str, kernel)) if kernel else "linear"
            text = f"{size} {per_group * groups}->{out}"
            text += f" stride {max(stride)}" if max(stride, default=1) > 1 else ""
            text += f" groups {groups}" if groups > 1 else ""
            text += f" dilation {max(dilation)}" if max(dilation, default=1) > 1 else ""
            return text + (" with bias" if bias else "")
        if kind == "norm":
            return f"norm of {rest[0]}"
        return f"{kind} {', '.join('x'.join(map(str, s)) for s in rest[0])}"


@dataclass(frozen=True, slots=True)
class Structure:
    """The layers of a net in execution order, and what each tensor was last computed from."""

    layers: tuple[Layer, ...]
    sources: Mapping[int, frozenset[int]]
    graph: OpGraph


@dataclass(frozen=True, slots=True)
class Misfit:
    """A layer without a partner. `side`: "spec" or "source"; `follows`: only because one before it has none."""

    side: str
    place: str
    what: str
    follows: bool

    def to_json(self) -> dict[str, Any]:
        return {"side": self.side, "place": self.place, "what": self.what, "follows": self.follows}


class NoMatch(RunError):
    """The weights do not fit: `misfits` lists all layers without a partner, of both sides."""

    def __init__(self, message: str, *, hint: str = "", misfits: Sequence[Misfit] = ()) -> None:
        super().__init__(message, hint=hint)
        self.misfits = tuple(misfits)


@dataclass(frozen=True, slots=True)
class Match:
    """Two nets that compute the same.

    keys: ours -> theirs, for every tensor. max_rel_diff: of the outputs as both are built; with_equal_eps: the same
    after their norms' epsilons were taken over, where epsilons differ. Both with random weights; weights_rel_diff
    with the weights as they are (None where outputs are not finite or all zero). compared_at: (our map, their module).
    """

    keys: Mapping[str, str]
    num_layers: int
    has_head: bool
    max_rel_diff: float
    with_equal_eps: float | None
    eps: tuple[tuple[float, float, int], ...]
    compared_at: tuple[tuple[str, str], ...]
    weights_rel_diff: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        return "equal" if self.max_rel_diff <= EQUAL else "equal_but_eps"

    def take(self, theirs: nn.Module, ours: nn.Module) -> dict[str, Tensor]:
        """Their weights under our names, in our shapes."""
        given, shapes = theirs.state_dict(), ours.state_dict()
        return {mine: given[other].reshape(shapes[mine].shape) for mine, other in self.keys.items()}


# ---------------------------------------------------------------------------------------------- running a net


@contextmanager
def running(net: Net, module: nn.Module | None = None) -> Iterator[nn.Module]:
    """The module with `net.run` as its forward."""
    module = net.module if module is None else module
    assert "forward" not in module.__dict__
    module.forward = lambda x: net.run(module, x)
    try:
        yield module
    finally:
        del module.__dict__["forward"]


def recorded(net: Net) -> tuple[OpGraph, tuple[int, int]]:
    """The ops of the net at the first size that it runs at."""
    last = ""
    for size in dict.fromkeys((*SIZES, net.input[1:])):
        for device in ("meta", "cpu"):  # a net that reads values cannot run on meta
            try:
                module = copy.deepcopy(net.module).to(device).eval()
                with running(net, module):
                    return ops.record(module, [torch.zeros(1, net.input[0], *size, device=device)]), size
            except BblabError:
                raise
            except Exception as error:
                last = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise RunError(f"{net.label} does not run at {net.input[1]}x{net.input[2]}: {last}")


def run_once(
    net: Net, module: nn.Module, x: Tensor, layers: Sequence[str] = ()
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The net's outputs, and those of the named modules that ran once and gave one tensor."""
    seen: dict[str, list[Any]] = {}
    handles = []
    by_name = dict(module.named_modules())

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            seen.setdefault(name, []).append(out.clone() if isinstance(out, Tensor) else None)

        return hook

    for name in dict.fromkeys(layers):
        if name in by_name:
            handles.append(by_name[name].register_forward_hook(keep(name)))
    try:
        with running(net, module), torch.no_grad():
            out = module.eval()(x)
    finally:
        for handle in handles:
            handle.remove()
    return _flat(out), {n: v[0] for n, v in seen.items() if len(v) == 1 and v[0] is not None}


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    return [t for v in value for t in _flat(v)] if not isinstance(value, (int, float, str, type(None))) else []


# ---------------------------------------------------------------------------------------------- structure

_ORDERED = ("cat", "stack", "matmul", "sub", "div", "bmm", "scaled_dot_product_attention", "multi_head_attention")


def structure(graph: OpGraph) -> Structure:
    """The operations with weights and what each of them reads from which."""
    layers: list[Layer] = []
    reach: dict[int, frozenset[tuple[int, Any]]] = {i: frozenset({(-1, None)}) for i in graph.inputs}
    for op in graph.ops:
        inputs = _ways_in(op, graph, reach)
        if op.params:
            layers.append(
                Layer(op.layer, _key(op, graph), tuple(graph.params[i].name for i in op.params), inputs, op.attrs)
            )
            inputs = frozenset({(len(layers) - 1, None)})
        for i in op.outputs:
            reach[i] = inputs
    return Structure(tuple(layers), {t: frozenset(n for n, _ in r) for t, r in reach.items()}, graph)


def _ways_in(op: Op, graph: OpGraph, reach: Mapping[int, frozenset[tuple[int, Any]]]) -> frozenset[tuple[int, Any]]:
    """All (layer, way) behind the op's inputs. Where order matters, the way says at which place they came in."""
    if op.name not in _ORDERED or len(op.inputs) < 2:
        return frozenset().union(*(reach.get(i, frozenset()) for i in op.inputs))
    found: set[tuple[int, Any]] = set()
    place = 0
    for i in op.inputs:
        # Only the first ordered op behind a layer counts: the way stays short, and parallel branches differ.
        found |= {(n, (op.name, place) if way is None else way) for n, way in reach.get(i, frozenset())}
        place += graph.tensors[i][1] if op.name == "cat" and len(graph.tensors[i]) > 1 else 1
    return frozenset(found)


def _key(op: Op, graph: OpGraph) -> tuple[Any, ...]:
    """What two layers must share to be partners: kind, shapes, stride, groups. A 1x1 convolution is a linear layer."""
    shapes = tuple(graph.params[i].shape for i in op.params)
    if op.name == "linear" or op.name.startswith("conv"):
        weight = tuple(op.attrs["weight_shape"])
        if len(weight) != len(shapes[0]) or op.name.startswith("conv_transpose"):
            return (op.name, shapes)
        kernel = weight[2:]
        axes = len(kernel)
        stride, dilation = (_each(op.attrs.get(k, 1), axes) for k in ("stride", "dilation"))
        groups = int(op.attrs.get("groups") or 1)
        if set(kernel) <= {1}:
            dilation = (1,) * axes
            if set(stride) <= {1} and groups == 1:
                kernel = stride = dilation = ()
        return ("conv", weight[0], weight[1], kernel, stride, dilation, groups, len(op.params) > 1)
    if op.name == "batch_norm":
        return ("norm", shapes[0][0], len(shapes))
    return (op.name, shapes)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) * axes if isinstance(value, int) else tuple(value or (1,))
    return tuple(values) if len(values) == axes else tuple(values) * axes


# ---------------------------------------------------------------------------------------------- pairing


def pair(ours: Structure, theirs: Structure) -> list[tuple[int, int]]:
    """Layers of equal place in both nets. Interchangeable ones (parallel branches) are paired in execution order."""
    names: dict[Any, int] = {}

    def colour(value: Any) -> int:
        return names.setdefault(value, len(names))

    # What stands before a layer settles whether both nets have it: one may go on where the other is cut.
    forward: list[list[int]] = []
    for side in (ours, theirs):
        colours: list[int] = []
        for layer in side.layers:
            behind = sorted((repr(way), -1 if n < 0 else colours[n]) for n, way in layer.before)
            colours.append(colour(("forward", layer.key, tuple(behind))))
        forward.append(colours)
    common = set(forward[0]) & set(forward[1])
    graphs = [_Coloured(s, c, common) for s, c in zip((ours, theirs), forward, strict=True)]
    _refine(graphs, colour)
    pairs: list[tuple[int, int]] = []
    while True:
        classes = [g.classes() for g in graphs]
        tied = next(
            (c for c, members in classes[0].items() if len(members) > 1 and len(classes[1].get(c, ())) > 1), None
        )
        if tied is None:
            break
        for place in range(max(len(c[tied]) for c in classes)):
            own = colour(("tie", tied, place))
            for g, members_of in zip(graphs, classes, strict=True):
                if place < len(members_of[tied]):
                    g.colours[members_of[tied][place]] = own
        _refine(graphs, colour)  # what belongs to a branch (its norm) follows it
    for c, mine in classes[0].items():
        if len(mine) == 1 and len(classes[1].get(c, ())) == 1:
            pairs.append((mine[0], classes[1][c][0]))
    return sorted(pairs)


class _Coloured:
    """The kept vertices of one structure with their neighbours and colours."""

    def __init__(self, side: Structure, colours: Sequence[int], keep: set[int]) -> None:
        self.colours = {i: c for i, c in enumerate(colours) if c in keep}
        self.neighbours: dict[int, list[tuple[str, int]]] = {i: [] for i in self.colours}
        for i in self.colours:
            for n, way in side.layers[i].before:
                if n in self.colours:
                    self.neighbours[i].append((f"before {way!r}", n))
                    self.neighbours[n].append((f"after {way!r}", i))

    def classes(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for i, c in self.colours.items():
            found.setdefault(c, []).append(i)
        return found


def _refine(graphs: Sequence[_Coloured], colour: Callable[[Any], int]) -> None:
    """Give vertices with different neighbourhoods different colours, until nothing changes."""
    count = -1
    while True:
        for g in graphs:
            g.colours = {
                i: colour((c, tuple(sorted((way, g.colours[n]) for way, n in g.neighbours[i]))))
                for i, c in g.colours.items()
            }
        now = sum(len(set(g.colours.values())) for g in graphs)
        if now == count:
            return
        count = now


# ---------------------------------------------------------------------------------------------- matching


def match(ours: Net, theirs: Net, *, seed: int = 0) -> Match:
    """Pair the layers of two nets and prove it. Raises NoMatch with what did not fit, on both sides, and where.

    All of ours must have a partner, but for a head that they do not have. Theirs may go on where ours is cut.
    """
    mine_graph, size = recorded(ours)
    other_graph, other_size = recorded(theirs)
    if other_size != size:
        size = tuple(ours.input[1:])  # type: ignore[assignment]
    mine, other = structure(mine_graph), structure(other_graph)
    pairs = pair(mine, other)
    paired = {a for a, _ in pairs}
    without_head = any(ours.is_head(layer.name) and i not in paired for i, layer in enumerate(mine.layers))
    if without_head:
        pairs = [(a, b) for a, b in pairs if not ours.is_head(mine.layers[a].name)]
    keys = _keys(ours, theirs, mine, other, pairs)
    absent = [
        key
        for key in ours.module.state_dict()
        if key not in keys and not key.endswith("num_batches_tracked") and not ours.is_head(key)
    ]
    if absent:
        raise _no_match(ours, theirs, mine, other, pairs, absent)
    eps = _eps(ours, theirs, mine, other, pairs)
    found = Match(keys, len(pairs), bool(ours.head) and not without_head, 0.0, None, eps, ())
    return _proved(ours, theirs, mine, other, pairs, found, size, seed)


def _keys(
    ours: Net, theirs: Net, mine: Structure, other: Structure, pairs: Sequence[tuple[int, int]]
) -> dict[str, str]:
    """Ours -> theirs, for the tensors that both state dicts hold."""
    known, given = ours.module.state_dict(), theirs.module.state_dict()
    found: dict[str, str] = {}
    for a, b in pairs:
        first, second = mine.layers[a], other.layers[b]
        found.update(zip(first.params, second.params, strict=True))
        if first.key[0] == "norm":
            found[f"{first.name}.num_batches_tracked"] = f"{second.name}.num_batches_tracked"
    return {k: v for k, v in found.items() if k in known and v in given}


def _eps(
    ours: Net, theirs: Net, mine: Structure, other: Structure, pairs: Sequence[tuple[int, int]]
) -> tuple[tuple[float, float, int], ...]:
    """(our epsilon, theirs, how many norms), where they differ."""
    counts: Counter[tuple[float, float]] = Counter()
    for a, b in pairs:
        values = [
            getattr(net.module.get_submodule(side.layers[i].name), "eps", None)
            for net, side, i in ((ours, mine, a), (theirs, other, b))
        ]
        if None not in values and values[0] != values[1]:
            counts[values[0], values[1]] += 1  # type: ignore[index]
    return tuple((a, b, n) for (a, b), n in counts.items())


def _no_match(
    ours: Net,
    theirs: Net,
    mine: Structure,
    other: Structure,
    pairs: Sequence[tuple[int, int]],
    absent: Sequence[str],
) -> NoMatch:
    """The layers without a partner; first those whose predecessors all have one, for the others follow from them."""
    misfits: list[Misfit] = []
    for name, net, side, done in (
        ("spec", ours, mine, {a for a, _ in pairs}),
        ("source", theirs, other, {b for _, b in pairs}),
    ):
        for i, layer in enumerate(side.layers):
            if i not in done and not (name == "spec" and net.is_head(layer.name)):
                follows = any(n >= 0 and n not in done for n, _ in layer.before)
                misfits.append(Misfit(name, layer.name, str(layer), follows))
    listed = {p for layer in mine.layers for p in layer.params}
    misfits += [
        Misfit("spec", key, "is used by no operation of this spec", False) for key in absent if key not in listed
    ]
    misfits.sort(key=lambda m: (m.side != "spec", m.follows))
    lines = []
    for name, net in (("spec", ours), ("source", theirs)):
        own = [m for m in misfits if m.side == name]
        first = [m for m in own if not m.follows][:12] or own[:12]
        lines += [f"  in {net.label}: {m.place or '(top)'}: {m.what}" for m in first]
        if len(own) > len(first):
            lines.append(f"  in {net.label}: and {len(own) - len(first)} more behind them")
    counts = [sum(m.side == s for m in misfits) for s in ("spec", "source")]
    return NoMatch(
        f"{ours.label} does not take the weights of {theirs.label}: {counts[0]} of {len(mine.layers)} layers here and "
        f"{counts[1]} of {len(other.layers)} there have no partner\n" + "\n".join(lines),
        hint="write the spec that matches, import into it, and take what fits of that file over with --inherit",
        misfits=misfits,
    )


# ---------------------------------------------------------------------------------------------- proving


def _proved(
    ours: Net,
    theirs: Net,
    mine: Structure,
    other: Structure,
    pairs: Sequence[tuple[int, int]],
    found: Match,
    size: tuple[int, int],
    seed: int,
) -> Match:
    """The match with its measured differences. Raises NoMatch where outputs differ for more than epsilon."""
    a = copy.deepcopy(ours.module).eval()
    b = copy.deepcopy(theirs.module).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = (ours.input[0], *size)
        look = replace(ours.spec or ArchSpec("random"), input=shape, tracker=None)
        with running(ours, a):
            build.calibrate(a, look, seed=seed, perturb=0.5)
        x = build.probe(look, 1, seed=seed + 2, limit_px=max(size)).double()
    a, b = a.double(), b.double()
    points = _places(ours, mine, other, pairs)
    norms = [(mine.layers[i].name, other.layers[j].name) for i, j in pairs if mine.layers[i].key[0] != "conv"]
    # Norms of some libraries include the activation; a convolution's output is its own.
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    pairs = [(i, j) for i, j in pairs if mine.layers[i].key[0] == "conv"]
    between = [(mine.layers[i].name, other.layers[j].name) for i, j in pairs]
    pure = [isinstance(a.get_submodule(m), plain) and isinstance(b.get_submodule(t), plain) for m, t in between]
    pairs = [p for p, is_pure in zip(pairs, pure, strict=True) if is_pure]
    between = [p for p, is_pure in zip(between, pure, strict=True) if is_pure]
    as_given = copy.deepcopy(a)
    as_given.load_state_dict(found.take(b, as_given), strict=False)
    given = _compare(ours, theirs, as_given, b, x, points, between).difference
    _give(a, b, found.keys)
    first = _compare(ours, theirs, a, b, x, points, between)
    equalised: _Compared | None = None
    if found.eps:
        for here, there in norms:
            one, two = a.get_submodule(here), b.get_submodule(there)
            if hasattr(one, "eps") and hasattr(two, "eps"):
                one.eps = two.eps
        equalised = _compare(ours, theirs, a, b, x, points, between)
    last = equalised or first
    if not last.difference <= EQUAL:
        raise NoMatch(
            f"every layer of {ours.label} has a partner in {theirs.label}, but their outputs differ by "
            f"{last.difference:.2g} of the largest value\n  {_why(mine, other, pairs, last)}",
            hint="the spec differs in what has no weights: activation, padding, pooling, order; `bblab profile SPEC "
            "--layers` lists ours",
        )
    return replace(
        found,
        max_rel_diff=first.difference,
        with_equal_eps=equalised.difference if equalised else None,
        compared_at=tuple(last.places),
        weights_rel_diff=given if math.isfinite(given) else None,
        notes=tuple(last.notes),
    )


def _give(ours: nn.Module, theirs: nn.Module, keys: Mapping[str, str]) -> None:
    """Put our weights into their net."""
    given, target = ours.state_dict(), theirs.state_dict()
    for mine, other in keys.items():
        target[other].copy_(given[mine].reshape(target[other].shape))


@dataclass(frozen=True, slots=True)
class _Place:
    """One of our outputs and where the same should be in theirs: module names, or the index of their output."""

    output: int
    name: str
    candidates: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Compared:
    difference: float
    places: list[tuple[str, str]]
    notes: list[str]
    first_apart: int | None


def _places(ours: Net, mine: Structure, other: Structure, pairs: Sequence[tuple[int, int]]) -> list[_Place]:
    """Our maps and scores with the tensors of theirs that come from the same layers, the latest first."""
    partner = dict(pairs)
    once = Counter(name for name, _, _ in other.graph.module_outputs)
    places = []
    for position, (name, tensor) in enumerate(zip(_output_names(ours, mine.graph), mine.graph.outputs, strict=True)):
        sources = mine.sources.get(tensor, frozenset())
        if not sources or not sources <= partner.keys():
            continue
        wanted, shape = frozenset(partner[n] for n in sources), mine.graph.tensors[tensor]
        found: list[str | int] = [
            i
            for i, t in enumerate(other.graph.outputs)
            if other.sources.get(t) == wanted and other.graph.tensors[t] == shape
        ]
        for module, t, _ in reversed(other.graph.module_outputs):
            if once[module] == 1 and other.sources.get(t) == wanted and other.graph.tensors[t] == shape:
                found.append(module)
        places.append(_Place(position, name, tuple(found)))
    return places


def _output_names(net: Net, graph: OpGraph) -> list[str]:
    """Stage names of a spec's net, and `head`."""
    if net.spec is None or not net.spec.stages:
        return [f"output {i}" for i in range(len(graph.outputs))]
    known = {f"stages.{stage.name}" for stage in net.spec.stages} | {"head"}
    by_tensor = {t: module.removeprefix("stages.") for module, t, _ in graph.module_outputs if module in known}
    return [by_tensor.get(t, f"output {i}") for i, t in enumerate(graph.outputs)]


def _compare(
    ours: Net,
    theirs: Net,
    a: nn.Module,
    b: nn.Module,
    x: Tensor,
    points: Sequence[_Place],
    between: Sequence[tuple[str, str]],
) -> _Compared:
    mine, my_layers = run_once(ours, a, x, [first for first, _ in between])
    wanted = [c for p in points for c in p.candidates if isinstance(c, str)]
    outputs, their_layers = run_once(theirs, b, x, [*(second for _, second in between), *wanted])
    notes: list[str] = []
    places: list[tuple[str, str]] = []
    worst = 0.0
    for point in points:
        best: tuple[float, int] | None = None
        for rank, candidate in enumerate(point.candidates):
            there = outputs[candidate] if isinstance(candidate, int) else their_layers.get(candidate)
            if there is None or there.shape != mine[point.output].shape:
                continue
            apart = _relative(mine[point.output], there)
            if best is None or apart < best[0]:
                best = (apart, rank)
            if apart <= EQUAL:
                break
        if best is None:
            continue
        chosen = point.candidates[best[1]]
        if best[1] > 0 and best[0] <= EQUAL:
            later = point.candidates[0]
            if not _same(their_layers, outputs, chosen, later):
                notes.append(f"{point.name} equals {chosen}; theirs goes on to {later or 'its output'} without weights")
        worst = max(worst, best[0])
        places.append((point.name, str(chosen) if isinstance(chosen, str) else "output"))
    first_apart, apart_layers = None, []
    for i, (own, given) in enumerate(between):
        if own in my_layers and given in their_layers:
            one, two = my_layers[own], their_layers[given]
            apart_layers.append(_relative(one.reshape(-1), two.reshape(-1)) if one.numel() == two.numel() else math.inf)
            if first_apart is None and apart_layers[-1] > EQUAL:
                first_apart = i
    last = points[-1].name if points else ""
    if last not in (name for name, _ in places):  # no map of theirs has its layers and its shape
        worst = max([worst, *apart_layers], default=0.0)
        if not apart_layers:
            raise RunError(f"nothing to compare {ours.label} and {theirs.label} by")
        if worst <= EQUAL:
            notes.append(f"{theirs.label} hands out no map like {last or 'ours'}: compared after every convolution")
        places.append(between[-1])
    return _Compared(worst, places, notes, first_apart)


def _same(layers: Mapping[str, Tensor], outputs: Sequence[Tensor], a: str | int, b: str | int) -> bool:
    one, two = (outputs[c] if isinstance(c, int) else layers.get(c) for c in (a, b))
    return one is not None and two is not None and torch.equal(one, two)


def _relative(a: Tensor, b: Tensor) -> float:
    """max |a - b| over max |b|; infinite where a value is not finite, or all are zero."""
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    largest = float(b.abs().max())
    if largest == 0:
        return float("inf")
    return float((a - b).abs().max()) / largest


def _why(mine: Structure, other: Structure, pairs: Sequence[tuple[int, int]], found: _Compared) -> str:
    if found.first_apart is None:
        return "all layers give the same: the difference comes after the last of them"
    i, j = pairs[found.first_apart]
    first, second = mine.layers[i], other.layers[j]
    pads = [layer.attrs.get("padding") for layer in (first, second)]
    text = f"first apart at {first.name} ({first}), theirs {second.name}"
    before = [mine.layers[n].name for n, _ in first.before if n >= 0]
    if first.key[0] == "conv" and first.key[3] and _each(pads[0] or 0, 2) != _each(pads[1] or 0, 2):
        return f"{text}: padding {pads[0]} here, {pads[1]} there"
    return f"{text}; what stands before them: {', '.join(sorted(before)) or 'the image'}"
