"""Another library's nets (`timm:NAME`, `torchvision:NAME`): their ops, and where they may be cut.

They have random weights: nothing is downloaded. A net is recorded whole; a cut is found in its op list.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bblab import ops
from bblab.errors import BblabError, near
from bblab.installing import how_to_install
from bblab.ops import Form, Op, OpGraph, Shape
from bblab.spec import ArchSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

# Tokens that stand before those of the map: class, distillation, registers. timm 1.0.31 has 1 to 5.
MAX_PREFIX = 8


def reparameterize(net: nn.Module, name: str) -> nn.Module:
    """timm's own re-parameterisation for timm's nets."""
    if not name.startswith("timm:"):
        return net
    from timm.utils.model import reparameterize_model

    return reparameterize_model(net)


def make_net(reference: str, *, device: str | None = None, size: tuple[int, int] | None = None) -> nn.Module:
    """`timm:NAME`, `timm:NAME.TAG` or `torchvision:NAME` with random weights, in eval mode; nothing is downloaded.

    A tag names pretrained weights; here it is only checked. `size`: height and width of the images, for nets that are
    built for one size. Raises BblabError when the library is missing, has no such net or tag, or cannot build it.
    """
    import torch

    library, _, name = reference.partition(":")
    at = "" if size is None else f" at {size[0]}x{size[1]}"
    with torch.device(device or "cpu"), _library_errors(reference, at):
        if library == "timm":
            timm = _import_library("timm")
            _check_name(timm, name)
            ways: list[dict[str, Any]] = [{}] if size is None else [{"img_size": size}, {"dynamic_img_size": True}, {}]
            return _made(lambda **more: timm.create_model(name, pretrained=False, **more), ways).eval()
        models = _import_library("torchvision").models
        if name not in models.list_models():
            raise BblabError(f"torchvision has no net {name!r}", hint=near(name, models.list_models()))
        extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        ways = [{"image_size": size[0]}, {}] if size is not None and size[0] == size[1] else [{}]
        return _made(lambda **more: models.get_model(name, weights=None, **extra, **more), ways).eval()


def _check_name(timm: Any, name: str) -> None:
    base, dot, tag = name.partition(".")
    if base not in timm.list_models():
        raise BblabError(f"timm {timm.__version__} has no net {name!r}", hint=near(base, timm.list_models()))
    if dot:
        tags = [n.partition(".")[2] for n in timm.list_models(base, pretrained=True)]
        if tag not in tags:
            hint = near(tag, tags) if tags else "it has none: leave the tag away"
            raise BblabError(f"timm {timm.__version__} has no weights {tag!r} of {base}", hint=hint)


def _made(make: Callable[..., Any], ways: list[dict[str, Any]]) -> Any:
    """The first way to build a net whose arguments it knows."""
    for more in ways[:-1]:
        try:
            return make(**more)
        except TypeError as error:
            if not any(f"'{key}'" in str(error) for key in more):
                raise
    return make(**ways[-1])


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
def _library_errors(reference: str, at: str) -> Iterator[None]:
    try:
        yield
    except BblabError:
        raise
    except Exception as error:
        said = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        raise BblabError(f"{reference} cannot be built{at}: {said}") from error


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
        net = make_net(spec.library or "", device=device, size=(shape[1], shape[2]))
        if form == "deploy":
            try:
                with torch.device(device):  # timm makes the fused layers on the default device
                    net = reparameterize(net, spec.library or "")
            except NotImplementedError:
                raise  # it needs real numbers, perhaps
            except Exception as error:
                if device == "meta":
                    raise NotImplementedError("on the meta device the library cannot fuse it") from error
                net = make_net(spec.library or "", device=device, size=(shape[1], shape[2]))
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


class Grid(NamedTuple):
    """A map in a tensor: B, C, H, W ("map"), B, H, W, C ("last") or B, N, C ("tokens", `prefix` others first)."""

    layout: Literal["map", "last", "tokens"]
    height: int
    width: int
    prefix: int = 0


class Cut(NamedTuple):
    """The end of a stage: the module that returns it, its tensor, how many ops are done, the stride there, its grid."""

    module: str
    tensor: int
    num_ops: int
    stride: int
    grid: Grid


def stage_points(graph: OpGraph) -> list[Cut]:
    """Where a foreign net may be cut, one place for each stride.

    A cut is the last tensor at its stride that a module returned and through which everything later passes, so that
    the whole stage is inside (a tap inside the last unit would miss its end). What the next stage's first unit does
    before it strides (an inverted residual widens first) belongs to that stage. Sequences of tokens are maps.
    """
    inputs = {graph.roots[i] for i in graph.inputs}
    born = dict.fromkeys(inputs, -1)
    last_read: dict[int, int] = {}
    for position, op in enumerate(graph.ops):
        for i in op.inputs:
            last_read[graph.roots[i]] = position
        if any(graph.roots[i] in born for i in op.inputs):  # what is made of weights alone is no way round the cut
            for i in op.outputs:
                born.setdefault(graph.roots[i], position)
    grids = _grids(graph)
    height, width = graph.tensors[graph.inputs[0]][-2:]
    downsamplings = _downsamplings(graph, grids)
    found: dict[int, Cut] = {}
    for name, tensor, done in graph.module_outputs:
        grid = _grid_of(graph.tensors[tensor], grids)
        root = graph.roots[tensor]
        if grid is None or root in inputs:
            continue  # no map, or the image itself
        halvings = round(math.log2(height / grid.height))
        if halvings != round(math.log2(width / grid.width)):
            continue
        if any(name.startswith(f"{unit}.") and halvings == before for unit, before in downsamplings):
            continue
        # Nothing else that was made before this point is read after it.
        if any(b < done <= last_read.get(r, -1) and r != root for r, b in born.items()):
            continue
        found[2**halvings] = Cut(name, tensor, done, 2**halvings, grid)
    return [found[s] for s in sorted(found)]


def _grids(graph: OpGraph) -> list[tuple[int, int]]:
    """Heights and widths of the net's maps: those that convolutions and pools make, and what halving makes of them."""
    found: dict[tuple[int, int], None] = {}
    for op in graph.ops:
        if op.name.startswith("conv2d") or op.name.endswith("_pool2d"):
            shape = graph.tensors[op.outputs[0]]
            if len(shape) == 4 and min(shape[2:]) > 1:
                found[shape[2], shape[3]] = None
    for h, w in list(found):  # tokens are merged without a convolution
        while min(h, w) > 2:
            found.setdefault((h // 2, w // 2))
            h, w = -(-h // 2), -(-w // 2)
            found.setdefault((h, w))
    return [g for g in found if min(g) > 1]


def _grid_of(shape: Shape, grids: list[tuple[int, int]]) -> Grid | None:
    """How a tensor of this shape holds one of the net's maps; None where it holds none."""
    if len(shape) == 4 and min(shape[2:]) > 1:
        if (shape[1], shape[2]) in grids and (shape[2], shape[3]) not in grids:
            return Grid("last", shape[1], shape[2])
        return Grid("map", shape[2], shape[3])
    if len(shape) == 3:
        fitting = [(shape[1] - h * w, n) for n, (h, w) in enumerate(grids) if 0 <= shape[1] - h * w <= MAX_PREFIX]
        if fitting:
            prefix, n = min(fitting)
            return Grid("tokens", *grids[n], prefix)
    return None


def as_map(value: Tensor, grid: Grid) -> Tensor:
    """What a net hands on at a cut, as B, C, H, W. Tokens of images of another size keep the grid's proportions."""
    if grid.layout == "map":
        return value
    if grid.layout == "last":
        return value.permute(0, 3, 1, 2)
    tokens = value[:, grid.prefix :].transpose(1, 2)
    height, width = grid.height, grid.width
    if height * width != tokens.shape[2]:
        height = round(math.sqrt(tokens.shape[2] * height / width))
        width = tokens.shape[2] // height
    return tokens.reshape(tokens.shape[0], tokens.shape[1], height, width)


def with_map(graph: OpGraph, point: Cut) -> OpGraph:
    """A graph that ends at a cut with the views that make its last tensor a map of B, C, H, W."""
    grid = point.grid
    if grid.layout == "map":
        return graph
    channels = graph.tensors[point.tensor][-1]
    views: list[tuple[str, dict[str, Any], Shape]] = []
    if grid.layout == "last":
        views.append(("permute", {"dims": [0, 3, 1, 2]}, (1, channels, grid.height, grid.width)))
    else:
        count = grid.height * grid.width
        if grid.prefix:
            index = [["slice", None, None, None], ["slice", grid.prefix, None, None]]
            views.append(("getitem", {"index": index}, (1, count, channels)))
        views.append(("transpose", {"dim0": 1, "dim1": 2}, (1, channels, count)))
        views.append(("reshape", {}, (1, channels, grid.height, grid.width)))
    tensors, roots, done = list(graph.tensors), list(graph.roots), list(graph.ops)
    last = point.tensor
    for name, attrs, shape in views:
        tensors.append(shape)
        roots.append(roots[last])
        done.append(Op(name, "", (last,), (len(tensors) - 1,), (), attrs, is_view=True))
        last = len(tensors) - 1
    return replace(graph, tensors=tuple(tensors), roots=tuple(roots), ops=tuple(done), outputs=(last,))


def _downsamplings(graph: OpGraph, grids: list[tuple[int, int]]) -> list[tuple[str, int]]:
    """The modules that halve the map once, and how often it was halved before them."""
    side = graph.tensors[graph.inputs[0]][-1]

    def halvings(tensor: int) -> int | None:
        grid = _grid_of(graph.tensors[tensor], grids)
        return round(math.log2(side / grid.width)) if grid is not None else None

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
        raise BblabError(
            f"{spec.library}: no map found to cut at",
            hint="only nets that hand on maps (B, C, H, W or B, H, W, C) or tokens (B, N, C) work",
        )
    if spec.cut is None:
        return points[-1]
    for point in points:
        if spec.cut == f"s{point.stride}":
            return point
    choice = [f"s{p.stride}" for p in points]
    raise BblabError(f"{spec.name}: cannot cut at {spec.cut!r}", hint=near(spec.cut, choice))
