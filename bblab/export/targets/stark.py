"""STARK-Lightning: one tensor at stride 16, 8x8 at 128 px and 20x20 at 320 px, normalised RGB, frozen norms.

Read at 162e1d3: lib/models/stark/backbone_X.py (Backbone is an if/elif on MODEL.BACKBONE.TYPE, 78-106; what is trained,
141-151), stark_lightning_x_trt.py, lib/train/actors/stark_lightningXtrt.py (forward_pass), lib/train/train_script.py,
lib/train/base_functions.py (get_optimizer_scheduler), experiments/stark_lightning_X_trt.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bblab.export.launching import CONFIG, HERE, MANIFEST, WEIGHTS, backbone, enter, function_of, run
from bblab.export.target import TARGETS, Fit, Target

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
        config_values=config_values,
        launch=("register", "start", "build", "backbone_of", "taps_of", "scores", "epoch", "step", "PREFIX"),
        notes=(
            "The trainer finds configurations in its experiments folder only: launch.py copies config.yaml to "
            "experiments/stark_lightning_X_trt, under this module's name, and nothing else.",
            "Checkpoints go to stark_run/ in this folder, or where --save_dir says.",
            "Other options of lib/train/run_training.py are handed on, --local_rank too.",
        ),
        pip="easydict yacs timm opencv-python tensorboardX",
    ),
)

PREFIX = "backbone.body."
SCRIPT = "stark_lightning_X_trt"


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
    enter(trainer, "lib/train")
    if "torchvision.models.utils" not in sys.modules:  # gone from newer torchvision
        gone = types.ModuleType("torchvision.models.utils")
        gone.load_state_dict_from_url = torch.hub.load_state_dict_from_url  # type: ignore[attr-defined]
        sys.modules["torchvision.models.utils"] = gone
    importlib.import_module("lib.models.stark.backbone_X").Backbone = Own  # type: ignore[attr-defined]


def start(trainer: Path, rest: list[str]) -> None:
    place = trainer / "experiments" / SCRIPT / f"{MANIFEST['module']}.yaml"
    if place.is_file() and place.read_bytes() != CONFIG.read_bytes():
        sys.exit(f"{place} is another configuration: move it away first")
    shutil.copyfile(CONFIG, place)
    save = [] if "--save_dir" in rest else ["--save_dir", str(HERE / "stark_run")]
    given = ["--script", SCRIPT, "--config", MANIFEST["module"], *save, *rest]
    run(trainer / "lib/train/run_training.py", given)


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
    names = {"torch": torch, "is_main_process": lambda: False}
    make = function_of(trainer / "lib/train/base_functions.py", "get_optimizer_scheduler", names)
    return make(model, settings())[0]


def step(model: Any, optimizer: Any) -> float:
    """One training step on random images: the L1 part of the actor's loss."""
    geometry = MANIFEST["geometry"]
    z, x = (torch.randn(2, 3, geometry[s]["px"], geometry[s]["px"]) for s in ("template", "search"))
    loss = 5 * torch.nn.functional.l1_loss(through(model, z, x).squeeze(1), torch.rand(2, 4))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
