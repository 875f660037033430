"""Freeze a backbone for the first epochs of a tracker's training, so that nothing of it moves.

"Frozen" is two things, and trainers forget the second: parameters that take no gradient, and norms that stay in eval.
pysot's `build_opt_lr` puts the norms in eval once; TracKit's `ocean_train` then calls `model.train()` at every epoch's
start (lib/core/function.py), and the running statistics of the "frozen" backbone move with every batch. Here a frozen
module stays in eval whoever calls `train()`. A gradient left from before is dropped: an optimiser skips a parameter
without one, so neither momentum nor weight decay moves it.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError, near

if TYPE_CHECKING:
    from torch import nn

UNFREEZE_AT = 10
"""pysot's and NanoTrack's BACKBONE.TRAIN_EPOCH, of 50 epochs (counted from 0): scale it with the length of the run."""
_MARK = "_bblab_frozen"


@dataclass(frozen=True, slots=True)
class Freezing:
    """What is frozen now. `changed`: another set of parameters than before, so the optimiser has to be built anew.

    Counts are of parameters (numbers, not tensors) and of norms with running statistics.
    """

    epoch: int
    changed: bool
    frozen_params: int
    trainable_params: int
    frozen_norms: int
    trainable_norms: int

    @property
    def is_frozen(self) -> bool:
        """True while nothing of the backbone trains."""
        return self.trainable_params == 0


def freeze(
    backbone: nn.Module, epoch: int, unfreeze_at: int = UNFREEZE_AT, *, stages: Sequence[str] | None = None
) -> Freezing:
    """Keep the backbone frozen before epoch `unfreeze_at` (from 0, as pysot counts); let it train from then on.

    Call it at the start of every epoch, before or after `model.train()`; resuming in a later epoch is right, too. With
    `stages` only these train from `unfreeze_at` on and the rest never does (pysot's TRAIN_LAYERS): names of a bblab
    backbone's stages, or attributes such as "layer3", also dotted. A parameter that the trainer itself had frozen stays
    frozen. A frozen module is in eval as a whole, dropout included, so its features are the same each time.

    Where `changed` is true, build the optimiser anew if it was made with the trainable parameters only, and wrap anew
    in DistributedDataParallel: it never averages gradients of parameters that were frozen when it was made. Raises
    BblabError for what is no module, no epoch, or no stage of it.
    """
    _check(backbone, epoch, unfreeze_at)
    chosen = None if stages is None else _chosen(backbone, stages)
    before = _trainable(backbone)
    if epoch < unfreeze_at:
        trains: set[nn.Module] = set()
    elif chosen is None:
        trains = set(backbone.modules())
    else:
        trains = {m for stage in chosen for m in stage.modules()}
    asked = _asked_flags(backbone)
    # A parameter that two modules share is frozen where one of them is: the modules that train go first.
    for module in backbone.modules():
        if module in trains:
            _thaw(module, asked)
    for module in backbone.modules():
        if module not in trains:
            _freeze(module, asked)
    after = _trainable(backbone)
    return _report(backbone, epoch, changed=before != after)


def unfreeze(backbone: nn.Module) -> Freezing:
    """End every freezing now: parameters train as before `freeze`, modules return to the mode last asked of them."""
    _check(backbone, 0, 0)
    return freeze(backbone, 0, 0)


def _asked_flags(backbone: nn.Module) -> dict[int, bool]:
    """`requires_grad` of every parameter as the trainer left it, by the tensor's id."""
    flags = {id(p): p.requires_grad for p in backbone.parameters()}
    for module in backbone.modules():
        known = module.__dict__.get(_MARK, {}).get("requires_grad", {})
        flags |= {id(p): known[name] for name, p in module.named_parameters(recurse=False) if name in known}
    return flags


def _freeze(module: nn.Module, asked: dict[int, bool]) -> None:
    if _MARK not in module.__dict__:
        flags = {name: asked[id(p)] for name, p in module.named_parameters(recurse=False)}
        module.__dict__[_MARK] = {"training": module.training, "requires_grad": flags}
        # On the instance: `model.train()` reaches each module by its `train`.
        module.__dict__["train"] = types.MethodType(_train_asked, module)
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)
        parameter.grad = None
    module.training = False


def _thaw(module: nn.Module, asked: dict[int, bool]) -> None:
    state = module.__dict__.pop(_MARK, None)
    if state is None:
        return
    module.__dict__.pop("train", None)
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(asked[id(parameter)])
    module.training = state["training"]


def _train_asked(self: nn.Module, mode: bool = True) -> nn.Module:
    """`train` of a frozen module: remembers what was asked for, and stays in eval."""
    type(self).train(self, mode)
    state = self.__dict__.get(_MARK)
    if state is not None:
        state["training"] = mode
        self.training = False
    return self


def _check(backbone: Any, epoch: Any, unfreeze_at: Any) -> None:  # what a trainer's script hands over
    from torch import nn

    if not isinstance(backbone, nn.Module):
        raise BblabError(
            f"freeze needs the backbone, an nn.Module, and was given {type(backbone).__name__}",
            hint="freeze(model.backbone, epoch)",
        )
    for name, value in (("epoch", epoch), ("unfreeze_at", unfreeze_at)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise BblabError(f"{name} is a whole number from 0 on, not {value!r}", hint="freeze(model.backbone, epoch)")


def _inner(module: nn.Module) -> nn.Module:
    """The net inside DistributedDataParallel, DataParallel, pysot's DistModule or torch.compile."""
    while True:
        children = dict(module.named_children())
        name = next((n for n in ("module", "_orig_mod") if set(children) == {n}), None)
        if name is None:
            return module
        module = children[name]


def _chosen(backbone: nn.Module, stages: Sequence[str]) -> list[nn.Module]:
    from torch import nn

    names = [stages] if isinstance(stages, str) else [str(name) for name in stages]
    if not names:
        raise BblabError("no stage is named, so nothing would ever train", hint="leave stages out to train all of them")
    net = _inner(backbone)
    own = getattr(net, "stages", None)
    places: list[nn.Module] = [own, net] if isinstance(own, nn.ModuleDict) else [net]
    found: list[nn.Module] = []
    for name in names:
        at = next((dict(p.named_modules())[name] for p in places if name and name in dict(p.named_modules())), None)
        if at is None:
            known = [child for child, _ in places[0].named_children()]
            raise BblabError(f"the backbone has no stage {name!r}", hint=near(name, known))
        found.append(at)
    return found


def _trainable(backbone: nn.Module) -> set[Any]:  # Tensors are hashed by identity
    return {p for p in backbone.parameters() if p.requires_grad}


def _norms(backbone: nn.Module) -> Iterator[nn.Module]:
    """Whatever keeps running statistics: batch and instance norms, also synchronised ones."""
    return (m for m in backbone.modules() if getattr(m, "running_mean", None) is not None)


def _report(backbone: nn.Module, epoch: int, *, changed: bool) -> Freezing:
    params = list(backbone.parameters())
    norms = list(_norms(backbone))
    frozen_norms = sum(_MARK in m.__dict__ for m in norms)
    return Freezing(
        epoch,
        changed,
        frozen_params=sum(p.numel() for p in params if not p.requires_grad),
        trainable_params=sum(p.numel() for p in params if p.requires_grad),
        frozen_norms=frozen_norms,
        trainable_norms=len(norms) - frozen_norms,
    )
