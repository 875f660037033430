"""STVIR/pysot d04028f, tools/train.py: build_opt_lr (74-114); main joins RANK (distributed.py 84-100), loads PRETRAINED."""

import argparse
import os

import numpy as np
import torch
from pysot.core.config import cfg
from pysot.models.model_builder import ModelBuilder
from pysot.utils.lr_scheduler import build_lr_scheduler
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--cfg", type=str, default="")
parser.add_argument("--seed", type=int, default=123456)
args = parser.parse_args()


def build_opt_lr(model, current_epoch=0):
    for param in model.backbone.parameters():
        param.requires_grad = False
    for m in model.backbone.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    if current_epoch >= cfg.BACKBONE.TRAIN_EPOCH:
        for layer in cfg.BACKBONE.TRAIN_LAYERS:
            for param in getattr(model.backbone, layer).parameters():
                param.requires_grad = True
            for m in getattr(model.backbone, layer).modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.train()
    groups = [
        {"params": [p for p in model.backbone.parameters() if p.requires_grad], "lr": 0.1 * cfg.TRAIN.BASE_LR},
        {"params": model.rpn_head.parameters(), "lr": cfg.TRAIN.BASE_LR},
    ]
    optimizer = torch.optim.SGD([g for g in groups if g["params"]], lr=0.1, momentum=0.9)
    lr_scheduler = build_lr_scheduler(optimizer, epochs=cfg.TRAIN.EPOCH)
    lr_scheduler.step(cfg.TRAIN.START_EPOCH)
    return optimizer, lr_scheduler


def main():
    cfg.merge_from_file(args.cfg)
    ModelBuilder().train()
    where = os.path.join(os.path.dirname(os.path.realpath(__file__)), "../", cfg.BACKBONE.PRETRAINED)
    assert os.path.isfile(where), where
    rank = int(os.environ["RANK"])
    print(
        "rank",
        rank,
        "np.float is",
        np.float.__name__,
        "seed",
        args.seed,
        "type",
        cfg.BACKBONE.TYPE,
        "out",
        cfg.TRAIN.OUTPUT_SIZE,
    )


if __name__ == "__main__":
    main()
