"""A pretraining run as mmengine's Config: spec, recipe, data and settings in, plain data out.

The Config holds names and numbers only, so that it can be dumped beside the run and trained again by mmpretrain's own
tools/train.py. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from bblab.errors import BblabError
from bblab.pretraining.gates import Gate
from bblab.pretraining.recipe import Published, Recipe
from bblab.pretraining.schedule import Rule, Scaling, iterations_per_epoch, schedulers
from bblab.spec import ArchSpec, Row

Precision = Literal["auto", "fp32", "bf16"]
PLUGINS = "bblab.pretraining.adapter"
BAD_IMAGES = "bad_images.txt"
CLASSES = "classes.txt"
MEAN = [123.675, 116.28, 103.53]  # of ImageNet's training images, RGB, 0 to 255; as mmpretrain's configs
STD = [58.395, 57.12, 57.375]
LUMA = [0.299, 0.587, 0.114]  # what a grey picture takes of R, G, B (ITU-R BT.601, as OpenCV's)
CHANNELS = (1, 3)
"""Of the nets that can be trained on pictures: grey, or colours."""
META = ["sample_idx", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction", "is_blank"]
"""What is kept of an image beside its pixels: mmpretrain's own, and whether it could not be read."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run needs besides spec, recipe and data. `batch_size` is of one process; `workers` None: as fits.

    `is_cuda` and `precision` are settled where the run starts; `save_minutes` is the time between checkpoints inside
    an epoch (0: only at its end). `keeps_last`: an epoch ends with a smaller batch. `precise_images`: training images
    over which the norms' statistics are computed before each validation; 0: the training's running averages are used.
    """

    batch_size: int
    processes: int = 1
    accumulation: int = 1
    lr_rule: Rule = "none"
    seed: int = 0
    precision: Precision = "auto"
    workers: int | None = None
    compile: bool = False
    freeze: str | None = None
    weights: str | None = None
    keep: int = 2
    save_minutes: float = 10.0
    val_batch_size: int = 0
    is_cuda: bool = False
    keeps_last: bool = False
    precise_images: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that determines a run, as plain data: `run.json` in its folder.

    `spec` is the canonical form of the net that is trained (its head as wide as the data has classes), `spec_id` that
    of the spec that was asked for.
    """

    name: str
    spec: Mapping[str, Any]
    spec_id: str
    recipe: Recipe
    data: Mapping[str, Any]
    settings: Settings
    gates: tuple[Gate, ...] = ()
    lab: str | None = None
    code_version: str = ""
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scaling(self) -> Scaling:
        s = self.settings
        return Scaling(
            self.recipe.lr,
            self.recipe.base_batch,
            s.batch_size,
            s.processes,
            s.accumulation,
            s.lr_rule,
            self.recipe.optimizer,
        )

    @property
    def num_classes(self) -> int:
        return len(self.data["classes"])

    @property
    def iterations(self) -> int:
        """Iterations of one epoch, in each process."""
        s = self.settings
        return iterations_per_epoch(self.data["train_count"], s.batch_size, s.processes, s.keeps_last)

    @property
    def steps(self) -> int:
        """Iterations of the whole run, in each process."""
        return self.recipe.epochs * self.iterations

    @property
    def left_out(self) -> int:
        """Images of each epoch that no batch holds; other ones every time."""
        s = self.settings
        mine = math.ceil(self.data["train_count"] / s.processes)
        return max(0, self.data["train_count"] - s.processes * min(mine, self.iterations * s.batch_size))

    @property
    def channels(self) -> int:
        """Of a picture as the net takes it."""
        return int(self.spec["input"][0])

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "scaling": self.scaling.to_json(), "iterations": self.iterations}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        recipe = {f.name: _frozen(value["recipe"][f.name]) for f in fields(Recipe) if f.name in value["recipe"]}
        recipe["published"] = tuple(Published(**p) for p in recipe.get("published", ()))
        settings = Settings(**value["settings"])
        if "keeps_last" not in value["settings"] and recipe.get("ema_momentum"):
            # Of a version that took this share at every step, of whatever batch.
            step = settings.batch_size * settings.processes
            recipe["ema_momentum"] = 1 - (1 - recipe["ema_momentum"]) ** (recipe["base_batch"] / step)
        return cls(
            name=value["name"],
            spec=value["spec"],
            spec_id=value["spec_id"],
            recipe=Recipe(**recipe),
            data=value["data"],
            settings=settings,
            gates=tuple(Gate(**g) for g in value["gates"]),
            lab=value["lab"],
            code_version=value["code_version"],
            notes=tuple(value["notes"]),
            extra=value["extra"],
        )


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that a frozen recipe holds."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------- the spec's head


def with_head(spec: ArchSpec, num_classes: int, dropout: float = 0.0) -> tuple[ArchSpec, str]:
    """The spec with one score a class, and a line on what was changed ("" where nothing was).

    A recipe's `dropout` goes into a classifier that has none of its own.
    """
    if spec.library:
        return spec, ""
    head = spec.head
    if head is not None and head.kind == "classifier" and dropout and "dropout" not in dict(head.args):
        spec = replace(spec, head=replace(head, args=tuple(sorted([*head.args, ("dropout", dropout)]))))
        head = spec.head
    if head is None:
        last = spec.stages[-1].rows[-1].out
        kind = "hr_classifier" if isinstance(last, tuple) else "classifier"
        made = replace(spec, head=Row(kind, num_classes, 1, ()))
        return made, f"the spec has no head: trained with `{kind}`, {num_classes} classes"
    if head.out == num_classes:
        return spec, ""
    return replace(
        spec, head=replace(head, out=num_classes)
    ), f"head: {head.out} classes in the spec, {num_classes} here"


def plain_spec(spec: ArchSpec) -> dict[str, Any]:
    """The canonical form as plain data, for the Config."""
    found: dict[str, Any] = json.loads(spec.canonical)
    return found


# ---------------------------------------------------------------------------------------------- the Config


def build(plan: Plan, work_dir: Path | str) -> dict[str, Any]:
    """mmengine's Config of a run, as a dict. Raises BblabError for a batch that is larger than the data."""
    recipe, data, s = plan.recipe, plan.data, plan.settings
    iterations = plan.iterations
    if iterations < 1:
        each = f" in each of {s.processes} processes" if s.processes > 1 else ""
        raise BblabError(
            f"a batch of {s.batch_size}{each} is more than the {data['train_count']} training images",
            hint="take a smaller --batch-size",
        )
    bad_list, classes = str(Path(work_dir) / BAD_IMAGES), str(Path(work_dir) / CLASSES)
    return {
        "default_scope": "mmpretrain",
        "custom_imports": {"imports": [PLUGINS], "allow_failed_imports": False},
        "work_dir": str(work_dir),
        "model": _model(plan),
        "data_preprocessor": {
            "num_classes": plan.num_classes,
            "mean": MEAN if plan.channels == 3 else [_grey(MEAN)],
            "std": STD if plan.channels == 3 else [_grey(STD)],
            "to_rgb": plan.channels == 3,
            "to_onehot": recipe.loss == "bce" or bool(batch_augments(recipe)),
        },
        **_loaders(plan, bad_list, classes),
        "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": recipe.epochs, "val_interval": 1},
        "val_cfg": {"type": "ValLoop"},
        "val_evaluator": {"type": "ReadableAccuracy", "topk": [1, 5] if plan.num_classes > 5 else [1]},
        "optim_wrapper": _optimizer(plan),
        "param_scheduler": schedulers(recipe, iterations),
        # Schedules are stepped and checkpoints written by the run's own hook, in its order.
        "default_hooks": {
            "checkpoint": None,
            "param_scheduler": None,
            "logger": {"type": "LoggerHook", "interval": 50},
        },
        "custom_hooks": _hooks(plan, bad_list),
        "randomness": {"seed": s.seed, "deterministic": False},
        "env_cfg": {
            "cudnn_benchmark": s.is_cuda,
            "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
            "dist_cfg": {"backend": "nccl" if s.is_cuda else "gloo"},
        },
        "model_wrapper_cfg": _wrapper(plan),
        "visualizer": {"type": "UniversalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
        "log_processor": {"by_epoch": True},
        "log_level": "INFO",
        "launcher": "pytorch" if s.processes > 1 else "none",
        "load_from": None,
        "resume": False,
    }


def _model(plan: Plan) -> dict[str, Any]:
    recipe, s = plan.recipe, plan.settings
    augments = batch_augments(recipe)
    loss = _loss(recipe, plan.num_classes)
    backbone = {
        "type": "BblabNet",
        "spec": dict(plan.spec),
        "name": plan.name,
        "num_classes": plan.num_classes,
        "lab": plan.lab,
        "freeze": s.freeze,
        "weights": s.weights,
        "compiled": s.compile,
        "channels_last": s.is_cuda,
    }
    model: dict[str, Any] = {"type": "ImageClassifier", "backbone": backbone, "head": {"type": "ClsHead", "loss": loss}}
    if augments:
        model["train_cfg"] = {"augments": augments}
    return model


def _loss(recipe: Recipe, num_classes: int) -> dict[str, Any]:
    if recipe.label_smoothing:
        smooth: dict[str, Any] = {"type": "LabelSmoothLoss", "label_smooth_val": recipe.label_smoothing}
        smooth["num_classes"] = num_classes
        return smooth | ({"mode": "multi_label"} if recipe.loss == "bce" else {"mode": "original"})
    return {"type": "CrossEntropyLoss", "use_sigmoid": recipe.loss == "bce"}


def batch_augments(recipe: Recipe) -> list[dict[str, Any]]:
    """Mixup and CutMix, of which mmpretrain picks one a batch, evenly."""
    found = [("Mixup", recipe.mixup), ("CutMix", recipe.cutmix)]
    return [{"type": kind, "alpha": alpha} for kind, alpha in found if alpha]


def _optimizer(plan: Plan) -> dict[str, Any]:
    recipe, s = plan.recipe, plan.settings
    kinds: dict[str, dict[str, Any]] = {
        "sgd": {"type": "SGD", "momentum": recipe.momentum, "nesterov": recipe.nesterov},
        "rmsprop": {
            "type": "RMSprop",
            "alpha": recipe.rms_alpha,
            "eps": recipe.eps,
            "momentum": recipe.momentum,
        },
        "adamw": {"type": "AdamW", "betas": list(recipe.betas), "eps": recipe.eps},
        "lamb": {"type": "Lamb", "betas": list(recipe.betas), "eps": recipe.eps},
    }
    wrapper: dict[str, Any] = {
        "type": "OptimWrapper",
        "constructor": "TwoGroups",
        "paramwise_cfg": {"decays_norms": recipe.decays_norms, "decays_biases": recipe.decays_biases},
        "optimizer": {**kinds[recipe.optimizer], "lr": plan.scaling.lr, "weight_decay": recipe.weight_decay},
        "accumulative_counts": s.accumulation,
    }
    if recipe.clip_grad_norm is not None:
        wrapper["clip_grad"] = {"max_norm": recipe.clip_grad_norm}
    if s.precision == "bf16":
        wrapper |= {"type": "AutocastOptimWrapper", "dtype": "bfloat16"}
    return wrapper


def _wrapper(plan: Plan) -> dict[str, Any] | None:
    """DistributedDataParallel's arguments; on the CPU it must not be given a device (gloo)."""
    if plan.settings.processes == 1 or plan.settings.is_cuda:
        return None
    return {"type": "MMDistributedDataParallel", "device_ids": None, "broadcast_buffers": False}


def _hooks(plan: Plan, bad_list: str) -> list[dict[str, Any]]:
    """The one hook of a run; see `bblab.pretraining.hooks`."""
    recipe, s = plan.recipe, plan.settings
    hook: dict[str, Any] = {
        "type": "BblabTraining",
        "seed": s.seed,
        "sizes": [
            [epoch, px, train_pipeline(recipe, px, bad_list, plan.channels)] for epoch, px in recipe.resolutions_px
        ],
        "loss_interval": 50 if s.is_cuda else 1,
        "precise_images": s.precise_images,
        "keep": s.keep,
        "save_minutes": s.save_minutes,
        "gates": [asdict(g) for g in plan.gates],
        "bad_list": bad_list,
    }
    if recipe.ema_momentum is not None:
        hook["average"] = {
            "type": "ImageEMAHook",
            "momentum": recipe.ema_momentum,
            "base_batch": recipe.base_batch,
        }
    return [hook]


def _grey(colours: list[float]) -> float:
    return round(sum(share * value for share, value in zip(LUMA, colours, strict=True)), 3)


# ---------------------------------------------------------------------------------------------- data


def _loaders(plan: Plan, bad_list: str, classes: str) -> dict[str, Any]:
    recipe, data, s = plan.recipe, plan.data, plan.settings
    workers = s.workers or 0
    shared: dict[str, Any] = {
        "num_workers": workers,
        "persistent_workers": False,
        "pin_memory": s.is_cuda,
        "collate_fn": {"type": "default_collate"},
        "worker_init_fn": {"type": "bblab_worker"},
    }
    if workers:
        shared["prefetch_factor"] = 4
    train = {
        **shared,
        "batch_size": s.batch_size,
        "drop_last": not s.keeps_last,
        "sampler": {"type": "ResumableSampler", "shuffle": True, "repeats": recipe.repeated_augment},
        "dataset": dataset(
            data, "train", train_pipeline(recipe, recipe.resolution_px, bad_list, plan.channels), classes
        ),
    }
    val = {
        **shared,
        "batch_size": s.val_batch_size or s.batch_size,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": dataset(data, "val", val_pipeline(recipe, bad_list, plan.channels), classes),
    }
    return {"train_dataloader": train, "val_dataloader": val}


def dataset(
    data: Mapping[str, Any], split: Literal["train", "val"], pipeline: list[dict[str, Any]], classes: str
) -> dict[str, Any]:
    """mmpretrain's dataset of one split. The classes are the training set's in both: a file, one a line, in order."""
    return {
        "type": "ReadableImages",
        "data_root": data["root"],
        "data_prefix": data[f"prefix_{split}"],
        "ann_file": data[f"ann_{split}"] or "",
        "classes": classes,
        "pipeline": pipeline,
    }


def train_pipeline(recipe: Recipe, px: int, bad_list: str | None = None, channels: int = 3) -> list[dict[str, Any]]:
    """What an image goes through while training, at `px`. A bad image is replaced by another and noted."""
    steps = [dict(step) for step in recipe.augment]
    first = steps.pop(0) if steps else {"step": "center_crop"}
    care = {"on_bad": "skip", "bad_list": bad_list} if bad_list else {}
    if first["step"] == "random_resized_crop":
        # Decoding, cropping and mirroring are one step: only the pixels that are needed are made.
        flip = steps.pop(0)["prob"] if steps and steps[0]["step"] == "flip" else 0.0
        crop = {"scale": list(first["scale"]), "ratio": list(first["ratio"]), "flip": flip}
        loads = [{"type": "LoadRandomCropFast", "px": px, **crop, "interpolation": recipe.interpolation, **care}]
    else:
        loads = [{"type": "LoadCenterCropFast", "edge": px, "px": px, "interpolation": recipe.interpolation}]
        if care:
            loads[0] |= {**care, "is_training": True}
        if first["step"] == "random_crop":
            loads.append({"type": "RandomCrop", "crop_size": px, "padding": first["pad"]})
    rest = [_augmentation(step) for step in steps]
    grey = [{"type": "Grey"}] if channels == 1 else []
    return [{"type": "SeededSample"}, *loads, *rest, *grey, {"type": "PackInputs"}]


def _augmentation(step: Mapping[str, Any]) -> dict[str, Any]:
    """mmpretrain's transform for a named step of a recipe."""
    filled = {"pad_val": [round(v) for v in reversed(MEAN)], "interpolation": "bicubic"}  # BGR
    match step["step"]:
        case "flip":
            return {"type": "RandomFlip", "prob": step["prob"], "direction": "horizontal"}
        case "auto_augment":
            return {"type": "AutoAugment", "policies": step["policy"], "hparams": filled}
        case "rand_augment":
            return {
                "type": "RandAugment",
                "policies": "timm_increasing",
                "num_policies": step["ops"],
                "total_level": 10,
                "magnitude_level": step["magnitude"],
                "magnitude_std": step["magnitude_std"],
                "hparams": filled,
            }
        case "color_jitter":
            amounts = {key: step[key] for key in ("brightness", "contrast", "saturation", "hue")}
            return {"type": "ColorJitter", **amounts, "backend": "cv2"}
        case "random_erasing":
            return {
                "type": "RandomErasing",
                "erase_prob": step["prob"],
                "mode": "rand",
                "min_area_ratio": step["min_area"],
                "max_area_ratio": step["max_area"],
                "fill_color": MEAN[::-1],
                "fill_std": STD[::-1],
            }
    raise BblabError(f"no augmentation {step['step']!r}", hint="bblab.pretraining.recipe.STEPS lists them")


def val_pipeline(recipe: Recipe, bad_list: str | None = None, channels: int = 3) -> list[dict[str, Any]]:
    """The short side resized, its centre cut out. A bad image is a grey one that is marked, not scored, and noted."""
    care = {"on_bad": "blank", "bad_list": bad_list} if bad_list else {}
    sizes = {"edge": recipe.val_resize_px, "px": recipe.val_resolution_px, "interpolation": recipe.interpolation}
    grey = [{"type": "Grey"}] if channels == 1 else []
    return [{"type": "LoadCenterCropFast", **sizes, **care}, *grey, {"type": "PackInputs", "meta_keys": META}]
