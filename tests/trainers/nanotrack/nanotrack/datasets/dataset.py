"""SiamTrackers 248663f, nanotrack/ datasets/dataset.py: crops and their annotation, both relative to the checkout; a label and boxes."""

import json
import os

import cv2
import numpy as np
from torch.utils.data import Dataset

from nanotrack.core.config import cfg


class BANDataset(Dataset):
    def __init__(self):
        if not cfg.DATASET.NAMES:
            raise Exception("size not match!")
        here = os.path.dirname(os.path.realpath(__file__))
        self.pairs = []
        for dataset in cfg.DATASET.NAMES:
            data = cfg.DATASET[dataset]
            root, anno = (os.path.join(here, "../../", path) for path in (data.ROOT, data.ANNO))
            with open(anno) as f:
                labels = json.load(f)
            for video, tracks in labels.items():
                for track, frames in tracks.items():
                    self.pairs += [os.path.join(root, video, f"{int(f):06d}.{track}.x.jpg") for f in frames]
        self.num = cfg.DATASET.VIDEOS_PER_EPOCH * cfg.TRAIN.EPOCH

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        image = cv2.imread(self.pairs[index % len(self.pairs)])
        z, x, size = cfg.TRAIN.EXEMPLAR_SIZE, cfg.TRAIN.SEARCH_SIZE, cfg.TRAIN.OUTPUT_SIZE
        crop = lambda px: cv2.resize(image, (px, px)).transpose(2, 0, 1).astype(np.float32)
        label = np.zeros((size, size), dtype=np.int64)
        label[..., : size // 2] = 1
        box = 20 + np.zeros((4, *label.shape), dtype=np.float)
        return {"template": crop(z), "search": crop(x), "label_cls": label, "label_loc": box.astype(np.float32)}
