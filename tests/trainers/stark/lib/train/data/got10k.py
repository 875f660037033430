"""researchmm/Stark 162e1d3, lib/train/dataset/got10k.py (56: squeeze) and data/loader.py (5: torch._six), data/sampler.py (274:
sequences of 20 frames or more, sought until one is found)."""

import os
import random

import cv2
import numpy as np
import pandas
import torch
from torch._six import string_classes

SPLIT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "data_specs", "got10k_vot_train_split.txt")


class Got10k(torch.utils.data.Dataset):
    def __init__(self, root, cfg, samples):
        with open(os.path.join(root, "list.txt")) as f:
            names = f.read().split()
        self.sequences = [
            names[i] for i in pandas.read_csv(SPLIT, header=None, squeeze=True, dtype=np.int64).values.tolist()
        ]
        self.root, self.cfg, self.samples = root, cfg, samples
        assert isinstance(root, string_classes)

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        while True:
            folder = os.path.join(self.root, random.choice(self.sequences))
            boxes = pandas.read_csv(os.path.join(folder, "groundtruth.txt"), header=None, dtype=np.float32).values
            if len(boxes) >= 20:
                break
        image = cv2.imread(os.path.join(folder, "00000001.jpg"))
        z, x = (self.cfg.DATA[k].SIZE for k in ("TEMPLATE", "SEARCH"))
        crop = lambda px: torch.from_numpy(cv2.resize(image, (px, px)).transpose(2, 0, 1).astype(np.float32) / 255)
        return crop(z), crop(x), torch.from_numpy(boxes[0] / 360)
