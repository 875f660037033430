"""MegviiDetection/video_analyst f4d1bcc: data/builder.py and evaluation/got_benchmark/datasets/got10k.py: DATASET_ROOT/SUBSET/list.txt."""

import os

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


class Pairs(Dataset):
    def __init__(self, cfg):
        own = cfg.sampler.submodules.dataset.GOT10kDataset
        root = os.path.realpath(own.dataset_root)
        with open(os.path.join(root, own.subset, "list.txt")) as f:
            self.folders = [os.path.join(root, own.subset, name) for name in f.read().strip().split("\n")]
        self.cfg = cfg

    def __len__(self):
        return self.cfg.nr_image_per_epoch * self.cfg.num_epochs

    def __getitem__(self, item):
        image = cv2.imread(os.path.join(self.folders[item % len(self.folders)], "00000001.jpg"))
        crop = lambda px: torch.from_numpy(cv2.resize(image, (px, px)).transpose(2, 0, 1).astype(np.float32))
        units = self.cfg.target.DenseboxTarget.score_size**2
        half = (torch.arange(units) < units // 2).float()[:, None]
        return {
            "im_z": crop(127),
            "im_x": crop(303),
            "cls_gt": half,
            "ctr_gt": half / 2,
            "box_gt": 100 + torch.zeros(units, 4),
        }


def build(task, cfg):
    return DataLoader(Pairs(cfg), batch_size=cfg.minibatch, num_workers=cfg.num_workers, drop_last=True)
