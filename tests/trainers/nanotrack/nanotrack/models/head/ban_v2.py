"""SiamTrackers 248663f, nanotrack/models/head/ban_v2.py: 48 channels are written in; in_channels is ignored there."""

from nanotrack.models.head.ban_v1 import DepthwiseBAN, UPChannelBAN

__all__ = ["DepthwiseBAN", "UPChannelBAN"]
