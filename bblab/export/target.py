"""What a tracker trainer asks of a backbone, as data. A target is one file in `bblab/export/targets/`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from bblab.catalogue import Catalogue
from bblab.errors import BblabError, near

Layout = Literal["stages", "features"]
Input = Literal["bgr255", "rgb_imagenet"]


@dataclass(frozen=True, slots=True)
class Fit:
    """Maps that a trainer can take: sides of the last tap's map at template and search size, and the score map.

    `keys`: what the config says for these maps (BASE_SIZE, center_size, ...).
    """

    template_map: int
    search_map: int
    score_map: int
    keys: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Freezing:
    """How a trainer is told to spare the backbone: frozen epochs, the part of the learning rate, what learns, why.

    `norms`: whether norms stay frozen for the whole run. Built by `freezing`.
    """

    epochs: int
    lr_share: float
    layers: tuple[str, ...]
    norms: bool
    why: str


@dataclass(frozen=True, slots=True)
class Variant:
    """One of several heads or packages of a trainer: what differs in its needs and its config.

    replaces: fields of the target that are others here.
    """

    about: str
    fits: tuple[Fit, ...] = ()
    channels: tuple[int, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    replaces: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """A trainer's needs.

    freeze_epochs, lr_share: what spares trained weights: epochs in which the backbone is frozen, then its part of the
    learning rate. Random weights are not spared: `Freezing`.
    root: what `--trainer` of the folder's scripts names, and a file in it. fits: the maps it can take; none: any.
    max_taps: 1 where it takes one tensor; None for any number, as a list. layout: each stage an attribute of the
    backbone, or all in one `features`. input: what it feeds. padding: the rule that gives its maps. train_above: stages
    whose total stride is above this are trained (0: all). config: its YAML with $names, after the trainer's own file
    `upstream`; differs: patterns of the keys in which it differs from that, and why. launch: functions of the
    target's own file that `launch.py` consists of; supplies: the functions of launching.py that supply what current
    packages dropped; imports: modules that the script imports as it runs; paths: folders of the trainer that it has on
    the import path. log, checkpoints: where a run leaves them, as patterns in its folder; losses: their names in the
    log. weights_prefix: put before every key of the weight file.
    """

    name: str
    trainer: str
    repository: str
    commit: str
    sources: tuple[str, ...]
    file: Path
    template_px: int = 127
    search_px: int = 255
    stride: int | None = None
    fits: tuple[Fit, ...] = ()
    max_taps: int | None = 1
    layout: Layout = "stages"
    input: Input = "bgr255"
    padding: str = "same"
    freeze_epochs: int = 10
    lr_share: float = 0.1
    freeze: str = ""
    norms_never_learn: bool = False
    train_above: int = 0
    root: str = ""
    script: str = ""
    command: str = ""
    config: str = ""
    upstream: str = ""
    differs: Mapping[str, str] = field(default_factory=dict)
    config_values: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    launch: tuple[str, ...] = ()
    supplies: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    log: str = ""
    losses: tuple[str, ...] = ("total_loss",)
    checkpoints: str = ""
    weights_prefix: str = ""
    weights_suffix: str = ".pth"
    variants: Mapping[str, Variant] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pip: str = ""


TARGETS: Catalogue[Target] = Catalogue("target")
LAUNCH = (
    *("register", "start", "ready", "smoke", "resume", "restore"),
    *("build", "backbone_of", "taps_of", "scores", "epoch", "step", "PREFIX"),
)
RANDOM = "random weights: nothing to spare"
SPARED = "trained weights are spared"


def freezing(target: Target, stages: Sequence[tuple[str, float | None]], *, is_random: bool) -> Freezing:
    """The freezing for trained weights as the trainer has it; none at all, and the full rate, for random weights.

    `stages`: each stage's name and total stride.
    """
    every = tuple(name for name, _ in stages)
    kept = tuple(name for name, stride in stages if not target.train_above or (stride or 0) > target.train_above)
    layers = every if is_random else kept or every
    if target.layout == "features":
        layers = ("features",)
    if is_random:
        return Freezing(0, 1.0, layers, False, RANDOM)
    return Freezing(target.freeze_epochs, target.lr_share, layers, target.norms_never_learn, SPARED)


SAME_AS = {"siamban": "pysot:siamban", "siamtrackers": "nanotrack", "trackit": "ocean", "video_analyst": "siamfcpp"}
"""Other names of what a target serves."""

CANNOT: Mapping[str, str] = {
    "ostrack": "OSTrack is a one-stream transformer: template and search tokens enter it together (its ViT is tracker "
    "and backbone in one; github.com/botaoye/OSTrack, lib/models/ostrack/vit_ce.py), so no CNN backbone can take its "
    "place",
    "lighttrack": "the public LightTrack repository (github.com/researchmm/LightTrack, 39c426f) has no trainer: it "
    "tests, counts and times; there is no optimizer and no backward() in it",
}
"""Trainers asked for that take no backbone, and why."""

INSTEAD = "train the same backbone with another: --for nanotrack, pysot, ocean or stark; --for generic is for your own"


def names() -> list[str]:
    """Every target that there is a file for."""
    from bblab.export import targets

    for module in pkgutil.iter_modules(targets.__path__):
        importlib.import_module(f"{targets.__name__}.{module.name}")
    return list(TARGETS)


def find(asked: str) -> tuple[Target, str]:
    """A target and its variant ("" for the first) from `NAME` or `NAME:VARIANT`.

    Raises BblabError for an unknown one, or one that cannot be, with the reason.
    """
    known = names()
    name, colon, variant = asked.strip().lower().partition(":")
    if name in CANNOT:
        raise BblabError(f"--for {name}: {CANNOT[name]}", hint=INSTEAD)
    if name in SAME_AS:
        name, _, own = SAME_AS[name].partition(":")
        variant = variant or own
    if name not in known:
        raise BblabError(f"no target {asked!r}", hint=near(name, [*known, *SAME_AS]))
    target = TARGETS[name]
    if (colon or variant) and variant not in target.variants:
        listing = near(variant, target.variants) if target.variants else f"{name} has none: --for {name}"
        raise BblabError(f"target {name} has no variant {variant!r}", hint=listing)
    variant = variant or next(iter(target.variants), "")
    return (replace(target, **target.variants[variant].replaces) if variant else target), variant
