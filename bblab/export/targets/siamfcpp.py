"""SiamFC++, of video_analyst: one tensor at stride 8, wholly unpadded (6x6 at 127 px, 28x28 at 303 px), raw BGR.

Read at f4d1bcc: videoanalyst/model/backbone/backbone_base.py (TRACK_BACKBONES), model/module_base.py (how a file is
loaded, 62-95), model/task_model/taskmodel_impl/siamese_track.py (neck and head are as wide as the backbone:
head_width), optim/grad_modifier (DynamicFreezer), main/train.py.

DynamicFreezer freezes parameters only: norm statistics would keep moving. The exported module does not let them.
"""

from __future__ import annotations

import importlib
import sys
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
    Tee,
    backbone,
    config_value,
    enter,
    leavings,
    made_up_sequences,
    run,
    say,
    settings_for,
    weights_given,
    without_gpu,
)
from bblab.export.target import LAUNCH, TARGETS, Fit, Target

CONFIG_TEXT = """\
train:
  track:
    exp_name: &TRAIN_NAME "siamfcpp_$module"
    exp_save: &TRAIN_SAVE "snapshots"   # launch.py puts it into runs/N of this folder
    num_processes: 1
    model:
      backbone:
        name: "$module"              # launch.py enters it into TRACK_BACKBONES
        $module:
          pretrain_model_path: "$weights"   # in this folder; launch.py makes the path whole
      losses:
        names: ["FocalLoss", "SigmoidCrossEntropyCenterness", "IOULoss"]
        FocalLoss: {name: "cls", weight: 1.0, alpha: 0.25}
        SigmoidCrossEntropyCenterness: {name: "ctr", weight: 1.0}
        IOULoss: {name: "reg", weight: 3.0}
      task_head:
        name: "DenseboxHead"
        DenseboxHead:
          total_stride: $stride
          score_size: $score_map
          x_size: $search_px
          num_conv3x3: 3
          head_conv_bn: [False, False, True]
          head_width: $channel       # neck and head are as wide as the backbone
      task_model:
        name: "SiamTrack"
        SiamTrack:
          pretrain_model_path: ""
          head_width: $channel
    data:
      exp_name: *TRAIN_NAME
      exp_save: *TRAIN_SAVE
      num_epochs: &NUM_EPOCHS 20
      minibatch: &MINIBATCH 32
      num_workers: 32
      nr_image_per_epoch: &NR_IMAGE_PER_EPOCH 400000
      pin_memory: false
      datapipeline:
        name: "RegularDatapipeline"
      sampler:
        name: "TrackPairSampler"
        TrackPairSampler:
          negative_pair_ratio: 0.1
        submodules:
          dataset:
            names: ["GOT10kDataset"]
            GOT10kDataset: {ratio: 1.0, max_diff: 100, dataset_root: "datasets/GOT-10k", subset: "train"}
          filter:
            name: "TrackPairFilter"
            TrackPairFilter: {max_area_rate: 0.6, min_area_rate: 0.001, max_ratio: 10}
      transformer:
        names: ["RandomCropTransformer"]
        RandomCropTransformer: {max_scale: 0.3, max_shift: 0.4, x_size: $search_px}
      target:
        name: "DenseboxTarget"
        DenseboxTarget: {total_stride: $stride, score_size: $score_map, x_size: $search_px, num_conv3x3: 3}
    trainer:
      name: "RegularTrainer"
      RegularTrainer:
        exp_name: *TRAIN_NAME
        exp_save: *TRAIN_SAVE
        max_epoch: *NUM_EPOCHS
        minibatch: *MINIBATCH
        nr_image_per_epoch: *NR_IMAGE_PER_EPOCH
        snapshot: ""
      monitors:
        names: ["TextInfo"]
        TextInfo: {}
    optim:
      optimizer:
        name: "SGD"
        SGD:
          momentum: 0.9
          weight_decay: 0.00005
          minibatch: *MINIBATCH
          nr_image_per_epoch: *NR_IMAGE_PER_EPOCH
          lr_policy:
          - '{"name": "LinearLR", "start_lr": 0.000001, "end_lr": 0.08, "max_epoch": 1}'
          - '{"name": "CosineLR", "start_lr": 0.08, "end_lr": 0.000001, "max_epoch": 19}'
          lr_multiplier:
          - '{"name": "backbone", "regex": "basemodel", "ratio": $lr_share}'   # $freeze_why
          - '{"name": "other", "regex": "^((?!basemodel).)*$$", "ratio": 1}'
      grad_modifier:
        name: "DynamicFreezer"
        DynamicFreezer:
          schedule:                  # $freeze_why
$schedule
"""


def config_values(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The freezer's schedule: parameters by regular expression, from an epoch on."""
    stages, epoch = "|".join(keys["train_layers"]), keys["freeze_epochs"]
    actions = [("all", r"basemodel\\.", 0, epoch > 0)]
    if epoch:
        actions.append(("some", rf"body\\.({stages})\\.", epoch, False))
    line = '          - \'{{"name": "{}", "regex": "{}", "epoch": {}, "freezed": {}}}\''
    return {"schedule": "\n".join(line.format(n, regex, at, _yes(is_frozen)) for n, regex, at, is_frozen in actions)}


def _yes(value: bool) -> str:
    return "true" if value else "false"


TARGETS.add(
    "siamfcpp",
    Target(
        name="siamfcpp",
        trainer="SiamFC++",
        repository="github.com/MegviiDetection/video_analyst",
        commit="f4d1bcc",
        sources=(
            "videoanalyst/model/backbone/backbone_base.py",
            "videoanalyst/model/module_base.py 62-95",
            "videoanalyst/model/task_model/taskmodel_impl/siamese_track.py",
            "main/train.py",
        ),
        file=Path(__file__),
        search_px=303,
        stride=8,
        fits=(Fit(6, 28, 17),),
        padding="valid",
        freeze_epochs=5,
        train_above=4,
        freeze="DynamicFreezer, parameters only; the exported module keeps the statistics of frozen norms",
        root=".",
        script="main/train.py",
        command="python launch.py --trainer video_analyst",
        config=CONFIG_TEXT,
        upstream="experiments/siamfcpp/train/got10k/siamfcpp_alexnet-trn.yaml",
        differs={
            "test.*": "left out: this is for training",
            "train.track.exp_*, train.track.data.exp_*, *.RegularTrainer.exp_*": "this net's name; launch.py puts all "
            "into runs/N of this folder",
            "train.track.model.backbone.*, *.head_width": "this net, its weights and width",
            "train.track.model.losses.*, *.amp, *.dataset.GOT10kDatasetFixed.*, *.dataset.LaSOTDataset.*": "left out "
            "what is the default or not used",
            "train.track.trainer.monitors.*": "without TensorBoard",
            "train.track.optim.optimizer.SGD.lr_*": "the same in one line each; the backbone's part of the rate",
            "*.DynamicFreezer.schedule": "all stages above stride 4 at once, not conv5, conv4 and conv3 one after "
            "the other",
        },
        config_values=config_values,
        launch=LAUNCH,
        supplies=("numpy_names", "collections_names", "whole_checkpoints"),
        log="logs/train.log",
        losses=("cls", "ctr", "reg"),
        checkpoints="*/epoch-*.pkl",
        weights_prefix="body.",
        weights_suffix=".pkl",
        pip="yacs loguru tqdm six wget shapely opencv-python pycocotools tensorboard",
    ),
)

PREFIX = "basemodel.body."
TASK = "train.track"
BACKBONE = f"{TASK}.model.backbone.{MANIFEST.get('module')}"
DATA = f"{TASK}.data.sampler.submodules.dataset"
TRAINER = f"{TASK}.trainer.RegularTrainer"
SGD = f"{TASK}.optim.optimizer.SGD"
FREEZER = f"{TASK}.optim.grad_modifier.DynamicFreezer"


def register(trainer: Path) -> None:
    """Enter a module with this backbone; no file of the trainer is changed."""
    enter(trainer)
    base = importlib.import_module("videoanalyst.model.module_base").ModuleBase
    name = MANIFEST["module"]

    def build_body(self: Any) -> None:
        base.__init__(self)
        self.body = backbone()

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)

    made = {"default_hyper_params": {"pretrain_model_path": ""}, "__init__": build_body, "forward": forward}
    # Before the configuration is imported: it lists the backbones that are there.
    importlib.import_module("videoanalyst.model.backbone.backbone_base").TRACK_BACKBONES.register(
        type(name, (base,), made)
    )


def ready(trainer: Path) -> str:
    """No GPU (unless the configuration says `device: cpu`), or no data set."""
    if without_gpu() and config_value(f"{TASK}.device") != "cpu":
        return without_gpu()
    name = config_value(f"{DATA}.names")[0]
    root = trainer / str(config_value(f"{DATA}.{name}.dataset_root"))
    if not (root / config_value(f"{DATA}.{name}.subset") / "list.txt").is_file():
        return f"the data set {name} has no list.txt in {root}: put it there, or set its dataset_root in config.yaml"
    return ""


def start(trainer: Path, place: Path, changes: dict[str, Any], rest: list[str]) -> None:
    """The losses are in the progress bar alone: what the script prints goes to logs/train.log too."""
    own: dict[str, Any] = {f"{BACKBONE}.pretrain_model_path": weights_given(f"{BACKBONE}.pretrain_model_path")}
    for part in ("", ".data", ".trainer.RegularTrainer"):
        own[f"{TASK}{part}.exp_save"] = str(place)
    for name in config_value(f"{DATA}.names"):
        key = f"{DATA}.{name}.dataset_root"
        own[key] = str(trainer / str(config_value(key)))
    config = settings_for(place, {**own, **changes})
    plain = sys.stderr
    sys.stderr = Tee(plain, place / "logs/train.log")
    try:
        run(trainer / "main/train.py", ["--config", str(config), *rest], place)
    finally:
        sys.stderr = plain


def smoke(trainer: Path, data: Path) -> dict[str, Any]:
    """A short training on made-up sequences."""
    made_up_sequences(data / "train")
    schedule = config_value(f"{FREEZER}.schedule")
    own = MANIFEST["freeze"]["epochs"]
    changes = {
        f"{TASK}.device": "cpu",
        f"{TASK}.num_processes": 1,
        f"{DATA}.names": ["GOT10kDataset"],
        f"{DATA}.GOT10kDataset.dataset_root": str(data),
        f"{DATA}.GOT10kDataset.subset": "train",
        f"{TASK}.data.num_workers": 0,
        f"{FREEZER}.schedule": [text.replace(f'"epoch": {own},', '"epoch": 1,') if own else text for text in schedule],
        f"{SGD}.lr_policy": ['{"name": "LinearLR", "start_lr": 0.00001, "end_lr": 0.00001, "max_epoch": 2}'],
    }
    changes.update({f"{TASK}.data.num_epochs": SMOKE_EPOCHS, f"{TRAINER}.max_epoch": SMOKE_EPOCHS})
    for part in (f"{TASK}.data", TRAINER, SGD):
        changes[f"{part}.minibatch"] = SMOKE_BATCH
        changes[f"{part}.nr_image_per_epoch"] = SMOKE_BATCH * SMOKE_ITERATIONS
    return changes


def resume(place: Path) -> tuple[dict[str, Any], list[str]]:
    """The trainer's own --resume."""
    found = leavings(place, "checkpoints")
    if not found:
        say("no checkpoint yet: this run begins anew")
        return {}, []
    return {}, ["--resume", str(found[-1])]


def restore(checkpoint: Any) -> torch.nn.Module:
    """The trainer's model as training begins, or with a checkpoint loaded by its trainer's own load_snapshot."""
    name, cfg = settings()
    model = importlib.import_module("videoanalyst.model.builder").build(name, cfg.model).train()
    if checkpoint is not None:
        optimizer = importlib.import_module("videoanalyst.optim.builder").build(name, cfg.optim, model)
        kinds = importlib.import_module("videoanalyst.engine.trainer.trainer_base").TRACK_TRAINERS
        trainer = kinds["RegularTrainer"](optimizer, [])
        trainer.set_device(["cpu"])
        trainer.resume(str(checkpoint))
        trainer.load_snapshot()
    return model


def settings() -> Any:
    """The trainer's task and its configuration, as they are now."""
    module = importlib.import_module("videoanalyst.config.config")
    return module.specify_task(module.cfg.train)


def task() -> Any:
    """The trainer's task and its configuration with this folder's in it."""
    cfg = importlib.import_module("videoanalyst.config.config").cfg
    cfg.merge_from_file(str(CONFIG))
    own = cfg.train.track.model.backbone[MANIFEST["module"]]
    if own.pretrain_model_path == WEIGHTS.name:
        own.pretrain_model_path = str(WEIGHTS)
    return settings()


def build(trainer: Path) -> torch.nn.Module:
    """The trainer's own model, the backbone loaded by its own update_params."""
    register(trainer)
    name, cfg = task()
    return importlib.import_module("videoanalyst.model.builder").build(name, cfg.model).train()


def backbone_of(model: Any) -> Any:
    return model.basemodel.body


def taps_of(model: Any) -> Any:
    return model.basemodel


def scores(model: Any, z: torch.Tensor, x: torch.Tensor) -> dict[str, Any]:
    found = model({"im_z": z, "im_x": x}, phase="train")
    return {key: (round(found[key].shape[1] ** 0.5),) * 2 for key in ("cls_pred", "ctr_pred", "box_pred")}


def epoch(trainer: Path, model: Any, number: int) -> Any:
    """What the trainer does: train() once, then DynamicFreezer at each epoch's start; its optimiser."""
    name, cfg = task()
    optimizer = importlib.import_module("videoanalyst.optim.builder").build(name, cfg.optim, model)
    if number == 0:
        model.train()
    optimizer.modify_grad(number)
    return optimizer


def step(model: Any, optimizer: Any) -> float:
    """One training step with the trainer's own losses, on random images and labels."""
    geometry = MANIFEST["geometry"]
    units, (z, x) = geometry["score_map"] ** 2, (geometry["template"]["px"], geometry["search"]["px"])
    positive = torch.zeros(2, units, 1)
    positive[:, : units // 2] = 1
    box = torch.tensor([100.0, 100.0, 200.0, 200.0]).expand(2, units, 4)
    data = {"im_z": 255 * torch.rand(2, 3, z, z), "im_x": 255 * torch.rand(2, 3, x, x)}
    data.update(cls_gt=positive, ctr_gt=0.5 * positive, box_gt=box)
    found = model(data)
    loss = sum(one(found, data)[0] for one in model.loss.values())
    optimizer.schedule(5, 0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss)
