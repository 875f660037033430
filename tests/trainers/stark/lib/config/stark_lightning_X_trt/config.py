"""researchmm/Stark 162e1d3, lib/config/stark_lightning_X_trt/config.py: keys that it does not know are errors."""

import yaml


class Node(dict):
    __getattr__ = dict.__getitem__


KNOWN = {
    "DATA": "MAX_SAMPLE_INTERVAL MEAN STD SEARCH TEMPLATE TRAIN VAL",
    "MODEL": "BACKBONE HEAD_TYPE HIDDEN_DIM HEAD_DIM TRANSFORMER",
    "TRAIN": "AMP BACKBONE_MULTIPLIER BATCH_SIZE DEEP_SUPERVISION EPOCH FREEZE_BACKBONE_BN BACKBONE_TRAINED_LAYERS "
    "GIOU_WEIGHT GRAD_CLIP_NORM L1_WEIGHT LR LR_DROP_EPOCH NUM_WORKER OPTIMIZER PRINT_INTERVAL SCHEDULER "
    "VAL_EPOCH_INTERVAL WEIGHT_DECAY DISTILL",
    "TEST": "EPOCH SEARCH_FACTOR SEARCH_SIZE TEMPLATE_FACTOR TEMPLATE_SIZE",
}
cfg = Node()


def node(value):
    return Node({k: node(v) for k, v in value.items()}) if isinstance(value, dict) else value


def update_config_from_file(filename):
    with open(filename) as f:
        new = node(yaml.safe_load(f))
    for part, values in new.items():
        for key in values:
            if key not in KNOWN[part].split():
                raise ValueError(f"{key} not exist in config.py")
    cfg.update(new)
