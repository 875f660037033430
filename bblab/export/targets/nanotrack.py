"""NanoTrack, of SiamTrackers: one tensor at stride 16, 8x8 and 16x16, raw BGR, everything in `features`.

Read at 248663f: models/backbone/__init__.py (BACKBONES), models/head/__init__.py (the head is chosen by an import),
models/head/ban_v1.py to ban_v3.py (64 channels after pixel-wise correlation: an 8x8 template), utils/model_load.py,
bin/train.py (build_opt_lr, 72-104), models/config/configv3.yaml.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bblab.export.launching import CONFIG, HERE, MANIFEST, backbone, enter, function_of, run, settings_for
from bblab.export.pysotlike import absent_data, own_places, resume_keys, smoke_keys
from bblab.export.target import LAUNCH, TARGETS, Fit, Target, Variant

CONFIG_TEXT = """\
META_ARC: "$module"

BACKBONE:
    TYPE: "$module"                  # launch.py enters it into BACKBONES
    KWARGS:
        used_layers: $taps
    PRETRAINED: "$weights"           # in this folder; launch.py makes the path whole
    TRAIN_LAYERS: $train_layers
    TRAIN_EPOCH: $freeze_epochs      # frozen before, norm statistics included: $freeze_why
    LAYERS_LR: $lr_share             # the backbone's part of the learning rate: $freeze_why

ADJUST:                              # built and optimised, but not called by the model
    ADJUST: True
    TYPE: "AdjustLayer"
    KWARGS:
        in_channels: $channel
        out_channels: $channel

BAN:
    BAN: True
    TYPE: "DepthwiseBAN"             # of head/ban_$variant.py; launch.py chooses it
    KWARGS:
        in_channels: $channel
        out_channels: $channel

CUDA: True

POINT:
    STRIDE: $stride

TRACK:
    TYPE: "NanoTracker"
    WINDOW_INFLUENCE: $window_influence
    PENALTY_K: $penalty_k
    LR: $track_lr
    EXEMPLAR_SIZE: $template_px
    INSTANCE_SIZE: $search_px
    BASE_SIZE: $base_size
    CONTEXT_AMOUNT: 0.5
    OUTPUT_SIZE: $score_map

TRAIN:
    EPOCH: 50
    START_EPOCH: 0
    BATCH_SIZE: $batch_size
    NUM_WORKERS: 8
    BASE_LR: 0.005
    CLS_WEIGHT: 1.0
    LOC_WEIGHT: 1.0
    NUM_CONVS: 4
    EXEMPLAR_SIZE: $template_px
    SEARCH_SIZE: $search_px
    BASE_SIZE: $base_size
    OUTPUT_SIZE: $score_map
    RESUME: ''
    PRETRAINED: ''
    LOG_DIR: './logs'                # this and the next: launch.py puts them into runs/N of this folder
    SNAPSHOT_DIR: './snapshot'
    LR:
        TYPE: 'log'
        KWARGS:
            start_lr: 0.005
            end_lr: 0.0005
    LR_WARMUP:
        TYPE: 'step'
        EPOCH: 5
        KWARGS:
            start_lr: 0.001
            end_lr: 0.005
            step: 1

DATASET:
    NAMES: $names
    VIDEOS_PER_EPOCH: $videos_per_epoch
$places    TEMPLATE:
        SHIFT: 4
        SCALE: 0.05
        BLUR: 0.0
        FLIP: 0.0
        COLOR: 1.0
    SEARCH:
        SHIFT: 64                    # a padded net learns to look at the centre unless the target moves
        SCALE: 0.18
        BLUR: 0.2
        FLIP: 0.0
        COLOR: 1.0
    NEG: 0.2
    GRAY: 0.0
"""

SAME_CORRELATION = Fit(8, 16, 16, {"base_size": 7})
PLACES = """\
    GOT: {ROOT: 'data/GOT-10k/crop511', ANNO: 'data/GOT-10k/train.json'}   # below the checkout, as the trainer has it
"""
MORE_PLACES = """\
    VID: {ROOT: 'data/VID/crop511', ANNO: 'data/VID/train.json'}   # these five are empty in the trainer: yours, or
    YOUTUBEBB: {ROOT: 'data/YOUTUBEBB/crop511', ANNO: 'data/YOUTUBEBB/train.json'}   # out of NAMES
    COCO: {ROOT: 'data/COCO/crop511', ANNO: 'data/COCO/train2017.json'}
    DET: {ROOT: 'data/DET/crop511', ANNO: 'data/DET/train.json'}
    LASOT: {ROOT: 'data/LASOT/crop511', ANNO: 'data/LASOT/train.json'}
"""


def config_values(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Where the data sets lie."""
    return {"places": PLACES + (MORE_PLACES if len(keys["names"]) > 1 else "")}


V1_NUMBERS = {
    "window_influence": 0.462,
    "penalty_k": 0.148,
    "track_lr": 0.390,
    "batch_size": 32,
    "names": ["GOT"],
    "videos_per_epoch": 100000,
}
DIFFERS = {
    "META_ARC, BACKBONE.*, ADJUST.KWARGS.*, BAN.KWARGS.*": "this net, its weights, widths and freezing",
    "TRAIN.SNAPSHOT_DIR, TRAIN.LOG_DIR": "launch.py puts them into runs/N of this folder",
    "TRAIN.EXEMPLAR_SIZE, TRAIN.SEARCH_SIZE, TRACK.OUTPUT_SIZE": "said, where upstream leaves its defaults",
    "DATASET.GOT.*": "its place, as the trainer's own default has it",
}
V3_DIFFERS = {
    **DIFFERS,
    "DATASET.VID.*, DATASET.YOUTUBEBB.*, DATASET.COCO.*, DATASET.DET.*, DATASET.LASOT.*": "their places, empty in the "
    "trainer: yours may be others",
}

TARGETS.add(
    "nanotrack",
    Target(
        name="nanotrack",
        trainer="NanoTrack",
        repository="github.com/HonglinChu/SiamTrackers",
        commit="248663f",
        sources=("nanotrack/models/backbone/__init__.py", "nanotrack/utils/model_load.py", "bin/train.py 72-104"),
        file=Path(__file__),
        stride=16,
        layout="features",
        padding="same",
        freeze="BACKBONE.TRAIN_EPOCH; build_opt_lr freezes parameters and norm statistics, then trains TRAIN_LAYERS",
        root="NanoTrack",
        script="bin/train.py",
        command="python launch.py --trainer SiamTrackers/NanoTrack",
        config=CONFIG_TEXT,
        config_values=config_values,
        launch=LAUNCH,
        supplies=("numpy_names", "whole_checkpoints"),
        log="logs/logs.txt",
        checkpoints="snapshot/checkpoint_e*.pth",
        variants={
            "v3": Variant(
                "pixel-wise and depthwise correlation, six layers a tower; any width",
                fits=(Fit(8, 16, 15, {"base_size": 7}),),
                values={
                    "window_influence": 0.455,
                    "penalty_k": 0.138,
                    "track_lr": 0.348,
                    "batch_size": 64,
                    "names": ["GOT", "VID", "YOUTUBEBB", "COCO", "DET", "LASOT"],
                    "videos_per_epoch": 400000,
                },
                replaces={"upstream": "NanoTrack/models/config/configv3.yaml", "differs": V3_DIFFERS},
            ),
            "v1": Variant(
                "pixel-wise correlation; any width",
                fits=(SAME_CORRELATION,),
                values=V1_NUMBERS,
                replaces={"upstream": "NanoTrack/models/config/configv1.yaml", "differs": DIFFERS},
            ),
            "v2": Variant(
                "48 channels are written into the head",
                fits=(SAME_CORRELATION,),
                channels=(48,),
                values=V1_NUMBERS,
                replaces={"upstream": "NanoTrack/models/config/configv2.yaml", "differs": DIFFERS},
            ),
        },
        notes=(
            "To resume at or after the epoch that unfreezes, set TRAIN.START_EPOCH to it too: the optimiser is built "
            "before the checkpoint's epoch is read.",
        ),
        pip="colorama opencv-python tensorboard yacs",
    ),
)

PREFIX = "backbone."


def register(trainer: Path) -> None:
    """Enter the backbone and the head's version; no file of the trainer is changed."""
    enter(trainer)
    from nanotrack.models import backbone as backbones
    from nanotrack.models import head as heads

    backbones.BACKBONES[MANIFEST["module"]] = backbone
    version = importlib.import_module(f"nanotrack.models.head.ban_{MANIFEST['variant']}")
    heads.BANS.update(UPChannelBAN=version.UPChannelBAN, DepthwiseBAN=version.DepthwiseBAN)


def ready(trainer: Path) -> str:
    return absent_data(trainer, "nanotrack")


def start(trainer: Path, place: Path, changes: dict[str, Any], rest: list[str]) -> None:
    config = settings_for(place, {**own_places(place), **changes})
    run(trainer / "bin/train.py", ["--cfg", str(config), *rest], place)


def smoke(trainer: Path, data: Path) -> dict[str, Any]:
    return smoke_keys(data, "GOT")


def resume(place: Path) -> tuple[dict[str, Any], list[str]]:
    return resume_keys(place)


def restore(checkpoint: Any) -> torch.nn.Module:
    """The trainer's model as training begins, or with a checkpoint loaded by the trainer's own restore_from."""
    from nanotrack.core.config import cfg
    from nanotrack.utils.model_load import restore_from

    model = loaded(cfg)
    if checkpoint is not None:
        unfrozen = torch.load(checkpoint, map_location="cpu")["epoch"] > cfg.BACKBONE.TRAIN_EPOCH
        optimizer = optimizer_of(model, cfg.BACKBONE.TRAIN_EPOCH if unfrozen else 0)
        restore_from(model, optimizer, str(checkpoint))
    return model


def build(trainer: Path) -> torch.nn.Module:
    """The trainer's own model, its backbone loaded by the trainer's own function."""
    register(trainer)
    from nanotrack.core.config import cfg

    cfg.merge_from_file(str(CONFIG))
    return loaded(cfg)


def loaded(cfg: Any) -> torch.nn.Module:
    """As bin/train.py builds the model, with its configuration."""
    from nanotrack.models.model_builder import ModelBuilder
    from nanotrack.utils.model_load import load_pretrain

    model = ModelBuilder().train()
    load_pretrain(model.backbone, str(HERE / cfg.BACKBONE.PRETRAINED))
    return model


def backbone_of(model: Any) -> Any:
    return model.backbone


def taps_of(model: Any) -> Any:
    return model.backbone


def scores(model: Any, z: torch.Tensor, x: torch.Tensor) -> dict[str, Any]:
    model.template(z)
    found = model.track(x)
    return {name: found[name].shape for name in ("cls", "loc")}


def epoch(trainer: Path, model: Any, number: int) -> Any:
    """What bin/train.py does before epoch 0 and at TRAIN_EPOCH; its optimiser."""
    model.train()
    return optimizer_of(model, number)


def optimizer_of(model: Any, number: int) -> Any:
    """The optimiser that bin/train.py of the trainer builds at an epoch."""
    from nanotrack.core.config import cfg
    from nanotrack.utils.lr_scheduler import build_lr_scheduler

    names = {"torch": torch, "nn": torch.nn, "cfg": cfg, "build_lr_scheduler": build_lr_scheduler}
    script = Path(importlib.import_module("nanotrack.core").__file__ or "").parents[2] / "bin/train.py"
    return function_of(script, "build_opt_lr", names)(model, number)[0]


def step(model: Any, optimizer: Any) -> float:
    """One training step with the trainer's own forward and losses, on random images and labels."""
    geometry = MANIFEST["geometry"]
    size, (z, x) = geometry["score_map"], (geometry["template"]["px"], geometry["search"]["px"])
    label = torch.zeros(2, size, size, dtype=torch.long)
    label[:, : size // 2] = 1
    data = {
        "template": 255 * torch.rand(2, 3, z, z),
        "search": 255 * torch.rand(2, 3, x, x),
        "label_cls": label,
        "label_loc": 20 + 10 * torch.rand(2, 4, size, size),
    }
    loss = model(data)["total_loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
