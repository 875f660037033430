"""researchmm/TracKit e351e5b, lib/dataset/ocean.py: crops and annotation of WHICH_USE, five arrays and the box."""

import json
import os

import cv2
import numpy as np
from torch.utils.data import Dataset


class OceanDataset(Dataset):
    def __init__(self, cfg):
        self.cfg, self.crops = cfg, []
        for name in cfg.OCEAN.TRAIN.WHICH_USE:
            info = cfg.OCEAN.DATASET[name]
            with open(info.ANNOTATION) as fin:
                labels = json.load(fin)
            for video, tracks in labels.items():
                for track, frames in tracks.items():
                    self.crops += [
                        os.path.join(info.PATH, video, "{:06d}.{}.x.jpg".format(int(f), track)) for f in frames
                    ]
            self.num = info.USE

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        train = self.cfg.OCEAN.TRAIN
        image = cv2.imread(self.crops[index % len(self.crops)])
        z, x = (
            cv2.resize(image, (n, n)).transpose(2, 0, 1).astype(np.float32)
            for n in (train.TEMPLATE_SIZE, train.SEARCH_SIZE)
        )
        label = np.zeros((25, 25), np.float)
        label[:12] = 1
        return z, x, label, 20 + np.zeros((25, 25, 4)), label, np.zeros(4, np.float32)
