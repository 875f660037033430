"""researchmm/Stark 162e1d3, lib/train/run_training.py 60-81, 88-123: experiments/SCRIPT/CONFIG.yaml must be there."""

import argparse
import os

parser = argparse.ArgumentParser()
for name in ("--script", "--config", "--save_dir"):
    parser.add_argument(name, type=str)
args = parser.parse_args()
root = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
path = os.path.join(root, f"experiments/{args.script}/{args.config}.yaml")
print("config there", os.path.isfile(path))
