"""The deploy form of modules that bblab did not write: their own fuse methods, and batch norms folded where exact.

A norm is folded into the layer before it where the recorded ops prove that nothing else changes: the layer multiplies
by the weights that it holds, every run of it feeds this norm and nothing else, and every run of the norm is fed so.
What a convolution pads, and how, does not matter for a norm behind it. What cannot be proved stays and is named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bblab import blockkit

Unfused = tuple[str, str, bool]
"""A layer that stays as it is in training, why, and whether a fuse method failed there (else it is a norm)."""


class RecordedGraph(Protocol):
    """What is read of an `ops.OpGraph`."""

    @property
    def tensors(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def inputs(self) -> tuple[int, ...]: ...
    @property
    def outputs(self) -> tuple[int, ...]: ...
    @property
    def ops(self) -> Sequence[Any]: ...
    @property
    def params(self) -> Sequence[Any]: ...


# ---------------------------------------------------------------------------------------------- a user's own fuse()


class Snapshot:
    """A module as it is now, attributes and values, to be put back after a fuse method failed half-way."""

    def __init__(self, module: nn.Module) -> None:
        self._held = [(m, type(m), {k: _shallow(v) for k, v in vars(m).items()}) for m in _own_modules(module)]
        tensors = {id(t): t for m, _, _ in self._held for t in _tensors(m)}
        self._values = [(t, t.detach() if t.is_meta else t.detach().clone()) for t in tensors.values()]

    def restore(self) -> None:
        for module, kind, attributes in self._held:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update({k: _shallow(v) for k, v in attributes.items()})
        for tensor, value in self._values:
            tensor.data = value


def _own_modules(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)]


def _shallow(value: Any) -> Any:
    return value.copy() if isinstance(value, (dict, list, set)) else value


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
        if isinstance(value, Tensor) and not nn.parameter.is_lazy(value):
            yield value


@dataclass(frozen=True, slots=True)
class Fused:
    """What a user's fuse methods made: the module, how many ran, the parts whose method failed, and why."""

    module: nn.Module
    calls: int
    kept: frozenset[nn.Module]
    failed: tuple[Unfused, ...]


def deploy(module: nn.Module) -> Fused:
    """The fused form of a module in eval mode, made of the module itself by the fuse methods that it has.

    A method that raises, or that returns something else than a module, leaves its module in train form, and is named.
    What a method returns is brought to the module's own device and floating type.
    """
    names = {id(m): name for name, m in module.named_modules()}
    kept: set[nn.Module] = set()
    failed: list[Unfused] = []
    calls = 0

    def careful(part: nn.Module, method: Callable[[], Any]) -> nn.Module | None:
        nonlocal calls
        calls += 1
        before = Snapshot(part)
        names_before = blockkit.parts(part)
        like = next((p for p in part.parameters() if p.is_floating_point()), None)
        usual = torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.float64 if like is not None and like.dtype == torch.float64 else usual)
            with torch.device("cpu" if like is None else like.device), torch.no_grad():
                made = method()
            if isinstance(made, (Tensor, tuple, list, dict)):
                kind = type(made).__name__
                raise TypeError(f"it returned a {kind}, expected a module, or None where it fuses in place")
            fused = made if isinstance(made, nn.Module) else part
            if fused is part and blockkit.parts(part) == names_before:
                return None
            fused.train(part.training)
            return fused if like is None else _alike(fused, like)
        except (Exception, SystemExit) as error:
            before.restore()
            kept.update(part.modules())
            failed.append((names.get(id(part), ""), f"its {method.__name__}() failed: {words(error)}", True))
            return part
        finally:
            torch.set_default_dtype(usual)

    fused = blockkit.deploy_in_place(module, careful)
    return Fused(fused, calls, frozenset(kept), tuple(failed))


def words(error: BaseException) -> str:
    """An error in one line: its type and the first line of what it says."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__


def _alike(module: nn.Module, like: Tensor) -> nn.Module:
    """The module on the device of `like`, in its floating type, where it is elsewhere or another."""
    held = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    if all(t.device == like.device and t.dtype == like.dtype for t in held):
        return module
    return module.to(device=like.device, dtype=like.dtype)


# ---------------------------------------------------------------------------------------------- norms


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm, or one of that name."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or "BatchNorm" in type(module).__name__


def planned(module: nn.Module, graph: RecordedGraph, run: Callable[[], Any] | None = None, *, within: int = 0) -> Plan:
    """Which batch norms of a recorded module go into the layers before them; nothing is changed yet.

    `run` does the recorded pass once more, for code whose reads were not recorded. `within`: how many leading parts of
    the two layers' names must agree (so that a fold stays inside one block).
    """
    plan = Plan(module, graph, within)
    plan.make()
    if run is not None and plan.folds and plan.has_unseen:  # scripted code, say: does it read too?
        read = _read_elsewhere([plan.layers[name] for fold in plan.folds for name in fold[1]], run)
        if read:
            plan = Plan(module, graph, within)
            plan.make(not_into={n for n, m in plan.layers.items() if m in read})
    return plan


def fold_norms(plan: Plan, kept: Collection[nn.Module] = ()) -> list[Unfused]:
    """Fold every batch norm of a plan into the layer before it, in place, where that is exact.

    Returns the norms that stay, with the reason. `kept`: not to be touched.
    """
    held = {id(m) for m in kept}
    stay = dict(plan.stay)
    for norm, layers in plan.folds:
        if any(id(plan.layers[name]) in held for name in (norm, *layers)):
            continue
        why = _folded_in_place(plan.layers[norm], [plan.layers[name] for name in layers])
        if why:
            stay[norm] = why
    return [(name, why, False) for name, why in stay.items() if id(plan.layers.get(name)) not in held]


_PRODUCERS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "linear",
)


class Plan:
    """Which norm goes into which layers, and why the others do not, from one recorded pass."""

    def __init__(self, module: nn.Module, graph: RecordedGraph, within: int) -> None:
        self.graph = graph
        self.within = within
        self.layers: dict[str, nn.Module] = dict(module.named_modules())
        self.folds: list[tuple[str, list[str]]] = []
        self.stay: dict[str, str] = {}
        index = {w.name: i for i, w in enumerate(graph.params)}
        named = (*module.named_parameters(), *module.named_buffers())
        self._index = {id(t): index[name] for name, t in named if name in index}
        self._readers: dict[int, list[int]] = {}
        self._runs: dict[str, list[int]] = {}
        self._param_readers: dict[int, set[str]] = {}
        born = set(graph.inputs)
        self.has_unseen = False
        for position, op in enumerate(graph.ops):
            for i in op.inputs:
                self._readers.setdefault(i, []).append(position)
                self.has_unseen = self.has_unseen or i not in born
            born.update(op.outputs)
            for i in op.params:
                self._param_readers.setdefault(i, set()).add(op.layer)
            if op.name == "batch_norm" or op.name in _PRODUCERS:
                self._runs.setdefault(op.layer, []).append(position)
        # The op that makes a tensor, seen through the norms that were folded into it; and what it then makes.
        self._maker = {t: position for position, op in enumerate(graph.ops) for t in op.outputs}
        self._result = {p: op.outputs[0] for p, op in enumerate(graph.ops) if op.name in _PRODUCERS}

    def make(self, not_into: Collection[str] = ()) -> None:
        """Fill `folds` and `stay`: again and again, because a second norm may follow a folded one."""
        left = list(dict.fromkeys(op.layer for op in self.graph.ops if op.name == "batch_norm"))
        while True:
            reasons: dict[str, str] = {}
            for norm in left:
                sources: list[int] = []
                reasons[norm] = self._blocked(norm, sources, not_into)
                if not reasons[norm]:
                    self._fold(norm, sources)
            if all(reasons.values()):
                self.stay = reasons
                return
            left = [norm for norm in left if reasons[norm]]

    def _fold(self, norm: str, sources: Sequence[int]) -> None:
        ops = self.graph.ops
        self.folds.append((norm, list(dict.fromkeys(ops[p].layer for p in sources))))
        for run, source in zip(self._runs[norm], sources, strict=True):
            out = ops[run].outputs[0]
            self._maker[out] = source
            self._result[source] = out

    def _blocked(self, norm: str, sources: list[int], not_into: Collection[str]) -> str:
        """Why a norm stays; empty where it folds, into the ops at `sources` (one for each run of the norm)."""
        graph, ops = self.graph, self.graph.ops
        runs = self._runs[norm]
        layer = self.layers.get(norm)
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm) or any(ops[p].name != "batch_norm" for p in runs):
            return "batch_norm is called by the forward itself"
        why = _not_affine(layer) or self._reads_other(layer, runs)
        if why:
            return why
        for run in runs:
            given = ops[run].inputs[0]
            maker = self._maker.get(given)
            if maker is None:
                return "it comes first" if given in graph.inputs else "what it is fed is made outside of what was seen"
            producer = ops[maker]
            if producer.name not in _PRODUCERS:
                return f"it follows {producer.name}, which takes no scale and shift"
            if given != self._result[maker]:
                return f"it follows {producer.layer or producer.name}, which has another norm already"
            if self._readers.get(given) != [run] or given in graph.outputs:
                return f"the output of {producer.layer or producer.name} is read elsewhere too"
            if producer.name == "linear" and len(graph.tensors[given]) != 2:
                return f"its channels are another axis than those of {producer.layer}"
            sources.append(maker)
        for name in dict.fromkeys(ops[p].layer for p in sources):
            why = self._cannot_take(name, norm, set(sources), not_into)
            if why:
                return why
        return ""

    def _cannot_take(self, name: str, norm: str, sources: set[int], not_into: Collection[str]) -> str:
        layer = self.layers.get(name)
        if layer is None or not isinstance(layer, blockkit._LINEAR):
            return "the convolution before it is called by the forward itself"
        if name.split(".")[: self.within] != norm.split(".")[: self.within]:
            return f"{name} belongs to another block"
        if set(self._runs[name]) - sources:
            return f"{name} also runs where this norm does not follow"
        if name in not_into:
            return f"the output of {name} is read elsewhere too"
        why = "" if _is_timms(layer, "Conv2dSame") else blockkit.own_way(layer, blockkit._LINEAR)
        if why:
            return why
        if not layer.weight.is_floating_point():
            return f"{name} holds weights of type {layer.weight.dtype}"
        return self._reads_other(layer, self._runs[name])

    def _reads_other(self, layer: nn.Module, runs: Sequence[int]) -> str:
        """Whether a layer's runs read something else than its own weights, or others read these weights."""
        names = ("weight", "bias", "running_mean", "running_var")
        held = [t for t in ({**layer._parameters, **layer._buffers}.get(n) for n in names) if t is not None]
        own = {self._index[id(t)] for t in held}
        name = self.graph.ops[runs[0]].layer
        if any(set(self.graph.ops[p].params) != own for p in runs):
            return f"{name} does not compute with the weights that it holds"
        for i in own:
            for other in self._param_readers.get(i, set()) - {name}:
                sharing = self.layers.get(other)
                if sharing is None or not any(id(t) in map(id, held) for t in sharing._parameters.values()):
                    return f"the weights of {name} are read elsewhere too"
        return ""


def _is_timms(layer: nn.Module, name: str) -> bool:
    """Whether the layer's forward is the one of timm's class `name`, read in timm 1.0.31, with nothing hooked in."""
    forward = type(layer).forward
    is_theirs = forward.__module__.startswith("timm.") and forward.__qualname__ == f"{name}.forward"
    return is_theirs and "forward" not in vars(layer) and not layer._forward_hooks and not layer._forward_pre_hooks


def _not_affine(norm: nn.Module) -> str:
    if _is_timms(norm, "BatchNormAct2d"):  # a batch norm with the dropout and the activation that follow it
        return "" if norm.running_mean is not None and not norm.training else "it has no running statistics"
    return blockkit.not_affine(norm)


def _folded_in_place(norm: nn.Module, layers: Sequence[Any]) -> str:
    """Fold, and make an identity of the norm, both in place: whatever else refers to them sees the same."""
    rest = [m for name, m in norm.named_children() if name in ("drop", "act")]
    new = (nn.Sequential(*rest) if rest else nn.Identity()).train(norm.training)
    scale, shift = blockkit.affine(norm)
    folded = [blockkit.scaled(layer, scale, shift) for layer in layers]
    try:
        norm.__class__ = type(new)
    except TypeError as error:
        return f"it cannot be taken out: {error}"
    norm.__dict__.clear()
    norm.__dict__.update(vars(new))
    for layer, (weight, bias) in zip(layers, folded, strict=True):
        dtype = layer.weight.dtype
        layer.weight = nn.Parameter(weight.to(dtype))
        layer.bias = nn.Parameter(bias.to(dtype))
    return ""


def _read_elsewhere(layers: Sequence[nn.Module], run: Callable[[], Any]) -> set[nn.Module]:
    """The layers whose output is read by anything but one batch norm, or whose weights are read by anything else.

    Scripted code and the like do not show in a list of Python calls; torch's dispatcher sees every read of a tensor.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    def storage(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    made: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensor is held, so that its storage is used by no other
    owners = {storage(t): layer for layer in layers for t in (layer.weight, layer.bias) if isinstance(t, Tensor)}
    reads: dict[int, list[str]] = {}
    found: set[nn.Module] = set()
    inside: list[nn.Module] = []

    def enter(layer: nn.Module, _: Any) -> None:
        inside.append(layer)

    def leave(layer: nn.Module, _: Any, out: Any) -> None:
        inside.pop()
        if isinstance(out, Tensor):
            made[storage(out)] = (layer, out)

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            for key in map(storage, _flat([args, kwargs or {}])):
                if key in made:
                    reads.setdefault(key, []).append(str(func))
                if key in owners and owners[key] not in inside:
                    found.add(owners[key])
            return func(*args, **(kwargs or {}))

    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    handles += [layer.register_forward_hook(leave) for layer in layers]
    try:
        with torch.no_grad(), Reads():
            run()
    finally:
        for handle in handles:
            handle.remove()
    found |= {layer for key, (layer, _) in made.items() if not _is_one_norm(reads.get(key, []))}
    return found | {layer for layer in layers if not any(layer is m for m, _ in made.values())}


def _is_one_norm(reads: Sequence[str]) -> bool:
    return len(reads) == 1 and "batch_norm" in reads[0]


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _flat(v)
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _flat(v)
