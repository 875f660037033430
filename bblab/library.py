"""Another library's nets (`timm:NAME`, `torchvision:NAME`): their ops, and where they may be cut.

They have random weights: nothing is downloaded. A net is recorded whole; a cut is found in its op list.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bblab import ops
from bblab.errors import BblabError, near
from bblab.installing import how_to_install
from bblab.ops import Form, OpGraph, Shape
from bblab.spec import ArchSpec

if TYPE_CHECKING:
    from torch import nn


def reparameterize(net: nn.Module, name: str) -> nn.Module:
    """timm's own re-parameterisation for timm's nets."""
    if not name.startswith("timm:"):
        return net
    from timm.utils.model import reparameterize_model

    return reparameterize_model(net)


def make_net(reference: str, *, device: str | None = None) -> nn.Module:
    """`timm:NAME` or `torchvision:NAME` with random weights, in eval mode. No weights are downloaded.

    Raises BblabError when the library is missing, has no such net, or cannot build it without more arguments.
    """
    import torch

    library, _, name = reference.partition(":")
    with torch.device(device or "cpu"), _library_errors(reference):
        if library == "timm":
            timm = _import_library("timm")
            if name not in timm.list_models():
                raise BblabError(f"timm {timm.__version__} has no net {name!r}", hint=near(name, timm.list_models()))
            return timm.create_model(name, pretrained=False).eval()
        models = _import_library("torchvision").models
        if name not in models.list_models():
            raise BblabError(f"torchvision has no net {name!r}", hint=near(name, models.list_models()))
        extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return models.get_model(name, weights=None, **extra).eval()


def classifier(net: nn.Module) -> tuple[str, ...]:
    """Prefixes of the tensors that give a net's scores; none where the library does not say and no layer is linear."""
    from torch import nn

    named = (getattr(net, "pretrained_cfg", None) or {}).get("classifier")  # timm
    if not named and hasattr(net, "backbone") and hasattr(net, "head"):  # mmpretrain
        named = "head"
    if not named:
        named = next((name for name, m in reversed(list(net.named_modules())) if isinstance(m, nn.Linear)), "")
    names = [named] if isinstance(named, str) else named
    return tuple(f"{name}." for name in names if name)


def _import_library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = how_to_install(name)
        raise BblabError(f"{name} cannot be imported: {error}", hint=hint) from None


@contextlib.contextmanager
def _library_errors(reference: str) -> Iterator[None]:
    try:
        yield
    except BblabError:
        raise
    except Exception as error:
        raise BblabError(f"{reference} cannot be built: {type(error).__name__}: {error}") from error


def graph_of(spec: ArchSpec, form: Form = "train", size: tuple[int, int] | None = None) -> OpGraph:
    """The ops of another library's whole net at an input size, remembered by the library's version."""
    import importlib.metadata

    assert spec.library is not None
    shape: Shape = (spec.input[0], *(size or spec.input[1:]))
    try:
        version = importlib.metadata.version(spec.library.partition(":")[0])
    except importlib.metadata.PackageNotFoundError:
        version = "missing"
    key = "|".join((ops.recorder_version(), "library", spec.library, version, repr(shape), form))

    unfused: list[tuple[str, str, bool]] = []

    def make(device: str) -> nn.Module:
        import torch

        unfused.clear()
        net = make_net(spec.library or "", device=device)
        if form == "deploy":
            try:
                with torch.device(device):  # timm makes the fused layers on the default device
                    net = reparameterize(net, spec.library or "")
            except NotImplementedError:
                raise  # it needs real numbers, perhaps
            except Exception as error:
                if device == "meta":
                    raise NotImplementedError("on the meta device the library cannot fuse it") from error
                net = make_net(spec.library or "", device=device)
                unfused.append(("", f"its library cannot fuse it: {type(error).__name__}: {error}", True))
            unfused.extend(ops.fold_norms(net, [torch.zeros((1, *shape), device=device)], is_ours=True))
        return net

    def run() -> OpGraph:
        try:
            return replace(ops.record_anywhere(make, [shape]), unfused=tuple(unfused))
        except BblabError:
            raise
        except Exception as error:
            said = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
            side = f"{shape[1]}x{shape[2]}"
            raise BblabError(
                f"{spec.library} does not run at {side}: {said}",
                hint="some nets need one fixed image size, or a multiple of 32",
            ) from error

    return ops.MEMORY.graph(key, run)


class Cut(NamedTuple):
    """The end of a stage: the module that returns it, its tensor, how many ops are done, the stride there."""

    module: str
    tensor: int
    num_ops: int
    stride: int


def stage_points(graph: OpGraph) -> list[Cut]:
    """Where a foreign net may be cut, one place for each stride.

    A cut is the last tensor at its stride that a module returned and through which everything later passes, so that
    the whole stage is inside (a tap inside the last unit would miss its end). What the next stage's first unit does
    before it strides (an inverted residual widens first) belongs to that stage.
    """
    inputs = {graph.roots[i] for i in graph.inputs}
    born = dict.fromkeys(inputs, -1)
    last_read: dict[int, int] = {}
    for position, op in enumerate(graph.ops):
        for i in op.inputs:
            last_read[graph.roots[i]] = position
        for i in op.outputs:
            born.setdefault(graph.roots[i], position)
    height, width = graph.tensors[graph.inputs[0]][-2:]
    downsamplings = _downsamplings(graph)
    found: dict[int, Cut] = {}
    for name, tensor, done in graph.module_outputs:
        shape = graph.tensors[tensor]
        if len(shape) != 4 or shape[2] <= 1 or shape[3] <= 1:
            continue
        root = graph.roots[tensor]
        halvings = round(math.log2(height / shape[2]))
        if root in inputs or halvings != round(math.log2(width / shape[3])):
            continue  # the image itself, or B, H, W, C: no map that a tracker could take
        if any(name.startswith(f"{unit}.") and halvings == before for unit, before in downsamplings):
            continue
        # Nothing else that was made before this point is read after it.
        if any(b < done <= last_read.get(r, -1) and r != root for r, b in born.items()):
            continue
        found[2**halvings] = Cut(name, tensor, done, 2**halvings)
    return [found[s] for s in sorted(found)]


def _downsamplings(graph: OpGraph) -> list[tuple[str, int]]:
    """The modules that halve the map once, and how often it was halved before them."""
    side = graph.tensors[graph.inputs[0]][-1]

    def halvings(tensor: int) -> int | None:
        shape = graph.tensors[tensor]
        return round(math.log2(side / shape[3])) if len(shape) == 4 else None

    first: dict[str, int | None] = {}
    for op in graph.ops:
        parts = op.layer.split(".")
        for depth in range(1, len(parts) + 1):
            if op.inputs:
                first.setdefault(".".join(parts[:depth]), halvings(op.inputs[0]))
    found = []
    for name, tensor, _ in graph.module_outputs:
        before, after = first.get(name), halvings(tensor)
        if before is not None and after == before + 1:
            found.append((name, before))
    return found


def cut_point(graph: OpGraph, spec: ArchSpec) -> Cut:
    """Where this spec's foreign net ends: at its cut, else at its last map. Raises BblabError listing the choice."""
    points = stage_points(graph)
    if not points:
        raise BblabError(f"{spec.library}: no map found to cut at", hint="only nets that hand on B, C, H, W maps work")
    if spec.cut is None:
        return points[-1]
    for point in points:
        if spec.cut == f"s{point.stride}":
            return point
    choice = [f"s{p.stride}" for p in points]
    raise BblabError(f"{spec.name}: cannot cut at {spec.cut!r}", hint=near(spec.cut, choice))
