"""SiamTrackers 248663f, nanotrack/ utils/lr_scheduler.py: rates by epoch, as numpy numbers, which go into the optimiser and its checkpoints."""

import numpy as np

from nanotrack.core.config import cfg


class Scheduler:
    def __init__(self, optimizer, epochs):
        kwargs = cfg.TRAIN.LR.KWARGS
        self.optimizer = optimizer
        self.shares = [group["lr"] / cfg.TRAIN.BASE_LR for group in optimizer.param_groups]
        self.lr_spaces = np.logspace(np.log10(kwargs.start_lr), np.log10(kwargs.end_lr), epochs)

    def step(self, epoch=None):
        self.epoch = epoch
        for share, group in zip(self.shares, self.optimizer.param_groups):
            group["lr"] = self.lr_spaces[epoch] * share

    def get_cur_lr(self):
        return self.lr_spaces[self.epoch]


def build_lr_scheduler(optimizer, epochs=50):
    return Scheduler(optimizer, epochs)
