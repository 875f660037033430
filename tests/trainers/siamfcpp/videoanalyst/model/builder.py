"""MegviiDetection/video_analyst f4d1bcc: model/backbone/builder.py 12-50 and siamese_track.py 40-85, 213-231 (neck and head
as wide as head_width; 3x3 unpadded, correlation, three 3x3 unpadded)."""

import torch.nn.functional as F
from torch import nn

from videoanalyst.model.backbone.backbone_base import TRACK_BACKBONES


class Loss(nn.Module):
    def __init__(self, key):
        super().__init__()
        self.key = key

    def forward(self, found, data):
        return (found[f"{self.key}_pred"] - data[f"{self.key}_gt"]).abs().mean() / 100, {}


class SiamTrack(nn.Module):
    def __init__(self, backbone, width):
        super().__init__()
        self.basemodel = backbone
        self.z, self.x = nn.Conv2d(width, width, 3), nn.Conv2d(width, width, 3)
        self.head = nn.Sequential(*(nn.Conv2d(width, width, 3) for _ in range(3)))
        self.out = nn.ModuleDict(
            {"cls": nn.Conv2d(width, 1, 1), "ctr": nn.Conv2d(width, 1, 1), "box": nn.Conv2d(width, 4, 1)}
        )
        self.loss = {name: Loss(name) for name in self.out}

    def forward(self, data, phase=None):
        z, x = self.z(self.basemodel(data["im_z"])), self.x(self.basemodel(data["im_x"]))
        b, c = z.shape[:2]
        corr = F.conv2d(x.reshape(1, b * c, *x.shape[2:]), z.reshape(b * c, 1, *z.shape[2:]), groups=b * c)
        feat = self.head(corr.view(b, c, *corr.shape[2:]))
        return {f"{k}_pred": layer(feat).flatten(2).transpose(1, 2) for k, layer in self.out.items()}


def build(task, cfg):
    backbone = TRACK_BACKBONES[cfg.backbone.name]()
    backbone._hyper_params.update(cfg.backbone[cfg.backbone.name])
    backbone.update_params()
    assert cfg.task_head.DenseboxHead.head_width == cfg.task_model.SiamTrack.head_width
    return SiamTrack(backbone, cfg.task_model.SiamTrack.head_width)
