"""SiamTrackers 248663f, nanotrack/models/backbone/__init__.py 10-16: a dict by name, called with KWARGS."""

BACKBONES = {}


def get_backbone(name, **kwargs):
    return BACKBONES[name](**kwargs)
