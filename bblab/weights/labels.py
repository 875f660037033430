"""Which channel of an edited net is which channel of the old one.

Both nets run once on labels instead of numbers: a dense convolution writes new labels (its unit and the channel), a
depthwise one passes them on, a sum unites those of its terms, and concatenation, splitting and shuffling move them
about as they are. So a layer's input channels can be paired with the old layer's, whatever lies between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bblab.weights.matching import Net, running

Label = tuple[str, int, int]
"""(unit that made the channel, group, place in the group); ("", 0, c) is the image's channel c."""
Pairs = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Channels:
    """Pairs (new, old): output channels, the weight's second axis, and the channels of the input itself."""

    out: Pairs
    into: Pairs
    through: Pairs


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a unit read and how it is made. `shape`: of the weight; None for a layer that is no convolution."""

    labels: tuple[frozenset[Label], ...]
    shape: tuple[int, ...] | None
    groups: int = 1


def channels_of(
    new: Net, old: Net, mine: Mapping[str, nn.Module], other: Mapping[str, nn.Module], pairs: Mapping[str, str]
) -> tuple[dict[str, Channels], list[str]]:
    """Channel pairs for every pair of units; by their order alone where a net cannot be run on labels."""
    notes: list[str] = []
    seen = []
    for net, paths in ((new, mine), (old, other)):
        try:
            seen.append(_follow(net, paths))
        except Exception as error:  # a user's block may do anything with its input
            seen.append({})
            notes.append(f"{net.label}: channels paired by their order ({type(error).__name__} while following them)")
    renamed = {there: here for here, there in pairs.items()} | {"": ""}
    found = {}
    for here, there in pairs.items():
        a, b = seen[0].get(here), seen[1].get(there)
        if a is None or b is None:
            found[here] = _by_order(mine[here], other[there])
            continue
        through = _paired(a.labels, b.labels, renamed)
        if a.shape is None or b.shape is None:
            found[here] = Channels(through, through, through)
        elif _is_depthwise(a) and _is_depthwise(b):
            times = a.shape[0] // a.groups
            old_times = b.shape[0] // b.groups
            out = [(i * times + k, j * old_times + k) for i, j in through for k in range(min(times, old_times))]
            found[here] = Channels(out, [(0, 0)], through)
        elif a.groups == b.groups == 1:
            found[here] = Channels(_first(a.shape[0], b.shape[0]), through, through)
        else:
            per_group = _first(a.shape[1], b.shape[1])
            mine_out, other_out = (s.shape[0] // s.groups for s in (a, b))  # type: ignore[index]
            out = [
                (g * mine_out + k, g * other_out + k)
                for g in range(min(a.groups, b.groups))
                for k in range(min(mine_out, other_out))
            ]
            found[here] = Channels(out, per_group, through)
    return found, notes


def _is_depthwise(seen: _Seen) -> bool:
    return seen.groups > 1 and seen.groups == len(seen.labels)


def _first(new: int, old: int) -> Pairs:
    return [(i, i) for i in range(min(new, old))]


def _by_order(new: nn.Module, old: nn.Module) -> Channels:
    sizes = [max((tuple(p.shape) for p in m.parameters()), key=len) for m in (new, old)]
    out, *into = (_first(*axis) for axis in list(zip(*sizes, strict=False))[:2])
    return Channels(out, into[0] if into else out, out)


def _paired(new: Sequence[frozenset[Label]], old: Sequence[frozenset[Label]], renamed: Mapping[str, str]) -> Pairs:
    """Channels that share a label; by their order where none does (a layer came between)."""
    places: dict[Label, list[int]] = {}
    for j, labels in enumerate(old):
        for unit, group, k in labels:
            if unit in renamed:
                places.setdefault((renamed[unit], group, k), []).append(j)
    used: set[int] = set()
    found = []
    for i, labels in enumerate(new):
        for label in sorted(labels, reverse=True):
            place = next((j for j in places.get(label, ()) if j not in used), None)
            if place is not None:
                used.add(place)
                found.append((i, place))
                break
    return found or _first(len(new), len(old))


# ---------------------------------------------------------------------------------------------- running on labels

_MOVES = set(
    "cat concat stack split split_with_sizes chunk tensor_split view reshape permute transpose flatten unflatten "
    "getitem unsqueeze squeeze expand expand_as contiguous narrow select unbind movedim swapaxes pixel_shuffle "
    "pixel_unshuffle clone index_select flip roll".split()
)
_SUMS = {"add", "sub", "iadd", "isub", "radd", "rsub", "maximum", "minimum", "max", "min"}


class _Labels:
    """Label sets by number; a tensor of labels holds the numbers. 0 is no label."""

    def __init__(self) -> None:
        self.sets: list[frozenset[Label]] = [frozenset()]
        self.numbers: dict[frozenset[Label], int] = {frozenset(): 0}

    def number(self, labels: frozenset[Label]) -> int:
        known = self.numbers.get(labels)
        if known is None:
            known = self.numbers[labels] = len(self.sets)
            self.sets.append(labels)
        return known

    def made_by(self, unit: str, count: int, groups: int = 1) -> Tensor:
        per_group = count // groups
        return torch.tensor(
            [float(self.number(frozenset({(unit, c // per_group, c % per_group)}))) for c in range(count)]
        )

    def united(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = torch.broadcast_tensors(a, b)
        if torch.equal(a, b):
            return a.clone()
        size = len(self.sets)
        values, inverse = torch.unique(a.double() * size + b.double(), return_inverse=True)
        numbers = [self.number(self.sets[int(v) // size] | self.sets[int(v) % size]) for v in values.tolist()]
        return torch.tensor(numbers, dtype=a.dtype)[inverse]

    def read(self, vector: Tensor) -> tuple[frozenset[Label], ...]:
        return tuple(self.sets[int(v)] for v in vector.tolist())


def _follow(net: Net, paths: Mapping[str, nn.Module]) -> dict[str, _Seen]:
    """What every unit reads, by running the net on labels."""
    for size in dict.fromkeys(((32, 32), (96, 96), net.input[1:])):
        try:
            return _run(net, paths, size)
        except Exception as error:
            last = error
    raise last


def _run(net: Net, paths: Mapping[str, nn.Module], size: Sequence[int]) -> dict[str, _Seen]:
    names = {id(m): n for n, m in net.module.named_modules()}
    stack = [""]
    labels = _Labels()
    seen: dict[str, _Seen] = {}

    def unit() -> str:
        parts = stack[-1].split(".")
        return next((p for i in range(len(parts), 0, -1) if (p := ".".join(parts[:i])) in paths), stack[-1])

    def marked(t: Tensor) -> Tensor:
        t.is_labels = True  # type: ignore[attr-defined]
        return t

    def layer(name: str, x: Tensor, weight: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any], run: Any) -> Tensor:
        shape = tuple(weight.shape)
        if name == "linear":
            inside = x.reshape(-1, x.shape[-1])[0]
            seen.setdefault(unit(), _Seen(labels.read(inside), shape))
            return labels.made_by(unit(), shape[0]).expand(*x.shape[:-1], shape[0]).clone()
        out = run()
        groups = x.shape[1] // weight.shape[1]
        vector = x.flatten(2)[0, :, 0] if x.dim() > 2 else x[0]
        seen.setdefault(unit(), _Seen(labels.read(vector), shape, groups))
        if groups > 1 and groups == x.shape[1]:
            fresh = vector.repeat_interleave(shape[0] // groups)
        else:
            fresh = labels.made_by(unit(), shape[0], groups)
        return fresh.reshape(1, -1, *[1] * (out.dim() - 2)).expand(out.shape).clone()

    class Follow(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            given = [t for t in _flat([args, kwargs]) if getattr(t, "is_labels", False)]
            weights = [t for t in _flat([args, kwargs]) if isinstance(t, nn.Parameter)]
            name = getattr(func, "__name__", "").strip("_")
            if not given:
                return func(*args, **kwargs)
            x = given[0]
            if weights and (name == "linear" or name.startswith("conv")):
                return marked(layer(name, x, weights[0], args, kwargs, lambda: _on_meta(func, args, kwargs)))
            if weights:
                vector = x.flatten(2)[0, :, 0] if x.dim() > 2 else x[0]
                seen.setdefault(unit(), _Seen(labels.read(vector), None))
            if name in _MOVES:
                out = func(*args, **kwargs)
                for t in _flat(out):
                    marked(t)
                return out
            if len(given) > 1 and given[0] is not given[1]:
                if name in _SUMS:
                    return marked(labels.united(given[0], given[1]))
                return marked(max(given, key=Tensor.numel).clone())  # a gate: the larger factor is what it gates
            out = _on_meta(func, args, kwargs)
            if not isinstance(out, Tensor):
                return func(*args, **kwargs)
            if out.shape == x.shape:
                return marked(x.clone())
            if x.dim() == 4 and out.dim() >= 2 and out.shape[1] == x.shape[1]:  # pools, means, resizing, padding
                vector = x[:, :, :1, :1] if out.dim() == 4 else x[:, :, 0, 0].reshape(out.shape)
                return marked(vector.expand(out.shape).clone())
            return marked(torch.zeros(out.shape))

    def before(m: nn.Module, _: Any) -> None:
        stack.append(names.get(id(m), stack[-1]))

    def after(*_: Any) -> None:
        stack.pop()

    handles = [
        nn.modules.module.register_module_forward_pre_hook(before),
        nn.modules.module.register_module_forward_hook(after, always_call=True),
    ]
    image = labels.made_by("", net.input[0]).reshape(1, -1, 1, 1).expand(1, net.input[0], *size).clone()
    try:
        with torch.no_grad(), running(net) as module, Follow():
            module.eval()(marked(image))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in _flat(v)]
    if isinstance(value, dict):
        return [t for v in value.values() for t in _flat(v)]
    return []


def _on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().to("meta")
        if isinstance(value, (list, tuple)):
            return type(value)(moved(v) for v in value)
        if isinstance(value, dict):
            return {k: moved(v) for k, v in value.items()}
        return value

    return func(*moved(args), **moved(kwargs))
