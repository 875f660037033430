"""SiamTrackers 248663f, nanotrack/models/model_builder.py 18-101: backbone, an idle neck, ban_head; losses in forward."""

import torch.nn.functional as F
from torch import nn

from nanotrack.core.config import cfg
from nanotrack.models.backbone import get_backbone
from nanotrack.models.head import get_ban_head


class ModelBuilder(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = get_backbone(cfg.BACKBONE.TYPE, **cfg.BACKBONE.KWARGS)
        if cfg.ADJUST.ADJUST:
            self.neck = nn.Conv2d(cfg.ADJUST.KWARGS.in_channels, cfg.ADJUST.KWARGS.out_channels, 1)
        self.ban_head = get_ban_head(cfg.BAN.TYPE, **cfg.BAN.KWARGS)

    def template(self, z):
        self.zf = self.backbone(z)

    def track(self, x):
        cls, loc = self.ban_head(self.zf, self.backbone(x))
        return {"cls": cls, "loc": loc}

    def forward(self, data):
        z, x = data["template"].cuda(), data["search"].cuda()
        cls, loc = self.ban_head(self.backbone(z), self.backbone(x))
        loss = F.cross_entropy(cls, data["label_cls"].cuda()) + (loc - data["label_loc"].cuda()).abs().mean()
        return {"total_loss": loss}
