"""researchmm/Stark 162e1d3, lib/train/train_script.py 22-107: the configuration's file must be there; cuda:0 is written in."""

import importlib
import os

import torch
from torch.nn.functional import l1_loss

from lib.models.stark import build_stark_lightning_x_trt
from lib.train.data.got10k import Got10k
from lib.train.trainers import LTRTrainer
from lib.utils.merge import get_qkv

from .base_functions import *


class Actor:
    def __init__(self, net):
        self.net = net

    def __call__(self, data):
        found = []
        for image, name in ((data[0], "template0"), (data[1], "search")):
            mask = torch.zeros(len(image), *image.shape[2:], dtype=torch.bool)
            found.append(self.net(img=image, mask=mask, mode="backbone", zx=name))
        q, k, v, mask = get_qkv(found)
        boxes = self.net(q=q, k=k, v=v, key_padding_mask=mask, mode="transformer")[0]["pred_boxes"]
        return l1_loss(boxes[:, 0], data[2])


def run(settings):
    if not os.path.exists(settings.cfg_file):
        raise ValueError("%s doesn't exist." % settings.cfg_file)
    config_module = importlib.import_module("lib.config.%s.config" % settings.script_name)
    cfg = config_module.cfg
    config_module.update_config_from_file(settings.cfg_file)
    settings.print_interval = cfg.TRAIN.PRINT_INTERVAL
    log_dir = os.path.join(settings.save_dir, "logs")
    os.makedirs(log_dir, exist_ok=True)
    settings.log_file = os.path.join(log_dir, "%s-%s.log" % (settings.script_name, settings.config_name))
    data = Got10k(settings.env.got10k_dir, cfg, cfg.DATA.TRAIN.SAMPLE_PER_EPOCH)
    loader = torch.utils.data.DataLoader(
        data, batch_size=cfg.TRAIN.BATCH_SIZE, num_workers=cfg.TRAIN.NUM_WORKER, drop_last=True
    )
    net = build_stark_lightning_x_trt(cfg, phase="train")
    net.cuda()
    settings.device = torch.device("cuda:0")
    optimizer, lr_scheduler = get_optimizer_scheduler(net, cfg)
    trainer = LTRTrainer(Actor(net), [loader], optimizer, settings, lr_scheduler)
    trainer.train(cfg.TRAIN.EPOCH, load_latest=True, fail_safe=True)
