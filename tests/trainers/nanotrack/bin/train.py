"""SiamTrackers 248663f, bin/train.py: build_opt_lr (72-104); train (143-243: an epoch is saved as the next begins); main merges
--cfg, logs into LOG_DIR, loads PRETRAINED and RESUME (246-300)."""

import argparse
import logging
import os

import numpy as np
import torch
from nanotrack.core.config import cfg
from nanotrack.datasets.dataset import BANDataset
from nanotrack.models.model_builder import ModelBuilder
from nanotrack.utils.lr_scheduler import build_lr_scheduler
from nanotrack.utils.model_load import load_pretrain, restore_from
from torch import nn
from torch.utils.data import DataLoader

logger = logging.getLogger("global")
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
        {"params": model.ban_head.parameters(), "lr": cfg.TRAIN.BASE_LR},
    ]
    optimizer = torch.optim.SGD([g for g in groups if g["params"]], lr=0.1, momentum=0.9)
    lr_scheduler = build_lr_scheduler(optimizer, epochs=cfg.TRAIN.EPOCH)
    lr_scheduler.step(cfg.TRAIN.START_EPOCH)
    return optimizer, lr_scheduler


def train(train_loader, model, optimizer, lr_scheduler):
    num_per_epoch = len(train_loader.dataset) // cfg.TRAIN.EPOCH // cfg.TRAIN.BATCH_SIZE
    start_epoch = epoch = cfg.TRAIN.START_EPOCH
    os.makedirs(cfg.TRAIN.SNAPSHOT_DIR, exist_ok=True)
    for idx, data in enumerate(train_loader):
        if epoch != idx // num_per_epoch + start_epoch:
            epoch = idx // num_per_epoch + start_epoch
            state = {"epoch": epoch, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, cfg.TRAIN.SNAPSHOT_DIR + "/checkpoint_e%d.pth" % epoch)
            if epoch == cfg.TRAIN.EPOCH:
                return
            if cfg.BACKBONE.TRAIN_EPOCH == epoch:
                logger.info("start training backbone.")
                optimizer, lr_scheduler = build_opt_lr(model, epoch)
            lr_scheduler.step(epoch)
        outputs = model(data)
        loss = outputs["total_loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.TRAIN.GRAD_CLIP)
        optimizer.step()
        if (idx + 1) % cfg.TRAIN.PRINT_FREQ == 0:
            of = (idx + 1) % num_per_epoch
            info = "Epoch: [{}][{}/{}] lr: {:.6f}\n".format(epoch + 1, of, num_per_epoch, lr_scheduler.get_cur_lr())
            logger.info(info + "\tbatch_time: 0.1 (0.1)\ttotal_loss: {0:.6f} ({0:.6f})\t".format(loss.item()))


def main():
    cfg.merge_from_file(args.cfg)
    os.makedirs(cfg.TRAIN.LOG_DIR, exist_ok=True)
    logger.setLevel(logging.INFO)
    handler = logging.FileHandler(os.path.join(cfg.TRAIN.LOG_DIR, "logs.txt"))
    handler.setFormatter(logging.Formatter("[%(asctime)s-rk0-%(filename)s#%(lineno)3d] %(message)s"))
    logger.addHandler(handler)
    print("np.float is", np.float.__name__, "seed", args.seed, "type", cfg.BACKBONE.TYPE, "out", cfg.TRAIN.OUTPUT_SIZE)
    model = ModelBuilder().cuda().train()
    where = os.path.join(os.path.dirname(os.path.realpath(__file__)), "../", cfg.BACKBONE.PRETRAINED)
    load_pretrain(model.backbone, where)
    loader = DataLoader(BANDataset(), batch_size=cfg.TRAIN.BATCH_SIZE, num_workers=cfg.TRAIN.NUM_WORKERS)
    optimizer, lr_scheduler = build_opt_lr(model, cfg.TRAIN.START_EPOCH)
    if cfg.TRAIN.RESUME:
        logger.info("resume from {}".format(cfg.TRAIN.RESUME))
        model, optimizer, cfg.TRAIN.START_EPOCH = restore_from(model, optimizer, cfg.TRAIN.RESUME)
    train(loader, model, optimizer, lr_scheduler)


if __name__ == "__main__":
    main()
