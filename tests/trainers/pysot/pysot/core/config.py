"""STVIR/pysot d04028f, pysot/core/config.py: a yacs node; KWARGS and DATASET take new keys."""

from yacs.config import CfgNode as CN

cfg = CN()
cfg.META_ARC = ""
cfg.BACKBONE = CN({"TYPE": "", "PRETRAINED": "", "TRAIN_LAYERS": [], "TRAIN_EPOCH": 10, "LAYERS_LR": 0.1})
cfg.BACKBONE.KWARGS = CN(new_allowed=True)
cfg.ADJUST = CN({"ADJUST": True, "TYPE": ""})
cfg.ADJUST.KWARGS = CN(new_allowed=True)
cfg.RPN = CN({"TYPE": ""})
cfg.RPN.KWARGS = CN(new_allowed=True)
cfg.MASK = CN({"MASK": False})
cfg.ANCHOR = CN({"STRIDE": 8, "RATIOS": [], "SCALES": [], "ANCHOR_NUM": 5})
cfg.TRACK = CN(new_allowed=True)
cfg.TRAIN = CN(
    {
        "EXEMPLAR_SIZE": 127,
        "SEARCH_SIZE": 255,
        "BASE_SIZE": 8,
        "OUTPUT_SIZE": 25,
        "BASE_LR": 0.005,
        "START_EPOCH": 0,
        "RESUME": "",
        "PRINT_FREQ": 20,
        "GRAD_CLIP": 10.0,
        "BATCH_SIZE": 32,
        "NUM_WORKERS": 1,
        "LOG_DIR": "./logs",
        "SNAPSHOT_DIR": "./snapshot",
    },
    new_allowed=True,
)
cfg.DATASET = CN(new_allowed=True)
