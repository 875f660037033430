"""researchmm/TracKit e351e5b, lib/models/connect.py: AdjustLayer (106-124) crops 4 a side below 20; box_tower."""

import torch.nn.functional as F
from torch import nn


class AdjustLayer(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.downsample = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, x, crop=False):
        x = self.downsample(x)
        return (x, x[:, :, 4:-4, 4:-4]) if crop else x


class box_tower(nn.Module):
    def __init__(self, inchannels=512, outchannels=256, towernum=1):
        super().__init__()
        self.enc = nn.Conv2d(inchannels, 8, 3)
        self.box, self.cls = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 1, 1)

    def forward(self, search, kernel):
        z, x = self.enc(kernel), self.enc(search)
        b, c = z.shape[:2]
        corr = F.conv2d(x.reshape(1, b * c, *x.shape[2:]), z.reshape(b * c, 1, *z.shape[2:]), groups=b * c)
        corr = corr.view(b, c, *corr.shape[2:])
        return self.box(corr), self.cls(corr), corr, corr


class AlignHead(nn.Module):
    """Needs the compiled DeformConv, which is not here."""
