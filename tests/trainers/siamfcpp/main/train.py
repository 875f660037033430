"""MegviiDetection/video_analyst f4d1bcc, main/train.py 26-108: -cfg/--config is merged into the root configuration; CUDA unless the
configuration says another device."""

import argparse
import os.path as osp

import torch
from videoanalyst.config.config import cfg as root_cfg
from videoanalyst.config.config import specify_task
from videoanalyst.data import builder as dataloader_builder
from videoanalyst.engine import builder as engine_builder
from videoanalyst.model import builder as model_builder
from videoanalyst.optim import builder as optim_builder

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-cfg", "--config", type=str)
    parser.add_argument("-r", "--resume", default="")
    args = parser.parse_args()
    root_cfg.merge_from_file(osp.realpath(args.config))
    task, task_cfg = specify_task(root_cfg.train)
    print("task", task, "weights", task_cfg.model.backbone[task_cfg.model.backbone.name].pretrain_model_path)
    if task_cfg.device == "cuda":
        assert torch.cuda.is_available(), "please check your devices"
    model = model_builder.build(task, task_cfg.model)
    dataloader = dataloader_builder.build(task, task_cfg.data)
    optimizer = optim_builder.build(task, task_cfg.optim, model)
    trainer = engine_builder.build(task, task_cfg.trainer, "trainer", optimizer, dataloader)
    trainer.set_device(["cpu" if task_cfg.device == "cpu" else "cuda:0"])
    trainer.resume(args.resume)
    while not trainer.is_completed():
        trainer.train()
        trainer.save_snapshot()
    trainer.save_snapshot(model_param_only=True)
