"""researchmm/Stark 162e1d3, lib/models/stark/stark_lightning_x_trt.py: backbone, transformer, corner head by modes."""

import torch
from torch import nn

from .backbone_X import build_backbone_x


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone_x(cfg)
        self.bottleneck = nn.Conv2d(self.backbone.num_channels, 8, 1)
        self.feat_sz_s = int(cfg.DATA.SEARCH.SIZE / 16)
        self.sizes = {"template0": cfg.DATA.TEMPLATE.FEAT_SIZE, "search": cfg.DATA.SEARCH.FEAT_SIZE}
        self.head = nn.Linear(8, 4)

    def forward(self, img=None, mask=None, q=None, k=None, v=None, key_padding_mask=None, mode="backbone", zx="search"):
        if mode == "backbone":
            feat = self.bottleneck(self.backbone(img))
            assert feat.shape[-1] == self.sizes[zx]
            vec = feat.flatten(2).permute(2, 0, 1)
            return {"feat": vec, "mask": torch.zeros(vec.shape[1], vec.shape[0], dtype=torch.bool), "pos": 0 * vec}
        return {"pred_boxes": self.head(q.mean(0) + v.mean(0)).sigmoid()[:, None]}, None, None


def build_stark_lightning_x_trt(cfg, phase):
    return Model(cfg)
