"""researchmm/TracKit e351e5b, lib/core/config.py: dicts with attributes; update_config calls yaml.load without a Loader."""

import yaml


class Node(dict):
    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def node(value):
    return Node({k: node(v) for k, v in value.items()}) if isinstance(value, dict) else value


config = Node()


def update_config(config_file):
    """What stands under OCEAN goes to OCEAN where it is TRAIN or DATASET, else to the top."""
    with open(config_file) as f:
        new = node(yaml.load(f))
    config.OCEAN = Node()
    for key, value in new.OCEAN.items():
        if key in ("TRAIN", "TEST", "TUNE", "DATASET"):
            config.OCEAN[key] = value
        else:
            config[key] = value
