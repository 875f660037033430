"""STARK-Lightning: one tensor at stride 16, 8x8 at 128 px and 20x20 at 320 px, normalised RGB, frozen norms.

Read at 162e1d3: lib/models/stark/backbone_X.py (Backbone is an if/elif on MODEL.BACKBONE.TYPE, 78-106; what is trained,
141-151), stark_lightning_x_trt.py, lib/train/actors/stark_lightningXtrt.py (forward_pass), lib/train/train_script.py,
lib/train/base_functions.py (get_optimizer_scheduler), experiments/stark_lightning_X_trt.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bblab.export.launching import (
    CONFIG,
    MANIFEST,
    SMOKE_BATCH,
    SMOKE_EPOCHS,
    SMOKE_ITERATIONS,
    WEIGHTS,
    backbone,
    enter,
    function_of,
    leavings,
    made_up_sequences,
    run,
    say,
    settings_for,
    without_gpu,
)
from bblab.export.target import LAUNCH, TARGETS, Fit, Target

CONFIG_TEXT = """\
DATA:
  MAX_SAMPLE_INTERVAL: 200
  MEAN: [0.485, 0.456, 0.406]
  STD: [0.229, 0.224, 0.225]
  SEARCH:
    CENTER_JITTER: 4.5
    FACTOR: 5.0
    SCALE_JITTER: 0.5
    SIZE: $search_px
    FEAT_SIZE: $search_map
  TEMPLATE:
    CENTER_JITTER: 0
    FACTOR: 2.0
    SCALE_JITTER: 0
    SIZE: $template_px
    FEAT_SIZE: $template_map
  TRAIN:
    DATASETS_NAME: ['GOT10K_vottrain']
    DATASETS_RATIO: [1]
    SAMPLE_PER_EPOCH: 60000
  VAL:
    DATASETS_NAME: ['GOT10K_votval']
    DATASETS_RATIO: [1]
    SAMPLE_PER_EPOCH: 10000
MODEL:
  BACKBONE:
    LAST_STAGE_BLOCK: 4              # of RepVGG, not used here
    DILATION: false
    OUTPUT_LAYERS: $taps
    TYPE: bblab                      # launch.py takes the place of backbone_X.Backbone
  HEAD_TYPE: CORNER_LITE_REP_v2
  HIDDEN_DIM: 128
  HEAD_DIM: 128
  TRANSFORMER:
    DIM_FEEDFORWARD: 1024
    DROPOUT: 0.1
    NHEADS: 8
TRAIN:
  AMP: false
  BACKBONE_MULTIPLIER: $lr_share     # the backbone's part of the learning rate: $freeze_why
  BATCH_SIZE: 16
  DEEP_SUPERVISION: false
  EPOCH: 500
  FREEZE_BACKBONE_BN: $freeze_norms  # scale, shift and statistics of all norms, for the whole run: $freeze_why
  BACKBONE_TRAINED_LAYERS: $trained
  GIOU_WEIGHT: 2.0
  GRAD_CLIP_NORM: 0.1
  L1_WEIGHT: 5.0
  LR: 0.0001
  LR_DROP_EPOCH: 400
  NUM_WORKER: 8
  OPTIMIZER: ADAMW
  PRINT_INTERVAL: 50
  SCHEDULER:
    TYPE: step
    DECAY_RATE: 0.1
  VAL_EPOCH_INTERVAL: 20
  WEIGHT_DECAY: 0.0001
TEST:
  EPOCH: 500
  SEARCH_FACTOR: 5.0
  SEARCH_SIZE: $search_px
  TEMPLATE_FACTOR: 2.0
  TEMPLATE_SIZE: $template_px
"""


def config_values(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer looks for each of these words inside parameters' names: the dot keeps s1 from meaning s16."""
    return {"trained": [f"{name}." for name in keys["train_layers"]]}


SCRIPT = "stark_lightning_X_trt"

TARGETS.add(
    "stark",
    Target(
        name="stark",
        trainer="STARK-Lightning",
        repository="github.com/researchmm/Stark",
        commit="162e1d3",
        sources=(
            "lib/models/stark/backbone_X.py 78-152",
            "lib/train/actors/stark_lightningXtrt.py",
            "lib/train/base_functions.py",
        ),
        file=Path(__file__),
        template_px=128,
        search_px=320,
        stride=16,
        fits=(Fit(8, 20, 20),),
        input="rgb_imagenet",
        padding="same",
        freeze_epochs=0,
        norms_never_learn=True,
        freeze="TRAIN.FREEZE_BACKBONE_BN: scale, shift and statistics of every norm, for the whole run (with its own "
        "epsilon; STARK's FrozenBatchNorm2d has 1e-5 written in)",
        root=".",
        script="lib/train/run_training.py",
        command="python launch.py --trainer Stark",
        config=CONFIG_TEXT,
        upstream=f"experiments/{SCRIPT}/baseline_rephead_4_lite_search5.yaml",
        differs={
            "MODEL.BACKBONE.*": "this net",
            "TRAIN.BACKBONE_MULTIPLIER, TRAIN.FREEZE_BACKBONE_BN, TRAIN.BACKBONE_TRAINED_LAYERS": "its stages and "
            "freezing",
            "DATA.TRAIN.DATASETS_NAME, DATA.TRAIN.DATASETS_RATIO": "GOT-10k alone, not LaSOT, COCO and TrackingNet too",
        },
        config_values=config_values,
        launch=LAUNCH,
        supplies=(
            *("numpy_names", "collections_names", "torch_six", "torchvision_utils", "pandas_squeeze"),
            "whole_checkpoints",
        ),
        imports=("lib.train.train_script", f"lib.config.{SCRIPT}.config"),
        paths=("lib/train",),
        log="logs/*.log",
        losses=("Loss/total",),
        checkpoints=f"checkpoints/train/{SCRIPT}/*/*_ep*.pth.tar",
        notes=(
            "The trainer finds configurations in its experiments folder only: launch.py gives it the one of the run, "
            "and writes nothing there.",
            "Where the data lie is the trainer's lib/train/admin/local.py (tracking/create_default_local_file.py makes "
            "it). Without one, launch.py takes what that script writes: data/ of the checkout.",
            "Other options of lib/train/run_training.py are handed on, --local_rank too.",
        ),
        pip="easydict jpeg4py lmdb opencv-python pandas pycocotools pyyaml scipy tensorboard timm torchvision",
    ),
)

PREFIX = "backbone.body."


class FrozenNorm(torch.nn.Module):
    """A batch norm that nothing moves: its numbers are buffers. Keeps the epsilon it was trained with."""

    def __init__(self, norm: torch.nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight: torch.Tensor
        self.bias: torch.Tensor
        self.running_mean: torch.Tensor
        self.running_var: torch.Tensor
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def freeze_norms(module: torch.nn.Module) -> torch.nn.Module:
    """Every batch norm of a module in its frozen form, in place."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            setattr(module, name, FrozenNorm(child))
        else:
            freeze_norms(child)
    return module


class Own(torch.nn.Module):
    """What backbone_X.Backbone is to the trainer: `body`, `num_channels`, one tensor."""

    def __init__(self, name: str, dilation: bool, freeze_bn: bool, last_stage_block: int = 0) -> None:
        super().__init__()
        body = backbone()
        state = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
        body.load_state_dict(state, strict=True)  # the trainer itself loads known names only
        self.body = freeze_norms(body) if freeze_bn else body
        self.num_channels = MANIFEST["geometry"]["search"]["taps"][-1]["map"][0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def register(trainer: Path) -> None:
    """Take the place of the backbone's class; no file of the trainer is changed."""
    enter(trainer)
    importlib.import_module("lib.models.stark.backbone_X").Backbone = Own  # type: ignore[attr-defined]


FOLDERS = ("lasot", "got10k", "trackingnet", "coco", "lasot_lmdb", "got10k_lmdb", "trackingnet_lmdb", "coco_lmdb")


def places(trainer: Path) -> dict[str, str]:
    """Where the trainer's data lie: by its local.py, else as its create_default_local_file.py has them."""
    name = "lib.train.admin.local"
    if (trainer / "lib/train/admin/local.py").is_file():
        found = dict(vars(importlib.import_module(name).EnvironmentSettings()))
    else:
        found = {f"{folder}_dir": f"data/{folder}" for folder in FOLDERS}
        found.update(imagenet_dir="data/vid", imagenet_lmdb_dir="data/vid_lmdb", workspace_dir=".")
    return {key: str(trainer / value) if value else value for key, value in found.items() if isinstance(value, str)}


def ready(trainer: Path) -> str:
    """No GPU, or no GOT-10k where the configuration names it."""
    if without_gpu():
        return without_gpu()
    root = Path(places(trainer)["got10k_dir"])
    if any(name.startswith("GOT10K") for name in settings().DATA.TRAIN.DATASETS_NAME) and not root.is_dir():
        return f"the data set GOT-10k is not in {root}: put it there, or say in lib/train/admin/local.py where it is"
    return ""


def start(trainer: Path, place: Path, changes: dict[str, Any], rest: list[str]) -> None:
    """The script with this run's configuration, folders and data, though it looks for them inside the checkout."""
    changes = dict(changes)
    where = {**places(trainer), "workspace_dir": str(place), "tensorboard_dir": str(place / "tensorboard")}
    where.update({key: changes.pop(key) for key in list(changes) if key.endswith("_dir")})
    config = settings_for(place, changes)
    local: Any = types.ModuleType("lib.train.admin.local")
    local.EnvironmentSettings = lambda: types.SimpleNamespace(**where)
    sys.modules[local.__name__] = local

    class Settings(importlib.import_module("lib.train.admin.settings").Settings):  # type: ignore[misc]
        """The trainer's own, but for the place of the configuration, which it would find in experiments/ only."""

        cfg_file = property(lambda self: str(config), lambda self, value: None)

        def __reduce__(self) -> Any:  # it goes into checkpoints, which are read without this file
            return (types.SimpleNamespace, (), {k: v for k, v in vars(self).items() if k != "env"})

    importlib.import_module("lib.train.admin.settings").Settings = Settings  # type: ignore[attr-defined]
    given = ["--script", SCRIPT, "--config", MANIFEST["module"], "--save_dir", str(place), *rest]
    run(trainer / "lib/train/run_training.py", given, place)


def smoke(trainer: Path, data: Path) -> dict[str, Any]:
    """A short training on made-up sequences; the splits of GOT-10k name the first 9,335."""
    made_up_sequences(data / "got10k", listed=9335)
    one = SMOKE_ITERATIONS * SMOKE_BATCH
    return {
        "got10k_dir": str(data / "got10k"),
        "DATA.TRAIN.DATASETS_NAME": ["GOT10K_vottrain"],
        "DATA.TRAIN.DATASETS_RATIO": [1],
        "DATA.TRAIN.SAMPLE_PER_EPOCH": one,
        "DATA.VAL.DATASETS_NAME": ["GOT10K_votval"],
        "DATA.VAL.DATASETS_RATIO": [1],
        "DATA.VAL.SAMPLE_PER_EPOCH": SMOKE_BATCH,
        "DATA.MAX_SAMPLE_INTERVAL": 4,
        "TRAIN.EPOCH": SMOKE_EPOCHS,
        "TRAIN.BATCH_SIZE": SMOKE_BATCH,
        "TRAIN.NUM_WORKER": 0,
        "TRAIN.PRINT_INTERVAL": SMOKE_ITERATIONS // 2,
        "TRAIN.VAL_EPOCH_INTERVAL": SMOKE_EPOCHS,
    }


def resume(place: Path) -> tuple[dict[str, Any], list[str]]:
    """Nothing to say: the trainer goes on with the newest checkpoint of its folder."""
    if not leavings(place, "checkpoints"):
        say("no checkpoint yet: this run begins anew")
    return {}, []


def restore(checkpoint: Any) -> torch.nn.Module:
    """The trainer's model as training begins, or with a checkpoint loaded by its trainer's own load_checkpoint."""
    cfg = importlib.import_module(f"lib.config.{SCRIPT}.config").cfg
    model = importlib.import_module("lib.models.stark").build_stark_lightning_x_trt(cfg, phase="train").train()
    if checkpoint is not None:
        trainer = importlib.import_module("lib.train.trainers").LTRTrainer
        own = trainer.__new__(trainer)
        own.actor, own.loaders = types.SimpleNamespace(net=model), []
        own.optimizer, own.lr_scheduler = optimizer_of(model, cfg)
        own.load_checkpoint(str(checkpoint))
    return model


def optimizer_of(model: Any, cfg: Any) -> Any:
    """The trainer's optimiser and its schedule."""
    names = {"torch": torch, "is_main_process": lambda: False}
    script = Path(importlib.import_module("lib.train").__file__ or "").parent / "base_functions.py"
    return function_of(script, "get_optimizer_scheduler", names)(model, cfg)


def settings() -> Any:
    """The trainer's configuration with this folder's in it."""
    module = importlib.import_module(f"lib.config.{SCRIPT}.config")
    module.update_config_from_file(str(CONFIG))
    return module.cfg


def build(trainer: Path) -> torch.nn.Module:
    """The trainer's own model in training."""
    register(trainer)
    cfg = settings()
    return importlib.import_module("lib.models.stark").build_stark_lightning_x_trt(cfg, phase="train").train()


def backbone_of(model: Any) -> Any:
    return model.backbone.body


def taps_of(model: Any) -> Any:
    return model.backbone


def through(model: Any, z: torch.Tensor, x: torch.Tensor) -> Any:
    """As the actor's forward_pass: both images, the transformer, the corner head."""
    get_qkv = importlib.import_module("lib.utils.merge").get_qkv
    found = []
    for image, name in ((z, "template0"), (x, "search")):
        mask = torch.zeros(len(image), *image.shape[2:], dtype=torch.bool)
        found.append(model(img=image, mask=mask, mode="backbone", zx=name))
    q, k, v, mask = get_qkv(found)
    return model(q=q, k=k, v=v, key_padding_mask=mask, mode="transformer")[0]["pred_boxes"]


def scores(model: Any, z: torch.Tensor, x: torch.Tensor) -> dict[str, Any]:
    side = model.feat_sz_s
    assert through(model, z, x).shape[-1] == 4
    return {"the head's map": (side, side), "the backbone's map": model.backbone(x).shape}


def epoch(trainer: Path, model: Any, number: int) -> Any:
    """The trainer's optimiser; nothing changes between epochs."""
    model.train()
    return optimizer_of(model, settings())[0]


def step(model: Any, optimizer: Any) -> float:
    """One training step on random images: the L1 part of the actor's loss."""
    geometry = MANIFEST["geometry"]
    z, x = (torch.randn(2, 3, geometry[s]["px"], geometry[s]["px"]) for s in ("template", "search"))
    loss = 5 * torch.nn.functional.l1_loss(through(model, z, x).squeeze(1), torch.rand(2, 4))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
