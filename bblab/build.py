"""ArchSpec -> Backbone (nn.Module); train form and deploy form, and how far their outputs differ."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bblab import blockkit, blocks, library, ops
from bblab.errors import BblabError, RunError
from bblab.folding import Unfused, words
from bblab.ops import Form
from bblab.spec import ArchSpec, BlockInfo, Row

Maps = Tensor | list[Tensor]


class Backbone(nn.Module):
    """A network built from a spec: B, C, H, W -> one map for each tap.

    `stages.<name>.<row>` are the blocks. `forward` runs as far as the last tap; `classify` runs every stage and the
    head. A stage of a multi-resolution net hands on a list of maps, and each of them is a tap.
    """

    def __init__(self, spec: ArchSpec, kinds: Mapping[str, BlockInfo], *, device: str | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.stages = nn.ModuleDict()
        channels: int | tuple[int, ...] = spec.input[0]
        for stage in spec.stages:
            rows = []
            for row in stage.rows:
                rows.append(blocks.make(row, channels, kinds[row.kind], device=device))
                channels = row.out
            self.stages[stage.name] = nn.Sequential(*rows)
        self.head = (
            None if spec.head is None else blocks.make(spec.head, channels, kinds[spec.head.kind], device=device)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        maps: Maps = x
        for stage in self.spec.backbone_stages:
            maps = self.stages[stage.name](maps)
            if stage.name in self.spec.taps:
                found.extend([maps] if isinstance(maps, Tensor) else maps)
        return tuple(found)

    def classify(self, x: Tensor) -> Tensor:
        """Class scores: B, classes. Raises BblabError for a spec without a head."""
        if self.head is None:
            raise BblabError(f"{self.spec.name} has no head", hint="add `head: {block: classifier}` to the spec")
        maps: Maps = x
        for stage in self.stages.values():
            maps = stage(maps)
        return self.head(maps)


def build(spec: ArchSpec, kinds: Mapping[str, BlockInfo], *, form: Form = "train", seed: int = 0) -> nn.Module:
    """A network with random weights (`seed`), in train form or fused, in eval mode.

    Another library's net comes as that library builds it, cut where the spec says; its forward gives a tuple too.
    Raises BblabError for a net the library does not have or cannot build.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Library(spec) if spec.library else Backbone(spec, kinds)
        calibrate(module, spec, seed=seed)
    return to_deploy(module, spec, kinds) if form == "deploy" else module.eval()


@dataclass(frozen=True, slots=True)
class Deployed:
    """A fused net in eval mode, and what stays in it as it is in training."""

    module: nn.Module
    unfused: tuple[Unfused, ...] = ()


def deployed(module: nn.Module, spec: ArchSpec, kinds: Mapping[str, BlockInfo]) -> Deployed:
    """A fused copy of a net: branches and norms folded, in eval mode; the net itself is left as it is.

    A lab's block whose fuse method fails stays in train form, and is named, as is each of its norms that stays.
    """
    if isinstance(module, Library):
        return module.deploy([probe(spec, 1)])
    assert isinstance(module, Backbone)
    fused = copy.deepcopy(module).eval()
    has_lab_block = any(kinds[place.row.kind].origin == "lab" for place, _, _ in _rows(fused, spec))
    shapes = _row_shapes(fused, spec) if has_lab_block else {}
    unfused: list[Unfused] = []
    for place, holder, name in _rows(fused, spec):
        kind = kinds[place.row.kind]
        row = getattr(holder, name)
        if kind.origin != "lab":
            setattr(holder, name, blockkit.deploy_in_place(row))
            continue
        own: list[Unfused] = []
        like = next((t for t in (*row.parameters(), *row.buffers()) if t.is_floating_point()), torch.zeros(()))
        # A copy of its own: two rows that share a module are fused apart, as they are counted apart.
        given = copy.deepcopy(row)
        made = ops.deploy_block(given, kind, shapes[place.where], like.device.type, own, dtype=like.dtype)
        setattr(holder, name, made.eval())
        unfused += [(f"{place.where}.{layer}".rstrip("."), why, has_failed) for layer, why, has_failed in own]
    return Deployed(fused.eval(), tuple(unfused))


def to_deploy(module: nn.Module, spec: ArchSpec, kinds: Mapping[str, BlockInfo]) -> nn.Module:
    """A fused copy: branches and norms folded, in eval mode. `deployed` also says what stays unfused."""
    return deployed(module, spec, kinds).module


class _Place(NamedTuple):
    where: str
    row: Row


def _rows(net: Backbone, spec: ArchSpec) -> Iterator[tuple[_Place, nn.Module, str]]:
    """Every row of a net, and its head: where it is, the module that holds it, and its name there."""
    for stage in spec.stages:
        for position, row in enumerate(stage.rows):
            where = f"{stage.name}.{position}" if len(stage.rows) > 1 else stage.name
            yield _Place(where, row), net.stages[stage.name], str(position)
    if spec.head is not None and net.head is not None:
        yield _Place("head", spec.head), net, "head"


def _row_shapes(net: Backbone, spec: ArchSpec) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The shapes (channels, height, width) of the maps that each row is fed with the probe's image."""
    like = next((t for t in net.parameters() if t.is_floating_point()), torch.zeros(()))
    maps: Maps = probe(spec, 1).to(device=like.device, dtype=like.dtype)
    shapes = {}
    with torch.no_grad():
        for place, holder, name in _rows(net, spec):
            given = [maps] if isinstance(maps, Tensor) else maps
            shapes[place.where] = tuple(tuple(m.shape[1:]) for m in given)
            maps = getattr(holder, name)(maps)
    return shapes


def probe(spec: ArchSpec, batch: int, *, seed: int = 0, limit_px: int = 160) -> Tensor:
    """Random images with structure at every scale: B, C, H, W, no larger than needed to exercise every branch.

    White noise would look the same everywhere to a deep unit, and batch norm would then amplify rounding; a sum of
    blurred noises of different strength, as in photos, keeps units apart. The side is the template's, or the spec's.
    """
    generator = torch.Generator().manual_seed(seed)
    c, h, w = spec.input
    side = spec.sizes_px.template
    if spec.library:
        pass  # some foreign nets run at one size only
    elif spec.tracker is None or h < side or w < side:
        h, w = min(h, limit_px), min(w, limit_px)
    else:
        h = w = side
    image = torch.zeros(batch, c, h, w)
    scale = 1
    while scale < max(h, w):
        coarse = torch.randn(batch, c, -(-h // scale) + 1, -(-w // scale) + 1, generator=generator)
        image += nn.functional.interpolate(coarse, size=(h, w), mode="bilinear") * scale**0.5
        scale *= 2
    image /= image.std()
    return image * (0.5 + torch.rand(batch, 1, 1, 1, generator=generator))


def calibrate(module: nn.Module, spec: ArchSpec, *, seed: int = 0, perturb: float = 0.0) -> None:
    """Give every batch norm the statistics of its own input, by one forward pass on random images.

    `perturb` moves each statistic, scale and shift at random by up to that share (0.5 is +-50 %), so that a wrong
    fold cannot hide behind norms that do nothing. Each norm is moved before the next one is calibrated: the
    activations stay of order 1, as in a trained net, and float32 rounding is not blown up layer by layer.
    """
    generator = torch.Generator().manual_seed(seed + 1)

    def moved(like: Tensor) -> Tensor:
        return 1 + perturb * (2 * torch.rand(like.shape, generator=generator) - 1)

    def before(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        if norm.running_mean is None or norm.running_var is None or given[0].numel() == given[0].shape[1]:
            return
        others = [d for d in range(given[0].dim()) if d != 1]
        var, mean = torch.var_mean(given[0], others, correction=0)
        norm.running_mean.copy_(mean * moved(mean))
        # A channel that random weights left constant would be scaled by 1/sqrt(eps): keep near the other channels.
        norm.running_var.copy_(var.clamp_min(0.1 * float(var.mean()) + 1e-8) * moved(var))
        if perturb and norm.weight is not None:
            norm.weight.data.mul_(moved(norm.weight))
            # Shifts above 0 keep most units active. A random norm-ReLU net around 0 is chaotic: any rounding grows
            # by 1.2 a layer (Yang et al. 2019, arXiv:1902.08129), which says nothing about the fold.
            if norm.bias is not None:
                norm.bias.data.add_(moved(norm.bias))

    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    handles = [n.register_forward_pre_hook(before) for n in norms]
    try:
        with torch.no_grad():
            module.eval()(probe(spec, 4, seed=seed))
    finally:
        for handle in handles:
            handle.remove()


LARGEST_REL_DIFF = 1e-3
"""Deploy form against train form, of a map's largest value. The 61 built-in specs reach 1.1e-5 (one image each)."""
ROUNDING = 1e-6
"""What two forms of one function may differ by in float64. The 61 built-in specs reach 2.7e-14 (one image each)."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the deploy form is from the train form: max |difference| over max |output|, the worst map.

    `in_float64` is None where float32 agrees to 1e-5, so that nobody asked, or where the net does not run in float64
    (`no_float64_because`). `where`: the rows that differ by themselves, in float64, the first first.
    """

    in_float32: float
    in_float64: float | None = None
    no_float64_because: str = ""
    where: tuple[str, ...] = ()
    unfused: tuple[Unfused, ...] = ()

    @property
    def is_rounding(self) -> bool:
        """Whether the forms are one function: what differs in float32 goes away in float64."""
        return self.in_float64 is not None and self.in_float64 <= ROUNDING

    @property
    def is_another_function(self) -> bool:
        """Whether the deploy form computes something else: beyond the limit, and not by rounding."""
        if self.in_float64 is not None:
            return not self.in_float64 <= LARGEST_REL_DIFF
        return not self.in_float32 <= LARGEST_REL_DIFF

    def words(self) -> str:
        """The difference in one sentence, for a person."""
        said = f"{self.in_float32:.2g} of the largest value in float32"
        if self.in_float64 is not None:
            said += f", {self.in_float64:.2g} in float64"
        elif self.no_float64_because:
            said += f" (float64 could not be tried: {self.no_float64_because})"
        return said


def deploy_difference(spec: ArchSpec, kinds: Mapping[str, BlockInfo], *, seed: int = 0) -> float:
    """How far the deploy form is from the train form in float32; see `compared`."""
    return compared(spec, kinds, seed=seed).in_float32


def compared(spec: ArchSpec, kinds: Mapping[str, BlockInfo], *, seed: int = 0) -> Difference:
    """The two forms with random weights, their batch-norm statistics calibrated, then perturbed by +-50 %.

    Raises RunError where an output is not finite.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = Library(spec) if spec.library else Backbone(spec, kinds)
        calibrate(module, spec, seed=seed, perturb=0.5)
        return compared_with(module.eval(), spec, kinds, [probe(spec, 2, seed=seed + 2)])


def compared_with(
    module: nn.Module,
    spec: ArchSpec,
    kinds: Mapping[str, BlockInfo],
    images: Sequence[Tensor],
    made: Deployed | None = None,
) -> Difference:
    """A net in eval mode, with the weights that it has, beside its deploy form on these images (B, C, H, W each).

    `made` is the deploy form where it is there already. Where float32 differs by more than 1e-5, both forms are made
    and run once more in float64. Raises RunError where an output is not finite.
    """
    with torch.no_grad():
        truth = [module(x) for x in images]  # before the fuse methods run: they might reach into the net itself
        made = made or deployed(module, spec, kinds)
        apart = max(rel_diff(a, made.module(x), spec.name) for a, x in zip(truth, images, strict=True))
        if apart <= 1e-5:
            return Difference(apart, unfused=made.unfused)
        try:
            exact, where = _in_float64(module, spec, kinds, images)
        except RunError:
            raise
        except Exception as error:  # a user's block may hold float32 by force
            return Difference(apart, None, words(error), unfused=made.unfused)
    return Difference(apart, exact, "", where, made.unfused)


def _in_float64(
    module: nn.Module, spec: ArchSpec, kinds: Mapping[str, BlockInfo], images: Sequence[Tensor]
) -> tuple[float, tuple[str, ...]]:
    """The difference of the forms in float64, and the rows whose own forms differ on the same input."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        train = copy.deepcopy(module).double().eval()
        fused = deployed(train, spec, kinds).module
        every = [x.double() for x in images]
        apart = max(rel_diff(train(x), fused(x), spec.name) for x in every)
        where: list[str] = []
        if apart > ROUNDING and isinstance(train, Backbone) and isinstance(fused, Backbone):
            maps: Maps = every[0]
            backbone = replace(spec, stages=spec.backbone_stages, head=None)
            for (place, a, name), (_, b, _) in zip(_rows(train, backbone), _rows(fused, backbone), strict=True):
                given, maps = maps, getattr(a, name)(maps)
                if rel_diff(_tuple(maps), _tuple(getattr(b, name)(given)), spec.name) > ROUNDING:
                    where.append(place.where)
        return apart, tuple(where)
    finally:
        torch.set_default_dtype(usual)


def _tuple(maps: Maps) -> tuple[Tensor, ...]:
    return (maps,) if isinstance(maps, Tensor) else tuple(maps)


def rel_diff(truth: Sequence[Tensor], other: Sequence[Tensor], name: str) -> float:
    """The largest difference over the largest value, of the worst map. Raises RunError where one is not finite."""
    worst = 0.0
    for a, b in zip(truth, other, strict=True):
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise RunError(f"{name}: an output is not finite with these weights, so the forms were not compared")
        worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)))
    return worst


class _Reached(Exception):
    """Carries the map at the cut out of a foreign network's forward."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Library(nn.Module):
    """Another library's network, cut after one of its modules: B, C, H, W -> (map,)."""

    def __init__(self, spec: ArchSpec, *, device: str | None = None) -> None:
        super().__init__()
        assert spec.library is not None
        self.name = spec.library
        self.net = library.make_net(spec.library, device=device, size=spec.input[1:])
        cut = library.cut_point(library.graph_of(spec), spec)
        self.last_module, self.grid = cut.module, cut.grid

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not self.last_module:
            return (self.net(x),)

        def stop(_: nn.Module, __: Any, out: Any) -> None:
            raise _Reached(out)

        handle = self.net.get_submodule(self.last_module).register_forward_hook(stop)
        try:
            self.net(x)
        except _Reached as reached:
            return (library.as_map(reached.value, self.grid),)
        finally:
            handle.remove()
        raise RunError(f"{self.name}: the module {self.last_module} did not run")

    def deploy(self, example: list[Tensor]) -> Deployed:
        fused = copy.deepcopy(self).eval()
        like = next((t for t in fused.parameters() if t.is_floating_point()), torch.zeros(()))
        unfused: list[Unfused] = []
        try:
            fused.net = library.reparameterize(fused.net, self.name)
        except Exception as error:  # the library's own fault: the net runs as it is
            fused = copy.deepcopy(self).eval()
            unfused.append(("", f"its library cannot fuse it: {words(error)}", True))
        given = [x.to(device=like.device, dtype=like.dtype) for x in example]
        unfused += ops.fold_norms(fused, given, is_ours=True)
        return Deployed(fused.eval(), tuple(unfused))
