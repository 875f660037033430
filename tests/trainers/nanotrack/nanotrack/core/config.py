"""HonglinChu/SiamTrackers 248663f, NanoTrack/nanotrack/core/config.py: a yacs node; KWARGS take new keys."""

from yacs.config import CfgNode as CN

cfg = CN()
cfg.META_ARC = ""
cfg.CUDA = True
cfg.BACKBONE = CN({"TYPE": "", "PRETRAINED": "", "TRAIN_LAYERS": [], "TRAIN_EPOCH": 10, "LAYERS_LR": 0.1})
cfg.BACKBONE.KWARGS = CN(new_allowed=True)
cfg.ADJUST = CN({"ADJUST": True, "TYPE": ""})
cfg.ADJUST.KWARGS = CN(new_allowed=True)
cfg.BAN = CN({"BAN": False, "TYPE": ""})
cfg.BAN.KWARGS = CN(new_allowed=True)
cfg.POINT = CN({"STRIDE": 8})
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
