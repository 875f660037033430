"""researchmm/TracKit e351e5b, lib/utils/utils.py 657-672: load_pretrain with whole-model keys, to the CUDA device."""

import torch


def load_pretrain(model, pretrained_path, print_unuse=True):
    device = torch.cuda.current_device()
    state = torch.load(pretrained_path, map_location=lambda storage, loc: storage.cuda(device))
    assert set(state) & set(model.state_dict()), "load NONE from pretrained checkpoint"
    model.load_state_dict(state, strict=False)
    return model


class Scheduler:
    def step(self, epoch=None):
        self.epoch = epoch


def build_lr_scheduler(optimizer, cfg, epochs=50):
    return Scheduler()
