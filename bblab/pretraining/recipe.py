"""Recipe: all numbers of a pretraining run, as data: the YAML files of `pretrain/`, each with its source.

The training loop holds no numbers of its own: what a recipe does not say has the default of its field here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from bblab.errors import BblabError, Complaint, Mark, SpecError, near
from bblab.rooms import Rooms
from bblab.spec import Node, check_type, read_text, read_yaml

IMAGES: Mapping[str, tuple[int, int]] = {"imagenet-1k": (1_281_167, 50_000), "digits": (1_437, 360)}
"""Training and validation images of the data that recipes are meant for."""


@dataclass(frozen=True, slots=True)
class Published:
    """A result of the source: what it was reached with, and how long it took where the source says so."""

    net: str
    top1_percent: float | None = None
    minutes: float | None = None
    device: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a training run needs besides the network and the data.

    Rates and schedule: `lr` belongs to `base_batch` images a step. The warm-up starts at `warmup_start_factor` x lr
    and rises linearly to lr (`warmup: linear`) or stays there (`constant`); then the schedule runs over the remaining
    epochs down to `final_lr_ratio` x lr (cosine, linear), or multiplies by `gamma` every `step_epochs` epochs
    (exponential) or at each epoch of `milestones` (step).

    Weight decay goes from `weight_decay` along a cosine to `final_weight_decay` where that is given. Norms and biases
    are spared, throughout, where `decays_norms` or `decays_biases` is false.

    Pictures: `augment` lists named steps in order, each {"step": name, ...numbers} (see STEPS). Training starts at
    `resolution_px`; `resolution_ramp` holds (epoch, px): from that epoch on, that size. Validation resizes the short
    side to val_resolution_px / val_crop_ratio and cuts val_resolution_px from the centre. `repeated_augment` is how
    often each image of a step is repeated (1: not). `mixup` and `cutmix` are their alphas; with both, each batch
    takes one of them, evenly.

    `ema_momentum` is the share of the new weights in the running average for each `base_batch` images; null for none.
    A step of B images takes 1 - (1 - ema_momentum) ** (B / base_batch), so that the average looks back over as many
    images at any batch (the EMA scaling rule: Busbridge et al. 2023, arXiv:2307.13813). `omitted` says which parts
    of the source do not carry over, and why.
    """

    name: str
    about: str
    source: str
    epochs: int
    optimizer: Literal["sgd", "rmsprop", "adamw", "lamb"]
    lr: float
    base_batch: int
    schedule: Literal["cosine", "linear", "exponential", "step", "constant"]
    for_data: Literal["imagenet-1k", "digits"] = "imagenet-1k"
    final_lr_ratio: float = 0.0
    gamma: float | None = None
    step_epochs: float = 1
    milestones: tuple[int, ...] = ()
    warmup: Literal["linear", "constant"] = "linear"
    warmup_epochs: float = 0
    warmup_start_factor: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    rms_alpha: float = 0.99
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    final_weight_decay: float | None = None
    decays_norms: bool = True
    decays_biases: bool = True
    clip_grad_norm: float | None = None
    loss: Literal["ce", "bce"] = "ce"
    label_smoothing: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    resolution_px: int = 224
    resolution_ramp: tuple[tuple[int, int], ...] = ()
    val_resolution_px: int = 224
    val_crop_ratio: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    augment: tuple[Mapping[str, Any], ...] = ()
    mixup: float = 0.0
    cutmix: float = 0.0
    repeated_augment: int = 1
    ema_momentum: float | None = None
    published: tuple[Published, ...] = ()
    omitted: tuple[str, ...] = ()

    @property
    def resolutions_px(self) -> tuple[tuple[int, int], ...]:
        """(first epoch, training size), the first at epoch 0."""
        return ((0, self.resolution_px), *self.resolution_ramp)

    @property
    def final_resolution_px(self) -> int:
        return self.resolutions_px[-1][1]

    @property
    def val_resize_px(self) -> int:
        """The short side before the centre crop: 256 for a crop of 224 with ratio 0.875."""
        return round(self.val_resolution_px / self.val_crop_ratio)

    def resolution_at(self, epoch: int) -> int:
        """The training size of an epoch, counted from 0."""
        return next(px for start, px in reversed(self.resolutions_px) if start <= epoch)

    def epochs_at(self, px: int = 224) -> float:
        """How many epochs at one size cost as many pixels: what makes recipes of several sizes comparable."""
        return sum(self.resolution_at(e) ** 2 for e in range(self.epochs)) / px**2

    def hours(
        self,
        images_per_s: float,
        at_px: float = 224,
        *,
        loader_images_per_s: float = math.inf,
        train_images: int | None = None,
        val_images: int | None = None,
    ) -> float:
        """Hours of training with a validation after each epoch, from a training rate measured at `at_px`.

        Without counts, on the data that the recipe is meant for.

        Assumes that the time of a training image grows with its pixels, that a validation image takes a third of it
        (forward only), that the loader takes equally long at every size, and that the slower of the two limits.
        """

        def seconds(images: int, px: int, share: float) -> float:
            return images / min(images_per_s * (at_px / px) ** 2 / share, loader_images_per_s)

        train = IMAGES[self.for_data][0] if train_images is None else train_images
        val = IMAGES[self.for_data][1] if val_images is None else val_images
        training = sum(seconds(train, self.resolution_at(e), 1) for e in range(self.epochs))
        return (training + self.epochs * seconds(val, self.val_resolution_px, 1 / 3)) / 3600


# ---------------------------------------------------------------------------------------------- augmentation


@dataclass(frozen=True, slots=True)
class _Number:
    """One number of a step: its type as an annotation, its default, its bounds (of each number in a list)."""

    annotation: str
    default: Any
    low: float = -math.inf
    high: float = math.inf


STEPS: Mapping[str, Mapping[str, _Number]] = {
    "random_resized_crop": {
        "scale": _Number("list[float]", (0.08, 1.0), 0.0, 1.0),
        "ratio": _Number("list[float]", (3 / 4, 4 / 3), 0.05, 20.0),
    },
    "center_crop": {},
    "flip": {"prob": _Number("float", 0.5, 0, 1)},
    "auto_augment": {"policy": _Number("Literal['imagenet']", "imagenet")},
    "rand_augment": {
        "ops": _Number("int", 2, 1, 10),
        "magnitude": _Number("float", 6, 0, 10),
        "magnitude_std": _Number("float", 0.5, 0, 10),
    },
    "color_jitter": {
        "brightness": _Number("float", 0.4, 0, 1),
        "contrast": _Number("float", 0.4, 0, 1),
        "saturation": _Number("float", 0.4, 0, 1),
        "hue": _Number("float", 0.0, 0, 0.5),
    },
    "random_erasing": {
        "prob": _Number("float", 0.25, 0, 1),
        "min_area": _Number("float", 0.02, 0, 1),
        "max_area": _Number("float", 1 / 3, 0, 1),
    },
    "random_crop": {"pad": _Number("int", 4, 0, 512)},
}
"""What an `augment` list may name. One of the crops stands first, because it makes the training size."""
_CROPS = ("random_resized_crop", "center_crop", "random_crop")

_BOUNDS: Mapping[str, tuple[float, float]] = {
    "epochs": (1, 10_000),
    "lr": (1e-12, 1_000),
    "base_batch": (1, 1_000_000),
    "final_lr_ratio": (0, 1),
    "gamma": (1e-6, 1),
    "step_epochs": (1e-3, 10_000),
    "milestones": (1, 10_000),
    "warmup_epochs": (0, 10_000),
    "warmup_start_factor": (0, 1),
    "momentum": (0, 0.999999),
    "rms_alpha": (0, 0.999999),
    "betas": (0, 0.999999),
    "eps": (0, 1),
    "weight_decay": (0, 10),
    "final_weight_decay": (0, 10),
    "clip_grad_norm": (1e-9, 1e9),
    "label_smoothing": (0, 0.999),
    "dropout": (0, 0.999),
    "drop_path": (0, 0.999),
    "resolution_px": (8, 4096),
    "val_resolution_px": (8, 4096),
    "val_crop_ratio": (0.05, 1),
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "repeated_augment": (1, 16),
    "ema_momentum": (1e-9, 0.999999),
}
_REQUIRED = tuple(f.name for f in fields(Recipe) if f.default is MISSING and f.name != "name")


# ---------------------------------------------------------------------------------------------- reading


def read(path: Path) -> Recipe:
    """The recipe of a file. Raises SpecError with every mistake and its place."""
    return parse(read_text(path), str(path), path.stem)


def parse(text: str, file: str, name: str) -> Recipe:
    """The recipe of a YAML text; `file` is what its complaints name. Raises SpecError with every mistake."""
    root = read_yaml(text, file)
    if root.kind != "map":
        raise SpecError([Complaint(root.mark, f"a recipe must be a map, read {root.shown()}")])
    return _Reader(root).recipe(name)


class _Reader:
    """Walks the map once, collecting complaints instead of stopping at the first."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.complaints: list[Complaint] = []

    def recipe(self, name: str) -> Recipe:
        known = {f.name: f for f in fields(Recipe)}
        special = {"augment": self.steps, "resolution_ramp": self.ramp, "published": self.results}
        values: dict[str, Any] = {"name": name}
        for key, (mark, node) in self.root.value.items():
            if key not in known:
                self.complain(mark, f"a recipe has no {key!r}", near(key, known))
            elif key == "name":
                if node.value != name:
                    self.complain(node.mark, f"name is {node.shown()}", f"a recipe is named after its file: {name}")
            elif key in special:
                values[key] = special[key](node)
            elif self.fits(key, str(known[key].type), node, _BOUNDS.get(key)):
                value = node.plain()
                values[key] = tuple(value) if isinstance(value, list) else value
        for key in _REQUIRED:
            if key not in self.root.value:
                self.complain(self.root.mark, f"{key!r} is missing")
        if not self.complaints:
            self.disagreements(Recipe(**values))
        if self.complaints:
            raise SpecError(self.complaints)
        return Recipe(**values)

    def complain(self, mark: Mark, message: str, hint: str = "") -> None:
        self.complaints.append(Complaint(mark, message, hint))

    def fits(self, key: str, annotation: str, node: Node, bounds: tuple[float, float] | None) -> bool:
        plain = node.plain()
        wanted = check_type(annotation, plain)
        if wanted:
            hint = near(plain, _choices(annotation)) if isinstance(plain, str) and "Literal" in annotation else ""
            self.complain(node.mark, f"{key} must be {wanted}, read {node.shown()}", hint)
            return False
        numbers = plain if isinstance(plain, list) else [plain]
        if bounds and not all(bounds[0] <= n <= bounds[1] for n in numbers if isinstance(n, (int, float))):
            self.complain(node.mark, f"{key} must be from {bounds[0]:g} to {bounds[1]:g}, read {node.shown()}")
            return False
        return True

    def steps(self, node: Node) -> tuple[Mapping[str, Any], ...]:
        if node.kind != "list":
            self.complain(node.mark, f"augment must be a list of steps, read {node.shown()}", _step_example())
            return ()
        read = [self.step(item) for item in node.value]
        for index, (item, step) in enumerate(zip(node.value, read, strict=True)):
            if step and (step["step"] in _CROPS) != (index == 0):
                self.complain(item.mark, f"{step['step']} stands at place {index + 1}", _one_crop())
        return tuple(step for step in read if step)

    def step(self, node: Node) -> Mapping[str, Any] | None:
        """`flip` alone, or `flip: {prob: 0.5}`."""
        if node.kind == "scalar":
            name, mark, given = str(node.value), node.mark, {}
        elif node.kind == "map" and len(node.value) == 1:
            (name, (mark, numbers)), *_ = node.value.items()
            if numbers.kind != "map":
                self.complain(numbers.mark, f"{name} must be a map of its numbers, read {numbers.shown()}")
                return None
            given = numbers.value
        else:
            self.complain(node.mark, f"a step is one name with its numbers, read {node.shown()}", _step_example())
            return None
        if name not in STEPS:
            self.complain(mark, f"no augmentation {name!r}", near(name, STEPS))
            return None
        values: dict[str, Any] = {"step": name} | {k: n.default for k, n in STEPS[name].items()}
        for key, (where, value) in given.items():
            number = STEPS[name].get(key)
            if number is None:
                self.complain(where, f"{name} has no {key!r}", near(key, STEPS[name]))
            elif self.fits(f"{name}'s {key}", number.annotation, value, (number.low, number.high)):
                plain = value.plain()
                values[key] = tuple(plain) if isinstance(plain, list) else plain
                if isinstance(plain, list) and (len(plain) != 2 or plain[0] > plain[1]):
                    self.complain(value.mark, f"{name}'s {key} must be [least, most], read {value.shown()}")
        if values.get("min_area", 0) > values.get("max_area", 1):
            self.complain(mark, f"{name}: min_area {values['min_area']} is above max_area {values['max_area']}")
        return values

    def ramp(self, node: Node) -> tuple[tuple[int, int], ...]:
        pairs = node.plain()
        if check_type("list[list[int]]", pairs) or any(len(pair) != 2 for pair in pairs):
            hint = "for example resolution_ramp: [[12, 192]]: 192 px from epoch 12 on"
            self.complain(node.mark, f"resolution_ramp must be a list of [epoch, px], read {node.shown()}", hint)
            return ()
        low, high = _BOUNDS["resolution_px"]
        for item, (_, px) in zip(node.value, pairs, strict=True):
            if not low <= px <= high:
                self.complain(item.mark, f"a resolution must be from {low} to {high} px, read {px}")
        starts = [0, *(epoch for epoch, _ in pairs)]
        if any(a >= b for a, b in itertools.pairwise(starts)):
            self.complain(node.mark, f"the epochs of resolution_ramp must rise from above 0, read {node.shown()}")
        return tuple((epoch, px) for epoch, px in pairs)

    def results(self, node: Node) -> tuple[Published, ...]:
        known = {f.name: str(f.type) for f in fields(Published)}
        found: list[Published] = []
        if node.kind != "list" or any(item.kind != "map" for item in node.value):
            hint = "for example published: [{net: resnet18, top1_percent: 66.9, minutes: 35, device: one A100}]"
            self.complain(node.mark, f"published must be a list of maps, read {node.shown()}", hint)
            return ()
        for item in node.value:
            values: dict[str, Any] = {}
            for key, (mark, value) in item.value.items():
                if key not in known:
                    self.complain(mark, f"a published result has no {key!r}", near(key, known))
                elif self.fits(key, known[key], value, (0, 1e9) if "float" in known[key] else None):
                    values[key] = value.plain()
            if "net" not in item.value:
                self.complain(item.mark, "a published result needs its 'net'")
            elif "net" in values:
                found.append(Published(**values))
        return tuple(found)

    def disagreements(self, r: Recipe) -> None:
        """What is wrong between entries that are each right."""
        places = {key: node.mark for key, (_, node) in self.root.value.items()}

        def at(*keys: str) -> Mark:
            return next((places[k] for k in keys if k in places), self.root.mark)

        if r.warmup_epochs >= r.epochs:
            self.complain(at("warmup_epochs"), f"warmup_epochs {r.warmup_epochs:g} of {r.epochs} epochs leave none")
        for epoch, px in r.resolution_ramp:
            if epoch >= r.epochs:
                self.complain(at("resolution_ramp"), f"{px} px from epoch {epoch} is after the last of {r.epochs}")
        if r.schedule in ("exponential", "step") and r.gamma is None:
            self.complain(at("schedule"), f"schedule {r.schedule} needs 'gamma'", "what the lr is multiplied by")
        if r.schedule == "step" and not r.milestones:
            self.complain(at("schedule"), "schedule step needs 'milestones'", "for example milestones: [30, 60, 90]")
        if any(a >= b for a, b in itertools.pairwise(r.milestones)):
            self.complain(at("milestones"), f"milestones must rise, read {list(r.milestones)}")
        if any(m >= r.epochs for m in r.milestones):
            self.complain(at("milestones"), f"milestone {max(r.milestones)} is after the last of {r.epochs} epochs")
        if len(r.betas) != 2:
            self.complain(at("betas"), f"betas must be two numbers, read {list(r.betas)}")
        for key, schedules in (
            ("gamma", ("exponential", "step")), ("milestones", ("step",)), ("step_epochs", ("exponential",)),
            ("final_lr_ratio", ("cosine", "linear")),
        ):  # fmt: skip
            if key in places and r.schedule not in schedules:
                self.complain(at(key), f"{key} has no effect with schedule {r.schedule}", "remove it")
        for key, optimizers in (
            ("nesterov", ("sgd",)), ("momentum", ("sgd", "rmsprop")), ("rms_alpha", ("rmsprop",)),
            ("betas", ("adamw", "lamb")), ("eps", ("rmsprop", "adamw", "lamb")),
        ):  # fmt: skip
            if key in places and r.optimizer not in optimizers:
                self.complain(at(key), f"{key} has no effect with optimizer {r.optimizer}", "remove it")
        if r.final_weight_decay is not None and r.final_weight_decay > r.weight_decay:
            self.complain(at("final_weight_decay"), "final_weight_decay is above weight_decay", "it anneals downwards")
        if r.loss == "bce" and r.label_smoothing:
            self.complain(at("label_smoothing"), "label_smoothing goes with loss ce, not bce", "remove one of them")


def _choices(annotation: str) -> list[str]:
    import ast

    found = [n.value for n in ast.walk(ast.parse(annotation)) if isinstance(n, ast.Constant)]
    return [value for value in found if isinstance(value, str)]


def _step_example() -> str:
    return f"for example augment: [random_resized_crop, {{flip: {{prob: 0.5}}}}]; known: {', '.join(sorted(STEPS))}"


def _one_crop() -> str:
    return f"exactly one crop, and as the first step: {', '.join(_CROPS)}"


def read_all(rooms: Rooms) -> list[Recipe]:
    """Every recipe of the rooms, by name. Raises SpecError for a broken one."""
    return [read(path) for _, path in sorted(rooms.files("pretrain", ".yaml").items())]


def find(name: str, rooms: Rooms) -> Recipe:
    """The recipe of this name, or of a .yaml path. Raises BblabError listing the near ones."""
    known = rooms.files("pretrain", ".yaml")
    if name in known:
        return read(known[name])
    if name.endswith((".yaml", ".yml")):
        from bblab.spec import expanded

        return read(expanded(name))
    raise BblabError(f"no recipe {name!r}", hint=near(name, known))
