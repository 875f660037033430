"""researchmm/Stark 162e1d3, lib/models/stark/backbone_X.py: Backbone is a global name of the module (78-106); what is
trained goes by words in parameters' names (141-151)."""


class Backbone:
    def __init__(self, name, dilation, freeze_bn, last_stage_block=14):
        raise ValueError("Unsupported net type")


def build_backbone_x(cfg, phase="train"):
    backbone = Backbone(
        cfg.MODEL.BACKBONE.TYPE,
        cfg.MODEL.BACKBONE.DILATION,
        cfg.TRAIN.FREEZE_BACKBONE_BN,
        cfg.MODEL.BACKBONE.LAST_STAGE_BLOCK,
    )
    for name, parameter in backbone.body.named_parameters():
        parameter.requires_grad_(any(word in name for word in cfg.TRAIN.BACKBONE_TRAINED_LAYERS))
    return backbone
