"""pysot: a tensor or a list at stride 8, unpadded (15x15, 31x31, score map 25x25), raw BGR; also siamban.

Read at d04028f: models/backbone/__init__.py (BACKBONES), models/neck/neck.py (AdjustLayer crops what is narrower than
20 to center_size), models/head/rpn.py (3x3 unpadded, then depthwise correlation), utils/model_load.py (47-72, wants
CUDA), datasets/dataset.py (the score map's size is asserted), tools/train.py (build_opt_lr, 74-114). siamban 714dffb:
the same files; its neck crops from 4 to 11, so that the template's map must be 15x15.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bblab.export.launching import (
    CONFIG,
    HERE,
    MANIFEST,
    backbone,
    enter,
    function_of,
    one_process,
    run,
    settings_for,
)
from bblab.export.pysotlike import absent_data, own_places, resume_keys, smoke_keys
from bblab.export.target import LAUNCH, TARGETS, Fit, Target, Variant

CONFIG_TEXT = """\
META_ARC: "$module"

BACKBONE:
    TYPE: "$module"                  # launch.py enters it into BACKBONES
    KWARGS:
        used_layers: $taps
    PRETRAINED: "$weights"           # in this folder; launch.py makes the path whole
    TRAIN_LAYERS: $train_layers      # what is not here stays frozen for ever
    TRAIN_EPOCH: $freeze_epochs      # frozen before, norm statistics included: $freeze_why
    LAYERS_LR: $lr_share             # the backbone's part of the learning rate: $freeze_why

ADJUST:
    ADJUST: true
    TYPE: "AdjustAllLayer"
    KWARGS:
        in_channels: $channels
        out_channels: $widths
$center
$head

TRACK:
    TYPE: "$tracker"
    PENALTY_K: $penalty_k
    WINDOW_INFLUENCE: $window_influence
    LR: $track_lr
    EXEMPLAR_SIZE: $template_px
    INSTANCE_SIZE: $search_px
    BASE_SIZE: $base_size
    CONTEXT_AMOUNT: 0.5

TRAIN:
    EXEMPLAR_SIZE: $template_px
    SEARCH_SIZE: $search_px
    BASE_SIZE: $base_size            # (search - template) / stride + 1 + base = output, asserted by the data set
    OUTPUT_SIZE: $score_map
    EPOCH: 20
    START_EPOCH: 0
    BATCH_SIZE: 28
    BASE_LR: 0.005
    CLS_WEIGHT: 1.0
    LOC_WEIGHT: $loc_weight
    RESUME: ''
    LOG_DIR: './logs'                # this and the next: launch.py puts them into runs/N of this folder
    SNAPSHOT_DIR: './snapshot'
    LR:
        TYPE: 'log'
        KWARGS:
            start_lr: 0.005
            end_lr: $end_lr
    LR_WARMUP:
        TYPE: 'step'
        EPOCH: 5
        KWARGS:
            start_lr: 0.001
            end_lr: 0.005
            step: 1

DATASET:                             # ROOT and ANNO of each are the trainer's own
    NAMES: $names
    VIDEOS_PER_EPOCH: $videos_per_epoch
    TEMPLATE:
        SHIFT: 4
        SCALE: 0.05
        BLUR: 0.0
        FLIP: 0.0
        COLOR: 1.0
    SEARCH:
        SHIFT: 64
        SCALE: 0.18
        BLUR: 0.2
        FLIP: 0.0
        COLOR: 1.0
    NEG: 0.2
    GRAY: 0.0
"""

RPN = """
RPN:
    TYPE: "{kind}"
    KWARGS:
        anchor_num: 5
        in_channels: {widths}
        {more}

MASK:
    MASK: false

ANCHOR:
    STRIDE: {stride}
    RATIOS: [0.33, 0.5, 1, 2, 3]
    SCALES: [8]
    ANCHOR_NUM: 5
"""

BAN = """
BAN:
    BAN: true
    TYPE: "{kind}"
    KWARGS:
        in_channels: {widths}
        {more}
        cls_out_channels: 2

POINT:
    STRIDE: {stride}
"""

WIDTH = 256  # of neck and head, in every configuration of pysot that has a neck


def config_values(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The neck and the head for this number of taps."""
    taps = len(keys["channels"])
    is_ban = keys["variant"] == "siamban"
    text, name = (BAN, "BAN") if is_ban else (RPN, "RPN")
    kind, widths, more = f"Multi{name}", str([WIDTH] * taps), "weighted: true"
    if taps == 1:
        kind, widths, more = f"Depthwise{name}", str(WIDTH), f"out_channels: {WIDTH}"
    return {
        "widths": [WIDTH] * taps,
        "head": text.format(kind=kind, widths=widths, more=more, stride=keys["stride"]).rstrip(),
        "center": "" if is_ban else f"        center_size: {keys['center_size']}        # of the template's map\n",
    }


DIFFERS = {
    "META_ARC, BACKBONE.*, ADJUST.KWARGS.*, RPN.*, BAN.*": "this net, its taps, weights, widths and freezing",
    "TRAIN.LOG_DIR, TRAIN.SNAPSHOT_DIR": "launch.py puts them into runs/N of this folder",
    "TRAIN.EXEMPLAR_SIZE, TRAIN.SEARCH_SIZE, TRAIN.BASE_SIZE, TRAIN.OUTPUT_SIZE": "this net's, where upstream leaves "
    "its defaults",
    "DATASET.NAMES, DATASET.VIDEOS_PER_EPOCH": "said, where upstream leaves its defaults",
}

UNPADDED = Fit(15, 31, 25, {"base_size": 8, "center_size": 7})
ALEXNET = Fit(6, 22, 17, {"base_size": 0, "center_size": 6})

TARGETS.add(
    "pysot",
    Target(
        name="pysot",
        trainer="pysot",
        repository="github.com/STVIR/pysot",
        commit="d04028f",
        sources=(
            "pysot/models/backbone/__init__.py",
            "pysot/models/neck/neck.py 11-52",
            "pysot/utils/model_load.py 47-72",
            "tools/train.py 74-114",
        ),
        file=Path(__file__),
        stride=8,
        max_taps=None,
        padding="same_unless_strided",
        train_above=4,
        freeze="BACKBONE.TRAIN_EPOCH; build_opt_lr freezes parameters and norm statistics, then trains TRAIN_LAYERS",
        root=".",
        script="tools/train.py",
        command="python launch.py --trainer pysot",
        config=CONFIG_TEXT,
        upstream="experiments/siamrpn_r50_l234_dwxcorr_8gpu/config.yaml",
        differs=DIFFERS,
        config_values=config_values,
        launch=LAUNCH,
        supplies=("numpy_names", "whole_checkpoints"),
        log="logs/logs.txt",
        checkpoints="snapshot/checkpoint_e*.pth",
        variants={
            "rpn": Variant(
                "SiamRPN++: anchors, depthwise correlation",
                fits=(UNPADDED, ALEXNET),
                values={
                    "tracker": "SiamRPNTracker",
                    "loc_weight": 1.2,
                    "package": "pysot",
                    "penalty_k": 0.04,
                    "window_influence": 0.44,
                    "track_lr": 0.33,
                    "end_lr": 0.0005,
                    "names": ["VID", "YOUTUBEBB", "COCO", "DET"],
                    "videos_per_epoch": 600000,
                },
            ),
            "siamban": Variant(
                "SiamBAN: no anchors; a repository of its own with pysot's interface",
                fits=(Fit(15, 31, 25, {"base_size": 8}),),
                values={
                    "tracker": "SiamBANTracker",
                    "loc_weight": 1.0,
                    "package": "siamban",
                    "penalty_k": 0.08513642556896711,
                    "window_influence": 0.4632532824922313,
                    "track_lr": 0.44418184746462425,
                    "end_lr": 0.00005,
                    "names": ["VID", "YOUTUBEBB", "COCO", "DET", "GOT10K", "LASOT"],
                    "videos_per_epoch": 1000000,
                },
                replaces={
                    "upstream": "experiments/siamban_r50_l234/config.yaml",
                    "differs": DIFFERS,
                    "trainer": "siamban",
                    "repository": "github.com/hqucv/siamban",
                    "commit": "714dffb",
                    "sources": (
                        "siamban/models/backbone/__init__.py",
                        "siamban/models/neck/neck.py",
                        "siamban/utils/model_load.py",
                        "tools/train.py",
                    ),
                    "command": "python launch.py --trainer siamban",
                    "pip": "colorama opencv-python tensorboard yacs",
                },
            ),
        },
        notes=(
            "Several GPUs: torchrun --nproc_per_node N launch.py --trainer DIR. Without torchrun it is one process.",
            "To resume at or after the epoch that unfreezes, set TRAIN.START_EPOCH to it too: the optimiser is built "
            "before the checkpoint's epoch is read.",
        ),
        pip="colorama opencv-python tensorboardX yacs",
    ),
)

PREFIX = "backbone."


def own(part: str) -> Any:
    """A module of the trainer: pysot's and siamban's have the same names behind the package's."""
    return importlib.import_module(f"{MANIFEST['keys']['package']}.{part}")


def register(trainer: Path) -> None:
    """Enter the backbone; no file of the trainer is changed."""
    enter(trainer)
    one_process()
    own("models.backbone").BACKBONES[MANIFEST["module"]] = backbone


def ready(trainer: Path) -> str:
    return absent_data(trainer, MANIFEST["keys"]["package"])


def start(trainer: Path, place: Path, changes: dict[str, Any], rest: list[str]) -> None:
    config = settings_for(place, {**own_places(place), **changes})
    run(trainer / "tools/train.py", ["--cfg", str(config), *rest], place)


def smoke(trainer: Path, data: Path) -> dict[str, Any]:
    return smoke_keys(data, "COCO")


def resume(place: Path) -> tuple[dict[str, Any], list[str]]:
    return resume_keys(place)


def restore(checkpoint: Any) -> torch.nn.Module:
    """The trainer's model as training begins, or with a checkpoint loaded by the trainer's own restore_from."""
    cfg = own("core.config").cfg
    model = loaded(cfg)
    if checkpoint is not None:
        unfrozen = torch.load(checkpoint, map_location="cpu")["epoch"] > cfg.BACKBONE.TRAIN_EPOCH
        optimizer = optimizer_of(model, cfg.BACKBONE.TRAIN_EPOCH if unfrozen else 0)
        own("utils.model_load").restore_from(model, optimizer, str(checkpoint))
    return model


def build(trainer: Path) -> torch.nn.Module:
    """The trainer's own model, its backbone loaded by the trainer's own function."""
    register(trainer)
    cfg = own("core.config").cfg
    cfg.merge_from_file(str(CONFIG))
    steps = (cfg.TRAIN.SEARCH_SIZE - cfg.TRAIN.EXEMPLAR_SIZE) / MANIFEST["geometry"]["stride"] + 1
    assert steps + cfg.TRAIN.BASE_SIZE == cfg.TRAIN.OUTPUT_SIZE, "TrkDataset: size not match!"
    return loaded(cfg)


def loaded(cfg: Any) -> torch.nn.Module:
    """As tools/train.py builds the model, with its configuration."""
    model = own("models.model_builder").ModelBuilder().train()
    own("utils.model_load").load_pretrain(model.backbone, str(HERE / cfg.BACKBONE.PRETRAINED))
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
    """What tools/train.py does before epoch 0 and at TRAIN_EPOCH; its optimiser."""
    model.train()
    return optimizer_of(model, number)


def optimizer_of(model: Any, number: int) -> Any:
    """The optimiser that tools/train.py of the trainer builds at an epoch."""
    names = {"torch": torch, "nn": torch.nn, "cfg": own("core.config").cfg}
    names["build_lr_scheduler"] = own("utils.lr_scheduler").build_lr_scheduler
    script = Path(own("core").__file__ or "").parents[2] / "tools/train.py"
    return function_of(script, "build_opt_lr", names)(model, number)[0]


def step(model: Any, optimizer: Any) -> float:
    """One training step with the trainer's own forward and losses, on random images and labels."""
    geometry = MANIFEST["geometry"]
    size, (z, x) = geometry["score_map"], (geometry["template"]["px"], geometry["search"]["px"])
    anchors = () if MANIFEST["variant"] == "siamban" else (5,)
    label = torch.zeros(2, *anchors, size, size, dtype=torch.long)
    label[..., : size // 2] = 1
    data = {
        "template": 255 * torch.rand(2, 3, z, z),
        "search": 255 * torch.rand(2, 3, x, x),
        "label_cls": label,
        "label_loc": 20 + 10 * torch.rand(2, 4, *anchors, size, size),
        "label_loc_weight": torch.full((2, *anchors, size, size), 1e-3),
    }
    loss = model(data)["total_loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
