"""SiamTrackers 248663f, nanotrack/utils/model_load.py 14-72: loads what matches, asks only that something does."""

import torch


def load_pretrain(model, pretrained_path):
    state = torch.load(pretrained_path, map_location=lambda storage, loc: storage)
    state = state.get("state_dict", state)
    used = set(model.state_dict()) & set(state)
    assert used, "load NONE from pretrained checkpoint"
    model.load_state_dict(state, strict=False)
    return model
