"""SiamTrackers 248663f, nanotrack/models/head/__init__.py 6-22: the version is chosen by an import."""

from nanotrack.models.head.ban_v3 import DepthwiseBAN, UPChannelBAN

BANS = {"UPChannelBAN": UPChannelBAN, "DepthwiseBAN": DepthwiseBAN}


def get_ban_head(name, **kwargs):
    return BANS[name](**kwargs)
