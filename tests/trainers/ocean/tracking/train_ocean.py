"""researchmm/TracKit e351e5b, tracking/train_ocean.py 85-145 (build_opt_lr), 168-270: ./pretrain, epochs, checkpoints."""

import argparse
import os

import models.models as models
import torch
import torch.nn as nn
from core.config import config, update_config
from core.function import ocean_train
from dataset.ocean import OceanDataset
from torch.utils.data import DataLoader
from utils.utils import build_lr_scheduler, create_logger, load_pretrain, restore_from, save_model


def build_opt_lr(cfg, model, current_epoch=0):
    learns = current_epoch >= cfg.OCEAN.TRAIN.UNFIX_EPOCH
    for param in model.features.features.parameters():
        param.requires_grad = False
    for m in model.features.features.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    if learns:
        for layer in cfg.OCEAN.TRAIN.TRAINABLE_LAYER:
            for param in getattr(model.features.features, layer).parameters():
                param.requires_grad = True
            for m in getattr(model.features.features, layer).modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.train()
    params = [p for p in model.features.features.parameters() if p.requires_grad]
    groups = [{"params": params, "lr": 0.001}] if params else []
    groups += [{"params": model.neck.parameters()}, {"params": model.connect_model.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.001)
    return optimizer, build_lr_scheduler(optimizer, cfg, epochs=cfg.OCEAN.TRAIN.END_EPOCH)


class SummaryWriter:
    def add_scalar(self, *args):
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg", type=str)
    update_config(parser.parse_args().cfg)
    logger, _, _ = create_logger(config, "OCEAN", "train")
    writer_dict = {"writer": SummaryWriter(), "train_global_steps": 0}
    os.makedirs("./pretrain", exist_ok=True)
    train = config.OCEAN.TRAIN
    path = f"./pretrain/{train.PRETRAIN}"
    print("model", models.__dict__[train.MODEL].__name__, "weights there", os.path.isfile(path))
    model = load_pretrain(models.__dict__[train.MODEL](align=train.ALIGN).cuda(), path)
    optimizer, lr_scheduler = build_opt_lr(
        config, model, 0 if train.START_EPOCH == train.UNFIX_EPOCH else train.START_EPOCH
    )
    if train.RESUME and train.START_EPOCH != 0:
        model, optimizer, _, _ = restore_from(model, optimizer, train.RESUME)
    gpus = [int(i) for i in config.GPUS.split(",")]
    device = torch.device("cuda:{}".format(gpus[0]) if torch.cuda.is_available() else "cpu")
    model = torch.nn.DataParallel(model, device_ids=gpus).to(device)
    for epoch in range(train.START_EPOCH, train.END_EPOCH):
        loader = DataLoader(OceanDataset(config), batch_size=train.BATCH, num_workers=config.WORKERS, drop_last=True)
        if epoch == train.UNFIX_EPOCH:
            logger.info("training backbone")
            optimizer, lr_scheduler = build_opt_lr(config, model.module, epoch)
        lr_scheduler.step(epoch)
        rate = lr_scheduler.get_cur_lr()
        model, writer_dict = ocean_train(
            loader, model, optimizer, epoch + 1, rate, config, writer_dict, logger, device=device
        )
        save_model(model, epoch, optimizer, train.MODEL, config, isbest=False)


if __name__ == "__main__":
    main()
