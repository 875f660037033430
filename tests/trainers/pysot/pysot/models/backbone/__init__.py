"""STVIR/pysot d04028f, pysot/models/backbone/__init__.py 12-23: a dict by name, called with KWARGS."""

BACKBONES = {}


def get_backbone(name, **kwargs):
    return BACKBONES[name](**kwargs)
