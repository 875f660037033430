"""researchmm/Stark 162e1d3, lib/train/run_training.py 26-81, 88-123: experiments/SCRIPT/CONFIG.yaml of the checkout; the
script is imported as it runs; cuda device 0."""

import argparse
import importlib
import os

import _init_paths
import lib.train.admin.settings as ws_settings
import torch


def main():
    parser = argparse.ArgumentParser()
    for name in ("--script", "--config", "--save_dir"):
        parser.add_argument(name, type=str)
    parser.add_argument("--local_rank", default=-1, type=int)
    args = parser.parse_args()
    torch.cuda.set_device(0)
    settings = ws_settings.Settings()
    settings.script_name, settings.config_name = args.script, args.config
    settings.project_path = "train/{}/{}".format(args.script, args.config)
    settings.local_rank = args.local_rank
    settings.save_dir = os.path.abspath(args.save_dir)
    prj_dir = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
    settings.cfg_file = os.path.join(prj_dir, "experiments/%s/%s.yaml" % (args.script, args.config))
    importlib.import_module("lib.train.train_script").run(settings)


if __name__ == "__main__":
    main()
