"""STVIR/pysot d04028f: model_builder.py 18-115, neck/neck.py 11-52 (a tensor for one tap, a list for several; what is
narrower than 20 is cropped), head/rpn.py 54-131 (3x3 unpadded, then depthwise correlation)."""

import torch.nn.functional as F
from torch import nn

from pysot.core.config import cfg
from pysot.models.backbone import get_backbone


class AdjustAllLayer(nn.Module):
    def __init__(self, in_channels, out_channels, center_size=7):
        super().__init__()
        self.num, self.center_size = len(out_channels), center_size
        self.down = nn.ModuleList(nn.Conv2d(i, 8, 1, bias=False) for i in in_channels)  # 256 there

    def one(self, layer, x):
        x = layer(x)
        if x.size(3) < 20:
            left = (x.size(3) - self.center_size) // 2
            x = x[:, :, left : left + self.center_size, left : left + self.center_size]
        return x

    def forward(self, features):
        if self.num == 1:
            return self.one(self.down[0], features)
        assert isinstance(features, list)
        return [self.one(layer, x) for layer, x in zip(self.down, features, strict=True)]


class Rpn(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.z, self.x, self.out = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, out, 1)

    def forward(self, z, x):
        z, x = self.z(z), self.x(x)
        b, c = z.shape[:2]
        corr = F.conv2d(x.reshape(1, b * c, *x.shape[2:]), z.reshape(b * c, 1, *z.shape[2:]), groups=b * c)
        return self.out(corr.view(b, c, *corr.shape[2:]))


class ModelBuilder(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = get_backbone(cfg.BACKBONE.TYPE, **cfg.BACKBONE.KWARGS)
        self.neck = AdjustAllLayer(**cfg.ADJUST.KWARGS)
        self.rpn_head = nn.ModuleDict({"cls": Rpn(2 * cfg.ANCHOR.ANCHOR_NUM), "loc": Rpn(4 * cfg.ANCHOR.ANCHOR_NUM)})
        assert ("DepthwiseRPN" if self.neck.num == 1 else "MultiRPN") == cfg.RPN.TYPE

    def heads(self, z, x):
        pairs = [(z, x)] if self.neck.num == 1 else list(zip(z, x, strict=True))
        return [sum(self.rpn_head[name](a, b) for a, b in pairs) / len(pairs) for name in ("cls", "loc")]

    def template(self, z):
        self.zf = self.neck(self.backbone(z))

    def track(self, x):
        cls, loc = self.heads(self.zf, self.neck(self.backbone(x)))
        return {"cls": cls, "loc": loc, "mask": None}

    def forward(self, data):
        z, x = (self.neck(self.backbone(data[k].cuda())) for k in ("template", "search"))
        cls, loc = self.heads(z, x)
        b, _, h, w = cls.shape
        label, box = data["label_cls"].cuda(), data["label_loc"].cuda()
        loss = F.cross_entropy(cls.view(b, 2, -1, h, w), label)
        return {"total_loss": loss + ((loc.view(b, 4, -1, h, w) - box).abs().sum(1) * data["label_loc_weight"]).mean()}
