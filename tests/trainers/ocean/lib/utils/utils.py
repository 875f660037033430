"""researchmm/TracKit e351e5b, lib/utils/utils.py 657-672: load_pretrain with whole-model keys, to the CUDA device."""

import logging
import os
import time
from pathlib import Path

import torch


def load_pretrain(model, pretrained_path, print_unuse=True):
    device = torch.cuda.current_device()
    state = torch.load(pretrained_path, map_location=lambda storage, loc: storage.cuda(device))
    assert set(state) & set(model.state_dict()), "load NONE from pretrained checkpoint"
    model.load_state_dict(state, strict=False)
    return model


def restore_from(model, optimizer, ckpt_path):
    """903-914: beside the epoch, the architecture's name."""
    device = torch.cuda.current_device()
    ckpt = torch.load(ckpt_path, map_location=lambda storage, loc: storage.cuda(device))
    model.load_state_dict(ckpt["state_dict"], strict=False)
    optimizer.load_state_dict(ckpt["optimizer"])
    return model, optimizer, ckpt["epoch"], ckpt["arch"]


def create_logger(cfg, modelFlag="OCEAN", phase="train"):
    """928-957: OUTPUT_DIR/MODEL/MODEL_TIME_train.log."""
    model = cfg[modelFlag].TRAIN.MODEL
    folder = Path(cfg.OUTPUT_DIR) / model
    folder.mkdir(parents=True, exist_ok=True)
    name = "{}_{}_{}.log".format(model, time.strftime("%Y-%m-%d-%H-%M"), phase)
    logging.basicConfig(filename=str(folder / name), format="%(asctime)-15s %(message)s")
    logging.getLogger().setLevel(logging.INFO)
    return logging.getLogger(), str(folder), str(folder)


def save_model(model, epoch, optimizer, model_name, cfg, isbest=False):
    """970-985: not the first epoch."""
    os.makedirs(cfg.CHECKPOINT_DIR, exist_ok=True)
    if epoch > 0:
        state = {"epoch": epoch + 1, "arch": model_name, "state_dict": model.module.state_dict()}
        state["optimizer"] = optimizer.state_dict()
        torch.save(state, os.path.join(cfg.CHECKPOINT_DIR, "checkpoint_e%d.pth" % (epoch + 1)))


class Scheduler:
    def step(self, epoch=None):
        self.epoch = epoch

    def get_cur_lr(self):
        return 0.001


def build_lr_scheduler(optimizer, cfg, epochs=50):
    return Scheduler()
