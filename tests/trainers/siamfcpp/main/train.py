"""MegviiDetection/video_analyst f4d1bcc, main/train.py 46-56: -cfg/--config is merged into the root configuration."""

import argparse

from videoanalyst.config.config import cfg, specify_task

parser = argparse.ArgumentParser()
parser.add_argument("-cfg", "--config", type=str)
cfg.merge_from_file(parser.parse_args().config)
task, task_cfg = specify_task(cfg.train)
print("task", task, "weights", task_cfg.model.backbone[task_cfg.model.backbone.name].pretrain_model_path)
