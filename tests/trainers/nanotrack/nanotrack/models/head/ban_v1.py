"""SiamTrackers 248663f, nanotrack/models/head/ban_v1.py: pixel-wise correlation into 64 channels (CAModule(64))."""

import torch
from torch import nn


class UPChannelBAN(nn.Module):
    pass


class DepthwiseBAN(nn.Module):
    kernel = 1

    def __init__(self, in_channels=64, out_channels=64, weighted=False):
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(64, 8, self.kernel), nn.BatchNorm2d(8), nn.ReLU())
        self.cls, self.loc = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, z, x):
        b, c, h, w = x.shape
        corr = torch.matmul(z.view(b, c, -1).transpose(1, 2), x.view(b, c, -1)).view(b, -1, h, w)
        corr = self.mix(corr)  # an error unless the template has 8x8 units
        return self.cls(corr), torch.exp(self.loc(corr))
