"""researchmm/TracKit e351e5b, lib/models/models.py 24-30 and ocean.py 10-48: features(x) gives (stages, map); keys are
features.features.*; .cuda() in the constructor."""

import torch
from torch import nn

from .connect import AdjustLayer, AlignHead, box_tower

__all__ = ["AdjustLayer", "AlignHead", "Ocean_", "box_tower"]


class Ocean_(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = self.connect_model = self.align_head = self.neck = None
        self.grid = torch.zeros(1).cuda()

    def feature_extractor(self, x, online=False):
        return self.features(x, online=online)

    def template(self, z):
        _, zf = self.feature_extractor(z)
        _, self.zf = self.neck(zf, crop=True)

    def track(self, x):
        _, xf = self.feature_extractor(x)
        box, cls, _, _ = self.connect_model(self.neck(xf), self.zf)
        return cls, box

    def forward(self, template, search, label=None, reg_target=None, reg_weight=None):
        self.template(template)
        cls, box = self.track(search)
        loss = nn.functional.binary_cross_entropy_with_logits(cls.squeeze(1), label)
        return loss, None, (box.permute(0, 2, 3, 1) - reg_target).abs().mean()
