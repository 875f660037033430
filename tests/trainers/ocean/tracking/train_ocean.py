"""researchmm/TracKit e351e5b, tracking/train_ocean.py 85-145 (build_opt_lr) and 168-206: the model by name, ./pretrain."""

import argparse
import os

import models.models as models
import torch
import torch.nn as nn
from core.config import config, update_config
from utils.utils import build_lr_scheduler


def build_opt_lr(cfg, model, current_epoch=0):
    learns = current_epoch >= cfg.OCEAN.TRAIN.UNFIX_EPOCH
    for param in model.features.features.parameters():
        param.requires_grad = False
    for m in model.features.features.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    if learns:
        for layer in cfg.OCEAN.TRAIN.TRAINABLE_LAYER:
            for param in getattr(model.features.features, layer).parameters():
                param.requires_grad = True
            for m in getattr(model.features.features, layer).modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.train()
    params = [p for p in model.features.features.parameters() if p.requires_grad]
    groups = [{"params": params, "lr": 0.01}] if params else []
    groups += [{"params": model.neck.parameters()}, {"params": model.connect_model.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    return optimizer, build_lr_scheduler(optimizer, cfg, epochs=cfg.OCEAN.TRAIN.END_EPOCH)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg", type=str)
    update_config(parser.parse_args().cfg)
    os.makedirs("./pretrain", exist_ok=True)
    path = f"./pretrain/{config.OCEAN.TRAIN.PRETRAIN}"
    print("model", models.__dict__[config.OCEAN.TRAIN.MODEL].__name__, "weights there", os.path.isfile(path))


if __name__ == "__main__":
    main()
