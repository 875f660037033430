"""What pysot and its descendants (NanoTrack, siamban) share: where they write, the smoke run, resuming. Copied.

Read at STVIR/pysot d04028f, tools/train.py: LOG_DIR and SNAPSHOT_DIR are the configuration's (228-240); the checkpoint
of an epoch is written when the next one begins (185-190), so the smoke run has one sample more than its epochs need;
RESUME is read after the optimiser was built (270-275), so START_EPOCH must be said too.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from bblab.export.launching import (
    CONFIG,
    SMOKE_BATCH,
    SMOKE_EPOCHS,
    SMOKE_ITERATIONS,
    SMOKE_LR,
    config_value,
    leavings,
    made_up_crops,
    say,
    weights_given,
    without_gpu,
)


def own_places(place: Path) -> dict[str, Any]:
    """The keys by which everything that the trainer writes goes into a folder."""
    return {
        "BACKBONE.PRETRAINED": weights_given("BACKBONE.PRETRAINED"),
        "TRAIN.LOG_DIR": str(place / "logs"),
        "TRAIN.SNAPSHOT_DIR": str(place / "snapshot"),
    }


def smoke_keys(data: Path, dataset: str) -> dict[str, Any]:
    """The keys of a short training on made-up crops: half of it frozen where the configuration freezes."""
    root, annotation = made_up_crops(data / "crops")
    return {
        "BACKBONE.TRAIN_EPOCH": min(1, config_value("BACKBONE.TRAIN_EPOCH")),
        "TRAIN.EPOCH": SMOKE_EPOCHS,
        "TRAIN.START_EPOCH": 0,
        "TRAIN.BATCH_SIZE": SMOKE_BATCH,
        "TRAIN.NUM_WORKERS": 0,
        "TRAIN.PRINT_FREQ": SMOKE_ITERATIONS // 2,
        "TRAIN.BASE_LR": SMOKE_LR,
        "TRAIN.LR.KWARGS.start_lr": SMOKE_LR,
        "TRAIN.LR.KWARGS.end_lr": SMOKE_LR,
        "TRAIN.LR_WARMUP.WARMUP": False,
        "TRAIN.RESUME": "",
        "DATASET.NAMES": [dataset],
        f"DATASET.{dataset}.ROOT": root,
        f"DATASET.{dataset}.ANNO": annotation,
        f"DATASET.{dataset}.NUM_USE": -1,
        "DATASET.NEG": 0.0,  # two negatives are a batch without a positive, which the box losses refuse
        "DATASET.VIDEOS_PER_EPOCH": SMOKE_ITERATIONS * SMOKE_BATCH + 1,
    }


def resume_keys(place: Path) -> tuple[dict[str, Any], list[str]]:
    """The newest checkpoint and its epoch. One written just before the unfreezing would never unfreeze: not that."""
    frozen = int(config_value("BACKBONE.TRAIN_EPOCH"))
    found = {int(re.findall(r"e(\d+)", p.stem)[-1]): p for p in leavings(place, "checkpoints")}
    if frozen in found:
        say(f"checkpoint_e{frozen} was written before the backbone unfroze, and would never unfreeze it: left out")
        del found[frozen]
    if not found:
        say("no checkpoint yet: this run begins anew")
        return {}, []
    epoch = max(found)
    return {"TRAIN.RESUME": str(found[epoch]), "TRAIN.START_EPOCH": epoch}, []


def absent_data(trainer: Path, package: str) -> str:
    """Why a training cannot start: no GPU, or a data set without its annotation; "" where it can."""
    if without_gpu():
        return without_gpu()
    cfg = importlib.import_module(f"{package}.core.config").cfg.clone()
    cfg.merge_from_file(str(CONFIG))
    for name in cfg.DATASET.NAMES:
        path = cfg.DATASET[name].ANNO
        if not path or not (trainer / path).is_file():
            where = f"names no annotation ({CONFIG.name}: DATASET.{name}.ANNO)" if not path else f"has no {path}"
            return f"the data set {name} {where}: put it there, or take {name} out of DATASET.NAMES"
    return ""
