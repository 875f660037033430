"""Keep what still fits of older weights after an edit of the spec.

Stages are paired by name, rows by kind and order, layers by name or, in a row of another kind, by structure. A kernel
grows by zeros around it (the function stays) or is cropped, channels are sliced on both sides of each connection, a
fused kernel goes into one branch of a re-parameterised layer. Carrying weights over an edit of the architecture:
Net2Net, Chen et al. 2016, arXiv:1511.05641.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bblab import build
from bblab.blockkit import ConvNorm, RepConv, folded
from bblab.spec import ArchSpec, Row, Stage
from bblab.weights import matching
from bblab.weights.labels import Channels, channels_of
from bblab.weights.matching import Net

T = TypeVar("T")
RANDOM, INHERITED, SET = 0, 1, 2  # what each number of the new net is; SET: zero or one, so that the sum is unchanged


@dataclass(frozen=True, slots=True)
class Leftover:
    """A tensor of the new net that is not, or not wholly, inherited."""

    name: str
    shape: tuple[int, ...]
    random: int
    why: str

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "shape": list(self.shape), "random": self.random, "why": self.why}


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What an edited net took over. Shares are of learnable parameters and of multiply-adds; `set` ones are the zeros
    and ones that keep the function. max_rel_diff: new against old net on random images, float64, at the last tap;
    None, with the reason, where their maps have different shapes."""

    state: Mapping[str, Tensor]
    params_inherited_ratio: float
    params_set_ratio: float
    macs_inherited_ratio: float
    max_rel_diff: float | None
    no_difference_because: str
    leftovers: tuple[Leftover, ...]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Book:
    """The new state, being filled: `codes` tells for every number where it came from, `why` for every tensor."""

    state: dict[str, Tensor]
    codes: dict[str, Tensor]
    why: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, name: str, value: Tensor, codes: Tensor, why: str = "") -> None:
        self.state[name] = torch.where(codes > 0, value.to(self.state[name].dtype), self.state[name])
        self.codes[name] = codes
        if why:
            self.why[name] = why

    def set(self, name: str, value: float) -> None:
        self.state[name] = torch.full_like(self.state[name], value)
        self.codes[name] = torch.full(self.state[name].shape, SET, dtype=torch.uint8)


# ---------------------------------------------------------------------------------------------- what is paired


def _align(new: Sequence[T], old: Sequence[T], score: Callable[[T, T], float]) -> list[tuple[int, int]]:
    """Pairs in the same order on both sides with the largest sum of scores; a score of 0 is no pair."""
    rows, columns = len(new), len(old)
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows - 1, -1, -1):
        for j in range(columns - 1, -1, -1):
            s = score(new[i], old[j])
            both = s + best[i + 1][j + 1] if s > 0 else 0.0
            best[i][j] = max(both, best[i + 1][j], best[i][j + 1])
    i = j = 0
    pairs = []
    while i < rows and j < columns:
        s = score(new[i], old[j])
        if s > 0 and best[i][j] == s + best[i + 1][j + 1]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return pairs


def _row_score(new: Row, old: Row) -> float:
    if new.kind != old.kind:
        return 0.5 + 0.25 * (new.out == old.out) + 0.25 * (new.stride == old.stride)
    arguments = difflib.SequenceMatcher(None, new.args, old.args).ratio() if new.args or old.args else 1.0
    return 2 + (new.stride == old.stride) + (new.out == old.out) + arguments


def rows_of(new: ArchSpec, old: ArchSpec) -> dict[str, str]:
    """Pairs of rows as paths: "stages.s8.0" -> "stages.s8.1"; the head too."""
    by_name = {s.name: s for s in old.stages}
    stages: list[tuple[Stage, Stage]] = [(s, by_name[s.name]) for s in new.stages if s.name in by_name]
    rest_new = [s for s in new.stages if s.name not in by_name]
    rest_old = [s for s in old.stages if s.name not in {t.name for t in new.stages}]
    same = lambda a, b: float(a.stride == b.stride and a.rows[0].kind == b.rows[0].kind)  # noqa: E731
    stages += [(rest_new[i], rest_old[j]) for i, j in _align(rest_new, rest_old, same)]  # renamed stages
    found: dict[str, str] = {}
    for mine, other in stages:
        for i, j in _align(mine.rows, other.rows, _row_score):
            found[f"stages.{mine.name}.{i}"] = f"stages.{other.name}.{j}"
    if new.head is not None and old.head is not None:
        found["head"] = "head"
    return found


def units(module: nn.Module) -> dict[str, nn.Module]:
    """The modules that are inherited whole: re-parameterised layers, conv-norm pairs, and single layers beside them.

    Taken from the train form; a deploy form has the same paths.
    """
    found: dict[str, nn.Module] = {}

    def walk(path: str, m: nn.Module) -> None:
        prefix = f"{path}." if path else ""
        if isinstance(m, RepConv):
            found[path] = m
            walk(f"{prefix}se", m.se)
        elif isinstance(m, ConvNorm):
            found[path] = m
        else:
            if any(True for _ in m.parameters(recurse=False)):
                found[path] = m
            for name, child in m.named_children():
                walk(prefix + name, child)

    walk("", module)
    return found


def unit_pairs(
    new: ArchSpec, old: ArchSpec, mine: Mapping[str, nn.Module], other: Mapping[str, nn.Module]
) -> dict[str, str]:
    """Paths of units that carry on: by name inside paired rows, then by structure where names differ."""
    found: dict[str, str] = {}
    for here, there in rows_of(new, old).items():
        own = [p for p in mine if p == here or p.startswith(here + ".")]
        given = [p for p in other if p == there or p.startswith(there + ".")]
        by_name = {p.removeprefix(there): p for p in given}
        for p in own:
            q = by_name.get(p.removeprefix(here))
            if q is not None and _unit_score(p, mine[p], q, other[q]) > 0:
                found[p] = q
        rest, free = [p for p in own if p not in found], [q for q in given if q not in found.values()]
        for i, j in _align(rest, free, lambda p, q: _unit_score(p, mine[p], q, other[q])):
            found[rest[i]] = free[j]
    return found


def _unit_score(here: str, new: nn.Module, there: str, old: nn.Module) -> float:
    """How well one unit can take another's place; 0 where it cannot."""
    a, b = _trait(new), _trait(old)
    if a is None or b is None:
        same = [tuple(p.shape) for p in new.parameters()] == [tuple(p.shape) for p in old.parameters()]
        return 1.0 if type(new) is type(old) or same else 0.0
    if a[:2] != b[:2] or (".se." in here) != (".se." in there):
        return 0.0
    return 1 + (a[2] == b[2]) + (a[3] == b[3]) + (here.rpartition(".")[2] == there.rpartition(".")[2])


def _trait(unit: nn.Module) -> tuple[Any, ...] | None:
    """(is a convolution or linear, is depthwise, kernel, output channels); None for other layers."""
    conv = _first_conv(unit)
    if conv is None:
        return None
    if isinstance(conv, nn.Linear):
        return ("dense", False, (1, 1), conv.out_features)
    depthwise = conv.groups > 1 and conv.groups == conv.in_channels
    return ("dense", depthwise, conv.kernel_size, conv.out_channels)


def _first_conv(unit: nn.Module) -> nn.Conv2d | nn.Linear | None:
    if isinstance(unit, RepConv):
        unit = unit.convs[0]
    if isinstance(unit, ConvNorm):
        unit = unit.conv
    return unit if isinstance(unit, (nn.Conv2d, nn.Linear)) else None


# ---------------------------------------------------------------------------------------------- fitting tensors


def _fit(
    like: Tensor, value: Tensor, out: list[tuple[int, int]], into: list[tuple[int, int]] | None
) -> tuple[Tensor, Tensor, str]:
    """`value` laid into the shape of `like`: (new, old) channel pairs of axis 0 and 1, kernels by their centres.

    Returns the tensor, where each number came from, and why not all of it could be filled.
    """
    made = torch.zeros_like(like, dtype=value.dtype)
    codes = torch.zeros(like.shape, dtype=torch.uint8)
    if not out or (into is not None and not into):
        return made, codes, "no channel of it goes on"
    rows, old_rows = (torch.tensor(side) for side in zip(*out, strict=True))
    if into is None or like.dim() < 2:
        if like.shape[1:] != value.shape[1:]:
            return made, codes, f"{_shown(value)} there"
        made[rows], codes[rows] = value[old_rows], INHERITED
    else:
        columns, old_columns = (torch.tensor(side) for side in zip(*into, strict=True))
        part = value[old_rows][:, old_columns]
        window: list[slice] = []
        for axis in range(2, like.dim()):
            have, want = part.shape[axis], like.shape[axis]
            if (have - want) % 2:
                return made, codes, f"kernel {_shown(value[0, 0])} there: its centre falls between pixels"
            if have > want:
                part = part.narrow(axis, (have - want) // 2, want)
                have = want
            window.append(slice((want - have) // 2, (want + have) // 2))
        grown = torch.zeros(len(rows), len(columns), *like.shape[2:], dtype=value.dtype)
        grown_codes = torch.full(grown.shape, SET, dtype=torch.uint8)
        grown[(slice(None), slice(None), *window)] = part
        grown_codes[(slice(None), slice(None), *window)] = INHERITED
        made[rows[:, None], columns[None, :]] = grown
        codes[rows[:, None], columns[None, :]] = grown_codes
        if len(set(old_columns.tolist())) == value.shape[1]:
            # All old inputs are there: what the new ones send into old outputs is zero, so that these stay as they are.
            beside = torch.ones(like.shape[1], dtype=torch.bool)
            beside[columns] = False
            codes[rows[:, None], torch.nonzero(beside)[:, 0][None, :]] = SET
    why = "" if bool((codes > 0).all()) else f"{_shown(value)} there: the other channels are new"
    return made, codes, why


def _shown(t: Tensor) -> str:
    return "x".join(map(str, t.shape))


def _kernel(conv: nn.Conv2d | nn.Linear) -> Tensor:
    weight = conv.weight.detach().double()
    return weight[:, :, None, None] if weight.dim() == 2 else weight


# ---------------------------------------------------------------------------------------------- units


def _fused(unit: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Kernel and bias of a convolution-like unit in any form; None for others."""
    if isinstance(unit, RepConv):
        unit = unit.deploy()
    inner = getattr(unit, "conv", None)
    if isinstance(unit, nn.Sequential) and isinstance(inner, nn.Conv2d):
        unit = inner
    if isinstance(unit, ConvNorm):
        return folded(unit.conv, unit.norm)
    if isinstance(unit, (nn.Conv2d, nn.Linear)):
        kernel = _kernel(unit)
        bias = torch.zeros_like(kernel[:, 0, 0, 0]) if unit.bias is None else unit.bias.detach().double()
        return kernel, bias
    return None


def _carry(book: _Book, path: str, new: nn.Module, old: nn.Module, channels: Channels) -> None:
    """Fill the new unit at `path` from the old one."""
    out, into = channels.out, channels.into
    if isinstance(new, (RepConv, ConvNorm)):
        mine = {n: p for n, p in new.state_dict().items() if not n.startswith("se.")}
        other = {n: p for n, p in old.state_dict().items() if not n.startswith("se.")}
        extra = mine.keys() - other.keys()
        same = other.keys() <= mine.keys() and (not extra or isinstance(new, RepConv))
        if same and all(_is_branch(n, other) for n in extra):
            for name in other:
                _copy(book, f"{path}.{name}", other[name], channels, is_identity=name.startswith("identity."))
            for branch in sorted({_branch(n) for n in extra}):
                _silence(book, f"{path}.{branch}", new.get_submodule(branch))
                book.notes.append(f"{path}: the new branch {branch} adds nothing at first")
            return
        fused = _fused(old)
        if fused is None:
            book.why[path] = f"{type(old).__name__} there"
            return
        kernel, bias = fused
        _place(book, path, new, kernel, bias, channels)
        return
    if isinstance(new, (nn.Conv2d, nn.Linear)):
        fused = _fused(old)
        if fused is not None:
            kernel, bias = fused
            like = book.state[f"{path}.weight"]
            shaped = like if like.dim() > 2 else like[:, :, None, None]
            value, codes, why = _fit(shaped, kernel, out, into)
            book.put(f"{path}.weight", value.reshape(like.shape), codes.reshape(like.shape), why)
            if new.bias is not None:
                book.put(f"{path}.bias", *_fit(book.state[f"{path}.bias"], bias, out, None))
            elif bool(bias.any()):
                book.notes.append(f"{path} has no bias: that of the old layer is lost")
            return
    for name, value in old.state_dict().items():
        if f"{path}.{name}" in book.state:
            _copy(book, f"{path}.{name}", value, channels, is_identity=True)


def _branch(name: str) -> str:
    """convs.1.norm.weight -> convs.1; scale.conv.weight -> scale."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "convs" else parts[0]


def _is_branch(name: str, other: Mapping[str, Any]) -> bool:
    """The extra tensor belongs to a branch that is wholly new."""
    return _branch(name) not in ("conv", "norm") and not any(_branch(n) == _branch(name) for n in other)


def _copy(book: _Book, name: str, value: Tensor, channels: Channels, *, is_identity: bool) -> None:
    like = book.state[name]
    if like.dim() == 0:
        book.put(name, value, torch.ones((), dtype=torch.uint8))
        return
    rows = channels.through if is_identity and like.dim() == 1 else channels.out
    if like.dim() > 1 and like.dim() != value.dim():
        book.why[name] = f"{_shown(value)} there"
        return
    if like.dim() == 1 or like.dim() == 2 or like.dim() == 4:
        made, codes, why = _fit(
            like,
            value.double() if value.is_floating_point() else value,
            rows,
            channels.into if like.dim() > 1 else None,
        )
        book.put(name, made, codes, why)
    elif like.shape == value.shape:
        book.put(name, value, torch.full(like.shape, INHERITED, dtype=torch.uint8))
    else:
        book.why[name] = f"{_shown(value)} there"


def _silence(book: _Book, path: str, branch: nn.Module) -> None:
    """A branch that adds nothing: the scale and shift of its norm are zero."""
    norm = branch.norm if isinstance(branch, ConvNorm) else branch
    prefix = f"{path}.norm" if isinstance(branch, ConvNorm) else path
    assert isinstance(norm, nn.BatchNorm2d)
    book.set(f"{prefix}.weight", 0.0)
    book.set(f"{prefix}.bias", 0.0)


def _place(book: _Book, path: str, new: RepConv | ConvNorm, kernel: Tensor, bias: Tensor, channels: Channels) -> None:
    """A fused kernel into the first k x k branch, behind a norm that passes it on; the other branches add nothing."""
    target, prefix = (new.convs[0], f"{path}.convs.0") if isinstance(new, RepConv) else (new, path)
    if isinstance(new, RepConv):
        others = [f"convs.{i}" for i in range(1, len(new.convs))]
        others += [n for n in ("scale", "identity") if getattr(new, n) is not None]
        for name in others:
            _silence(book, f"{path}.{name}", new.get_submodule(name))
        book.notes.append(
            f"{path}: fused kernel in convs.0, {', '.join(others) or 'no other branch'} set to add nothing"
        )
    assert isinstance(target, ConvNorm)
    like = book.state[f"{prefix}.conv.weight"]
    if kernel.dim() != like.dim():
        kernel = kernel.reshape(*kernel.shape, *[1] * (like.dim() - kernel.dim()))
    book.put(f"{prefix}.conv.weight", *_fit(like, kernel, channels.out, channels.into))
    shift, codes, why = _fit(bias.new_zeros(like.shape[0]), bias, channels.out, None)
    if not isinstance(target.norm, nn.BatchNorm2d):
        book.put(f"{prefix}.conv.bias", shift, codes, why)
        return
    eps = target.norm.eps
    given = codes * SET  # mean 0 and variance 1 with the scale sqrt(1 + eps): the norm passes on what it gets
    ones = torch.ones_like(shift)
    book.put(f"{prefix}.norm.running_mean", 0 * ones, given)
    book.put(f"{prefix}.norm.running_var", ones, given)
    book.put(f"{prefix}.norm.weight", ones * (1 + eps) ** 0.5, given, why)
    book.put(f"{prefix}.norm.bias", shift, codes, why)
    if target.conv.bias is not None:
        book.set(f"{prefix}.conv.bias", 0.0)


# ---------------------------------------------------------------------------------------------- the whole net


def inherit(new: Net, old: Net, old_train: nn.Module, *, has_head: bool = True) -> Inheritance:
    """The new net's weights, as much of them as the old net can give.

    `old` may be in deploy form; `old_train` is its train form (for the names of its units). Both have specs.
    has_head: whether the old net's head has weights of its own, or random ones.
    """
    assert new.spec is not None and old.spec is not None
    mine, other = units(new.module), units(old_train)
    now = {p: old.module.get_submodule(p) for p in other}
    pairs = unit_pairs(new.spec, old.spec, mine, other)
    if not has_head:
        pairs = {p: q for p, q in pairs.items() if not old.is_head(q)}
    book = _Book(
        {k: v.clone() for k, v in new.module.state_dict().items()},
        {k: torch.zeros(v.shape, dtype=torch.uint8) for k, v in new.module.state_dict().items()},
    )
    maps, notes = channels_of(new, old, mine, other, pairs)
    book.notes += notes
    for path, partner in pairs.items():
        _carry(book, path, mine[path], now[partner], maps[path])
    result = _accounts(new, book, pairs, mine)
    if result.params_inherited_ratio == 0:
        raise matching.NoMatch(
            f"nothing of {old.label} fits {new.label}",
            hint="stages are paired by name, rows by kind, layers by name: is it an edit of that spec?",
        )
    apart, why = _difference(new, old, book.state)
    return replace(result, max_rel_diff=apart, no_difference_because=why)


def _accounts(new: Net, book: _Book, pairs: Mapping[str, str], mine: Mapping[str, nn.Module]) -> Inheritance:
    learnable = {n for n, _ in new.module.named_parameters()}
    total = sum(book.state[n].numel() for n in learnable)
    inherited = sum(int((book.codes[n] == INHERITED).sum()) for n in learnable)
    is_set = sum(int((book.codes[n] == SET).sum()) for n in learnable)
    graph, _ = matching.recorded(new)
    macs = macs_inherited = 0.0
    for op in graph.ops:
        if not op.params or not (op.name == "linear" or op.name.startswith("conv")):
            continue
        name = graph.params[op.params[0]].name
        shape = graph.tensors[op.outputs[0]]
        positions = shape[2:] if op.name != "linear" else shape[1:-1]
        times = float(torch.Size(positions).numel())
        macs += times * book.state[name].numel()
        macs_inherited += times * float((book.codes[name] == INHERITED).sum())
    leftovers = []
    for name in book.state:
        free = int((book.codes[name] == RANDOM).sum())
        if name not in learnable or not free:
            continue
        unit = max((p for p in mine if name.startswith(p + ".")), key=len, default="")
        why = book.why.get(name) or book.why.get(unit) or ("new" if unit not in pairs else "not there")
        leftovers.append(Leftover(name, tuple(book.state[name].shape), free, why))
    return Inheritance(
        book.state,
        inherited / max(1, total),
        is_set / max(1, total),
        macs_inherited / max(1.0, macs),
        None,
        "",
        tuple(leftovers),
        tuple(book.notes),
    )


def _difference(new: Net, old: Net, state: Mapping[str, Tensor]) -> tuple[float | None, str]:
    """max |new - old| over max |old| at the last tap on random images, in float64."""
    assert new.spec is not None
    if new.input != old.input:
        return None, "the input sizes differ"
    a, b = copy.deepcopy(new.module), copy.deepcopy(old.module)
    a.load_state_dict(dict(state))
    _, size = matching.recorded(new)
    look = replace(new.spec, input=(new.input[0], *size), tracker=None)
    x = build.probe(look, 1, limit_px=max(size)).double()
    with torch.no_grad():
        one, two = (m.double().eval()(x)[-1] for m in (a, b))
    if one.shape != two.shape:
        return None, f"the last map is {_map(one)} now, {_map(two)} before"
    if not torch.isfinite(one).all() or not torch.isfinite(two).all():
        return None, "an output is not finite"
    largest = float(two.abs().max())
    if largest == 0:
        return None, "the old net's last map is all zeros"
    return float((one - two).abs().max()) / largest, ""


def _map(t: Tensor) -> str:
    return "x".join(map(str, t.shape[1:])) + " (channels, height, width)"
