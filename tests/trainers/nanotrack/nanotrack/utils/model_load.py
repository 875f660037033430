"""SiamTrackers 248663f, nanotrack/utils/model_load.py 14-72: loads what matches, asks only that something does."""

import torch


def load_pretrain(model, pretrained_path):
    state = torch.load(pretrained_path, map_location=lambda storage, loc: storage)
    state = state.get("state_dict", state)
    used = set(model.state_dict()) & set(state)
    assert used, "load NONE from pretrained checkpoint"
    model.load_state_dict(state, strict=False)
    return model


def restore_from(model, optimizer, ckpt_path):
    device = torch.cuda.current_device()
    ckpt = torch.load(ckpt_path, map_location=lambda storage, loc: storage.cuda(device))
    model.load_state_dict(ckpt["state_dict"], strict=False)
    optimizer.load_state_dict(ckpt["optimizer"])
    return model, optimizer, ckpt["epoch"]
