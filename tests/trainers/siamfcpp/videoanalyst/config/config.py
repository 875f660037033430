"""MegviiDetection/video_analyst f4d1bcc, videoanalyst/config/config.py: lists the backbones there are when imported."""

from yacs.config import CfgNode

from videoanalyst.model.backbone.backbone_base import TRACK_BACKBONES

cfg = CfgNode()
cfg.train = CfgNode()
cfg.train.track = CfgNode({"device": "cuda"}, new_allowed=True)
cfg.train.track.model = CfgNode(new_allowed=True)
cfg.train.track.model.backbone = CfgNode({"name": "unknown"})
for name, kind in TRACK_BACKBONES.items():
    cfg.train.track.model.backbone[name] = CfgNode(dict(kind.default_hyper_params))


def specify_task(root):
    return "track", root.track
