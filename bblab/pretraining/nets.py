"""The net that is trained: built from a spec, begun well, its weights brought, its first stages frozen.

Nothing here knows mmengine: the command checks a run with it before any training begins.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bblab import blocks, build
from bblab.errors import BblabError
from bblab.rooms import Rooms
from bblab.spec import ArchSpec
from bblab.weights import files, fill, load
from bblab.weights.sources import spec_from
from bblab.weights.trackers import IMAGENET, Images

MIN_CONVS = 9
"""More convolutions than this and no norm at all: a fused net (AlexNet has 5, LeNet 2, and they may be trained)."""


def spec_of(value: Mapping[str, Any], name: str, lab: str | None) -> tuple[ArchSpec, dict[str, Any]]:
    """A spec from its plain data, and the blocks that it may name."""
    kinds = blocks.infos(Rooms(Path(lab or os.devnull)))
    return spec_from(json.dumps(value), name, kinds), kinds


def make(
    spec: ArchSpec, kinds: Mapping[str, Any], num_classes: int, *, weights: str | None = None, freeze: str | None = None
) -> tuple[nn.Module, list[nn.Module]]:
    """The net in train form with random numbers from torch's present state, and its frozen modules.

    weights: a file written for this spec; its head may have another width. freeze: the last frozen stage. Raises
    BblabError for a fused net, weights that do not fit, a stage that is not there.
    """
    net: nn.Module = LibraryNet(spec, num_classes) if spec.library else build.Backbone(spec, kinds)
    refuse_fused(net, spec.name)
    initialise(net)
    if weights:
        state, metadata = load(weights)
        refuse_fused_file(state, metadata, net, weights)
        fill(net, fitting(state, net), weights)
    frozen = frozen_modules(net, spec, freeze)
    for module in frozen:
        module.requires_grad_(False)
    return net, frozen


def beginnings(weights: Path, spec: ArchSpec, kinds: Mapping[str, Any]) -> list[str]:
    """What a person should know of the weights that a training begins from, in words.

    Raises BblabError where the file cannot be read.
    """
    state, metadata = load(weights)
    notes = []
    if not spec.library:
        differs = files.other_head(state, files.shapes_of(build.Backbone(spec, kinds, device="meta")))
        if differs:
            notes.append(f"the head of {weights.name} is left out ({differs}): the new one begins anew")
    images = Images.from_json(metadata.get("images", ""))
    if images not in (None, IMAGENET):
        notes.append(f"{weights.name} was trained on images as {images}; here they are {IMAGENET}")
    return notes


def scores(net: nn.Module, x: Tensor) -> Tensor:
    """B, C, H, W -> B, classes."""
    found: Tensor = net.classify(x) if isinstance(net, build.Backbone) else net(x)
    return found


class LibraryNet(nn.Module):
    """Another library's net with a last layer of as many classes as the data has."""

    def __init__(self, spec: ArchSpec, num_classes: int) -> None:
        super().__init__()
        module = build.Library(spec)
        if module.last_module:
            self.cut: nn.Module | None = module
            with torch.no_grad():
                width = module.eval()(torch.zeros(1, *spec.input))[0].shape[1]
            self.head = nn.Linear(width, num_classes)
        else:
            self.cut = None
            self.net = module.net
            _fit_classifier(self.net, num_classes, spec.name)

    def forward(self, x: Tensor) -> Tensor:
        if self.cut is None:
            scores: Tensor = self.net(x)
            return scores
        return self.head(self.cut(x)[0].mean((2, 3)))


def _fit_classifier(net: nn.Module, num_classes: int, name: str) -> None:
    reset = getattr(net, "reset_classifier", None)
    if callable(reset):  # timm
        reset(num_classes)
        return
    linears = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)]
    if not linears:
        raise BblabError(f"{name} has no linear layer to classify with", hint="cut it: NAME@s16")
    at, last = linears[-1]
    parent, _, child = at.rpartition(".")
    setattr(net.get_submodule(parent), child, nn.Linear(last.in_features, num_classes, last.bias is not None))


def initialise(net: nn.Module) -> None:
    """He et al. 2015 (arXiv:1502.01852), fan out, for convolutions, as torchvision and mmpretrain begin; small scores.

    Norms and what a block sets itself stay. Another library's net keeps its own beginning.
    """
    if not isinstance(net, build.Backbone):
        return
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in (net.head or nn.Identity()).modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def frozen_modules(net: nn.Module, spec: ArchSpec, until: str | None) -> list[nn.Module]:
    """The stages up to and with `until`. Raises BblabError for a stage that the net does not have."""
    if until is None:
        return []
    names = [s.name for s in spec.stages]
    if until not in names or not isinstance(net, build.Backbone):
        raise BblabError(f"{spec.name} has no stage {until!r} to freeze", hint=f"its stages: {', '.join(names) or '-'}")
    return [net.stages[name] for name in names[: names.index(until) + 1]]


def fitting(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The weights under the net's own keys: `bblab import` writes another library's net without the part it is cut to.

    A head of another size is left out by `fill`: a new task's head begins anew.
    """
    if not isinstance(net, LibraryNet) or net.cut is None:
        return dict(state)
    return {f"cut.{k}" if k.startswith("net.") else k: v for k, v in state.items()}


MEMORIES = 10
"""Of so many times 1/momentum steps a running average has forgotten its beginning but for 5e-5 (momentum 0.1)."""
PRECISE_IMAGES = 8192
"""Images that precise statistics are computed over, where there are as many: as mmpretrain's PreciseBNHook."""


def settling_steps(net: nn.Module, frozen: Sequence[nn.Module] = ()) -> int:
    """Steps until the trained norms' running averages have settled; 0 for a net without such norms.

    The norm with the smallest momentum decides. One that averages everything it ever saw (momentum None) never settles.
    """
    still = {id(m) for module in frozen for m in module.modules()}
    norms = [
        m
        for m in net.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None and id(m) not in still
    ]
    momenta = [m.momentum for m in norms]
    if not momenta:
        return 0
    known = [m for m in momenta if m is not None]
    return 10**9 if len(known) < len(momenta) or min(known) <= 0 else round(MEMORIES / min(known))


# ---------------------------------------------------------------------------------------------- fused nets


FUSED_HINT = (
    "train the train form (branches and norms) and fuse it afterwards; a fused net has no batch norm left that would "
    "keep its activations in range: it has been seen to train to all zeros"
)


def refuse_fused(net: nn.Module, name: str) -> None:
    """Raises BblabError for a net whose norms have been folded away."""
    convs = sum(isinstance(m, nn.Conv2d) for m in net.modules())
    norms = sum(is_norm(m) for m in net.modules())
    if not norms and convs >= MIN_CONVS:
        raise BblabError(f"{name} has {convs} convolutions and no norm: it is a fused net", hint=FUSED_HINT)


def refuse_fused_file(state: Mapping[str, Tensor], metadata: Mapping[str, str], net: nn.Module, where: str) -> None:
    """Raises BblabError for weights of the deploy form."""
    lost = any(k.endswith("running_mean") for k in net.state_dict()) and not any(
        k.endswith("running_mean") for k in state
    )
    if metadata.get("form") == "deploy" or lost:
        raise BblabError(f"{where} holds fused weights: training cannot begin from them", hint=FUSED_HINT)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises what goes through it."""
    return isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm))
