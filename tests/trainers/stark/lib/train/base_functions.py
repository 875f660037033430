"""researchmm/Stark 162e1d3, lib/train/base_functions.py: get_optimizer_scheduler, two groups by "backbone" in names."""

import torch


def get_optimizer_scheduler(net, cfg):
    groups = [
        {"params": [p for n, p in net.named_parameters() if "backbone" not in n and p.requires_grad]},
        {
            "params": [p for n, p in net.named_parameters() if "backbone" in n and p.requires_grad],
            "lr": cfg.TRAIN.LR * cfg.TRAIN.BACKBONE_MULTIPLIER,
        },
    ]
    return torch.optim.AdamW(groups, lr=cfg.TRAIN.LR, weight_decay=cfg.TRAIN.WEIGHT_DECAY), None
