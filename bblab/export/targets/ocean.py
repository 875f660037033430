"""Ocean, of TracKit: the map of one stage and a list at stride 8, unpadded (15x15, 31x31), raw BGR.

Read at e351e5b: lib/models/models.py (the backbone's class is written in, 24-30), lib/models/ocean.py (forward),
lib/models/connect.py (AdjustLayer crops 4 a side: the template's map must be 15x15), lib/utils/utils.py (load_pretrain,
657-672: whole-model keys), tracking/train_ocean.py (build_opt_lr, 85-145), lib/core/function.py (ocean_train, 9-80).

ocean_train calls model.train() at every epoch's start (function.py:23), after build_opt_lr has put the frozen norms in
eval: the statistics of the "frozen" backbone move. The exported module does not let them: a norm whose scale does not
learn keeps its statistics, whoever calls train().
"""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from typing import Any

import torch

from bblab.export.launching import (
    CONFIG,
    MANIFEST,
    SMOKE_BATCH,
    SMOKE_EPOCHS,
    SMOKE_ITERATIONS,
    SMOKE_LR,
    WEIGHTS,
    backbone,
    config_value,
    enter,
    function_of,
    leavings,
    made_up_crops,
    run,
    say,
    settings_for,
    weights_given,
    without_gpu,
)
from bblab.export.target import LAUNCH, TARGETS, Fit, Target

CONFIG_TEXT = """\
OCEAN:
  GPUS: '0'
  PRINT_FREQ: 10
  WORKERS: 8
  OUTPUT_DIR: 'logs'                 # this and the next: launch.py puts them into runs/N of this folder
  CHECKPOINT_DIR: 'snapshot'

  TRAIN:
    ISTRUE: True
    MODEL: "$module"                 # launch.py enters it among the models
    ALIGN: True                      # the object-aware branch; needs TracKit's compiled DCN
    START_EPOCH: 0
    END_EPOCH: 50
    TEMPLATE_SIZE: $template_px
    SEARCH_SIZE: $search_px
    BATCH: 32                        # a GPU
    STRIDE: $stride
    RESUME: False
    PRETRAIN: "$weights"             # in this folder; launch.py makes the path whole
    LR_POLICY: 'log'
    WARMUP:
      IFNOT: True
      TYPE: 'step'
      EPOCH: 5
      KWARGS:
        start_lr: 0.001
        end_lr: 0.005
        step: 1
    LR:
      TYPE: 'log'
      KWARGS:
        start_lr: 0.005
        end_lr: 0.00001
    LAYERS_LR: $lr_share             # the backbone's part of the learning rate: $freeze_why
    BASE_LR: 0.005
    UNFIX_EPOCH: $freeze_epochs      # frozen before; the module keeps its norm statistics still: $freeze_why
    WARM_POLICY: 'step'
    UNFIX_POLICY: 'log'
    MOMENTUM: 0.9
    WEIGHT_DECAY: 0.0001
    TRAINABLE_LAYER: $train_layers
    WHICH_USE: ['GOT10K']            # of YTB, VID, COCO, DET, GOT10K below

  TEST:
    ISTRUE: False
    THREADS: 16
    DATA: 'VOT2019'
    START_EPOCH: 30
    END_EPOCH: 50
    RGBTSPLIT: None
  TUNE:
    ISTRUE: False
    DATA: 'VOT2019'
    METHOD: 'TPE'
    RGBTSPLT: None
  DATASET:
    SHIFT: 4
    SCALE: 0.05
    COLOR: 1
    FLIP: 0
    BLUR: 0
    ROTATION: 0
    LABELSMOOTH: False
    MIXUP: 0
    GRAY: 0
    CUTOUT: 0
    SHIFTs: 64
    SCALEs: 0.18
    VID: {PATH: './data/vid/crop511', ANNOTATION: './data/vid/train.json', RANGE: 100, USE: 110000}
    YTB: {PATH: './data/y2b/crop511', ANNOTATION: './data/y2b/train.json', RANGE: 3, USE: 210000}
    GOT10K: {PATH: './data/got10k/crop511', ANNOTATION: './data/got10k/all.json', RANGE: 100, USE: 160000}
    DET: {PATH: './data/det/crop511', ANNOTATION: './data/det/train.json', RANGE: 100, USE: 60000}
    COCO: {PATH: './data/coco/crop511', ANNOTATION: './data/coco/train2017.json', RANGE: 1, USE: 60000}
"""

TARGETS.add(
    "ocean",
    Target(
        name="ocean",
        trainer="Ocean",
        repository="github.com/researchmm/TracKit",
        commit="e351e5b",
        sources=(
            "lib/models/models.py 24-30",
            "lib/models/connect.py 106-124",
            "lib/utils/utils.py 657-672",
            "tracking/train_ocean.py 85-145",
            "lib/core/function.py 9-80",
        ),
        file=Path(__file__),
        stride=8,
        fits=(Fit(15, 31, 25),),
        padding="same_unless_strided",
        train_above=4,
        freeze="OCEAN.TRAIN.UNFIX_EPOCH; build_opt_lr freezes, but ocean_train's model.train() would set the norms' "
        "statistics moving again: the exported module keeps them",
        root=".",
        script="tracking/train_ocean.py",
        command="python launch.py --trainer TracKit",
        config=CONFIG_TEXT,
        upstream="experiments/train/Ocean.yaml",
        differs={
            "OCEAN.TRAIN.MODEL, OCEAN.TRAIN.PRETRAIN": "this net and its weights",
            "OCEAN.TRAIN.LAYERS_LR, OCEAN.TRAIN.UNFIX_EPOCH, OCEAN.TRAIN.TRAINABLE_LAYER": "its stages and freezing",
            "OCEAN.GPUS, OCEAN.WORKERS": "one GPU of yours, not eight of theirs",
            "OCEAN.TRAIN.WHICH_USE": "GOT-10k alone, not all five: add those that you have",
        },
        launch=LAUNCH,
        supplies=("numpy_names", "yaml_loader", "whole_checkpoints"),
        paths=("lib", "tracking"),
        log="logs/*/*_train.log",
        losses=("Loss",),
        checkpoints="snapshot/checkpoint_e*.pth",
        weights_prefix="features.features.",
        notes=(
            "GPUs are chosen in config.yaml (GPUS) or with --gpus 0,1.",
            "Where TracKit's DCN is not compiled, set ALIGN: False. --smoke does so by itself.",
        ),
        pip="easydict opencv-python pyyaml scipy shapely tensorboardX torchvision",
    ),
)

PREFIX = "features.features."
TRAIN = "OCEAN.TRAIN"


class Features(torch.nn.Module):
    """What Ocean calls: the last map, and a list of maps that it does not use. Keys: features.features.STAGE."""

    def __init__(self) -> None:
        super().__init__()
        self.features = backbone()

    def forward(self, x: torch.Tensor, online: bool = False) -> Any:
        last = self.features(x)
        return last if online else ([last], last)


def register(trainer: Path) -> None:
    """Enter a model with this backbone; no file of the trainer is changed."""
    enter(trainer)
    models: Any = importlib.import_module("models.models")
    channels = MANIFEST["geometry"]["search"]["taps"][-1]["map"][0]

    class Own(models.Ocean_):
        """TracKit's Ocean (models.py 24-30) but for the backbone and the neck's width."""

        def __init__(self, align: bool = False, online: bool = False) -> None:
            super().__init__()
            self.features = Features()
            self.neck = models.AdjustLayer(in_channels=channels, out_channels=256)
            self.connect_model = models.box_tower(inchannels=256, outchannels=256, towernum=4)
            self.align_head = models.AlignHead(256, 256) if align else None

    setattr(models, MANIFEST["module"], Own)


def ready(trainer: Path) -> str:
    """No GPU, no compiled DCN, or a data set without its annotation."""
    if without_gpu():
        return without_gpu()
    if config_value(f"{TRAIN}.ALIGN") and not has_dcn():
        return "TracKit's DCN is not compiled: build lib/models/dcn as its README says, or set ALIGN: False"
    for name in config_value(f"{TRAIN}.WHICH_USE"):
        path = config_value(f"OCEAN.DATASET.{name}.ANNOTATION")
        if not path or not (trainer / path).is_file():
            return f"the data set {name} has no {path}: put it there, or take {name} out of WHICH_USE"
    return ""


def start(trainer: Path, place: Path, changes: dict[str, Any], rest: list[str]) -> None:
    """In the run's folder: the script makes ./pretrain, and reads the weights from there."""
    weights = weights_given(f"{TRAIN}.PRETRAIN")
    own = {
        "OCEAN.OUTPUT_DIR": str(place / "logs"),
        "OCEAN.CHECKPOINT_DIR": str(place / "snapshot"),
        f"{TRAIN}.PRETRAIN": os.path.relpath(trainer / "pretrain" / weights, place / "pretrain"),
    }
    for name, data in config_value("OCEAN.DATASET").items():
        if isinstance(data, dict):  # relative ones are meant from the checkout
            own.update({f"OCEAN.DATASET.{name}.{key}": str(trainer / data[key]) for key in ("PATH", "ANNOTATION")})
    config = settings_for(place, {**own, **changes})
    run(trainer / "tracking/train_ocean.py", ["--cfg", str(config), *rest], place)


def smoke(trainer: Path, data: Path) -> dict[str, Any]:
    """A short training on made-up crops; the script saves from its second epoch on."""
    root, annotation = made_up_crops(data / "crops")
    changes = {
        f"{TRAIN}.START_EPOCH": 0,
        f"{TRAIN}.END_EPOCH": SMOKE_EPOCHS,
        f"{TRAIN}.UNFIX_EPOCH": min(1, config_value(f"{TRAIN}.UNFIX_EPOCH")),
        f"{TRAIN}.BASE_LR": SMOKE_LR,
        f"{TRAIN}.LR.KWARGS.start_lr": SMOKE_LR,
        f"{TRAIN}.LR.KWARGS.end_lr": SMOKE_LR,
        f"{TRAIN}.WARMUP.IFNOT": False,
        f"{TRAIN}.BATCH": SMOKE_BATCH,
        f"{TRAIN}.RESUME": False,
        f"{TRAIN}.WHICH_USE": ["GOT10K"],
        "OCEAN.GPUS": "0",
        "OCEAN.WORKERS": 0,
        "OCEAN.PRINT_FREQ": SMOKE_ITERATIONS // 2,
        "OCEAN.DATASET.GOT10K.PATH": root,
        "OCEAN.DATASET.GOT10K.ANNOTATION": annotation,
        "OCEAN.DATASET.GOT10K.RANGE": 4,
        "OCEAN.DATASET.GOT10K.USE": SMOKE_ITERATIONS * SMOKE_BATCH,
    }
    if not has_dcn():
        say("without the object-aware branch: TracKit's DCN is not compiled here")
        changes[f"{TRAIN}.ALIGN"] = False
    return changes


def resume(place: Path) -> tuple[dict[str, Any], list[str]]:
    """The newest checkpoint, and the epoch to go on with."""
    found = leavings(place, "checkpoints")
    if not found:
        say("no checkpoint yet: this run begins anew")
        return {}, []
    epoch = torch.load(found[-1], map_location="cpu")["epoch"]
    return {f"{TRAIN}.RESUME": str(found[-1]), f"{TRAIN}.START_EPOCH": epoch}, []


def has_dcn() -> bool:
    return hasattr(importlib.import_module("models.connect"), "DeformConv")


def restore(checkpoint: Any) -> torch.nn.Module:
    """The trainer's model as training begins, or with a checkpoint loaded by the trainer's own restore_from."""
    settings = importlib.import_module("core.config").config
    model = loaded(settings)
    if checkpoint is not None:
        train = settings.OCEAN.TRAIN
        unfrozen = torch.load(checkpoint, map_location="cpu")["epoch"] > train.UNFIX_EPOCH
        optimizer = optimizer_of(model, train.UNFIX_EPOCH if unfrozen else 0)
        importlib.import_module("utils.utils").restore_from(model, optimizer, str(checkpoint))
    return model


def build(trainer: Path) -> torch.nn.Module:
    """The trainer's own model, its weights loaded by the trainer's own function. Without DCN: without AlignHead."""
    register(trainer)
    settings = importlib.import_module("core.config")
    settings.update_config(str(CONFIG))
    return loaded(settings.config)


def loaded(settings: Any) -> torch.nn.Module:
    """As tracking/train_ocean.py builds the model; the weights from here, not from a ./pretrain."""
    models = importlib.import_module("models.models")
    model = getattr(models, settings.OCEAN.TRAIN.MODEL)(align=settings.OCEAN.TRAIN.ALIGN and has_dcn())
    return importlib.import_module("utils.utils").load_pretrain(model, str(WEIGHTS)).train()


def backbone_of(model: Any) -> Any:
    return model.features.features


def taps_of(model: Any) -> Any:
    return model.features.features


def scores(model: Any, z: torch.Tensor, x: torch.Tensor) -> dict[str, Any]:
    model.template(z)
    found = model.track(x)
    return {"cls": found[0].shape, "bbox": found[1].shape}


def epoch(trainer: Path, model: Any, number: int) -> Any:
    """What tracking/train_ocean.py does before epoch 0 and at UNFIX_EPOCH; its optimiser."""
    return optimizer_of(model, number)


def optimizer_of(model: Any, number: int) -> Any:
    """The optimiser that tracking/train_ocean.py of the trainer builds at an epoch."""
    settings = importlib.import_module("core.config")
    names = {"torch": torch, "nn": torch.nn, "print": lambda *_: None}
    names["build_lr_scheduler"] = importlib.import_module("utils.utils").build_lr_scheduler
    script = Path(settings.__file__ or "").parents[2] / "tracking/train_ocean.py"
    return function_of(script, "build_opt_lr", names)(settings.config, model, number)[0]


class Quiet:
    """In place of TensorBoard's writer: keeps the last value."""

    last = float("nan")

    def add_scalar(self, name: str, value: float, *_: Any) -> None:
        self.last = value


def step(model: Any, optimizer: Any) -> float:
    """One batch through the trainer's own ocean_train, which calls model.train() first; random images and labels."""
    geometry = MANIFEST["geometry"]
    size, (z, x) = geometry["score_map"], (geometry["template"]["px"], geometry["search"]["px"])
    label = torch.zeros(2, size, size)
    label[:, : size // 2] = 1
    batch = [255 * torch.rand(2, 3, z, z), 255 * torch.rand(2, 3, x, x), label]
    batch += [20 + 10 * torch.rand(2, size, size, 4), label]
    writer = Quiet()
    losses: dict[str, Any] = {"writer": writer, "train_global_steps": 0}
    settings = importlib.import_module("core.config")
    train = importlib.import_module("core.function").ocean_train
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train([batch], model, optimizer, 1, 0.001, settings.config, losses, logging.getLogger("ocean"), device)
    return writer.last
