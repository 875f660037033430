"""SiamTrackers 248663f, nanotrack/models/head/ban_v3.py 132-155: a 2x2 convolution behind the correlation, 15x15."""

from torch import nn

import nanotrack.models.head.ban_v1 as ban_v1


class UPChannelBAN(nn.Module):
    pass


class DepthwiseBAN(ban_v1.DepthwiseBAN):
    kernel = 2
