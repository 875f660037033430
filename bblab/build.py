"""ArchSpec -> Backbone (nn.Module); train form and deploy form, and how far their outputs differ."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bblab import blockkit, blocks, library, ops
from bblab.errors import BblabError, RunError
from bblab.ops import Form
from bblab.spec import ArchSpec, BlockInfo

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


def to_deploy(module: nn.Module, spec: ArchSpec, kinds: Mapping[str, BlockInfo]) -> nn.Module:
    """A fused copy: branches and norms folded, in eval mode."""
    example = [probe(spec, 1)]
    if isinstance(module, Library):
        return module.deploy(example)
    fused = blockkit.deploy(module)
    if any(kinds[row.kind].origin == "lab" for stage in spec.stages for row in stage.rows):
        ops.fold_norms(fused, example, within=3)
    return fused


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
        if perturb and norm.affine:
            norm.weight.data.mul_(moved(norm.weight))
            # Shifts above 0 keep most units active. A random norm-ReLU net around 0 is chaotic: any rounding grows
            # by 1.2 a layer (Yang et al. 2019, arXiv:1902.08129), which says nothing about the fold.
            norm.bias.data.add_(moved(norm.bias))

    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    handles = [n.register_forward_pre_hook(before) for n in norms]
    try:
        with torch.no_grad():
            module.eval()(probe(spec, 4, seed=seed))
    finally:
        for handle in handles:
            handle.remove()


def deploy_difference(spec: ArchSpec, kinds: Mapping[str, BlockInfo], *, seed: int = 0) -> float:
    """How far the deploy form is from the train form: max |difference| over max |output|, float32.

    Random weights; batch-norm statistics calibrated, then perturbed by +-50 %. Raises RunError where an output is
    not finite.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = Library(spec) if spec.library else Backbone(spec, kinds)
        calibrate(module, spec, seed=seed, perturb=0.5)
        fused = to_deploy(module, spec, kinds)
        x = probe(spec, 2, seed=seed + 2)
        worst = 0.0
        for a, b in zip(module.eval()(x), fused(x), strict=True):
            if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
                raise RunError(
                    f"{spec.name}: an output is not finite with random weights, so the forms were not compared"
                )
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
        self.net = library.make_net(spec.library, device=device)
        self.last_module = library.cut_point(library.graph_of(spec), spec).module

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not self.last_module:
            return (self.net(x),)

        def stop(_: nn.Module, __: Any, out: Any) -> None:
            raise _Reached(out)

        handle = self.net.get_submodule(self.last_module).register_forward_hook(stop)
        try:
            self.net(x)
        except _Reached as reached:
            return (reached.value,)
        finally:
            handle.remove()
        raise RunError(f"{self.name}: the module {self.last_module} did not run")

    def deploy(self, example: list[Tensor]) -> nn.Module:
        fused = copy.deepcopy(self).eval()
        fused.net = library.reparameterize(fused.net, self.name)
        ops.fold_norms(fused, example)
        return fused
