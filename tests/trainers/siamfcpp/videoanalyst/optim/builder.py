"""MegviiDetection/video_analyst f4d1bcc: optim/builder.py 11-36, grad_modifier's DynamicFreezer (28-48) and freeze.py 94-103:
parameters by regular expression, norms untouched."""

import json
import re

import torch


class Optimizer:
    def __init__(self, cfg, model):
        self.model = model
        self.schedule_of = [json.loads(text) for text in cfg.grad_modifier.DynamicFreezer.schedule]
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def modify_grad(self, epoch, iteration=-1):
        for action in self.schedule_of:
            learns = (epoch >= action["epoch"]) != action["freezed"]
            for name, p in self.model.named_parameters():
                if re.search(action["regex"], name):
                    p.requires_grad = learns

    def schedule(self, epoch, iteration):
        return {"lr": 0.001}

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)

    def zero_grad(self):
        self.optimizer.zero_grad()

    def step(self):
        self.optimizer.step()


def build(task, cfg, model):
    return Optimizer(cfg, model)
