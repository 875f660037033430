"""STVIR/pysot d04028f, pysot/utils/model_load.py 47-72: loads to the current CUDA device, what matches, non-strict."""

import torch


def load_pretrain(model, pretrained_path):
    device = torch.cuda.current_device()
    state = torch.load(pretrained_path, map_location=lambda storage, loc: storage.cuda(device))
    state = state.get("state_dict", state)
    assert set(model.state_dict()) & set(state), "load NONE from pretrained checkpoint"
    model.load_state_dict(state, strict=False)
    return model


def restore_from(model, optimizer, ckpt_path):
    device = torch.cuda.current_device()
    ckpt = torch.load(ckpt_path, map_location=lambda storage, loc: storage.cuda(device))
    model.load_state_dict(ckpt["state_dict"], strict=False)
    optimizer.load_state_dict(ckpt["optimizer"])
    return model, optimizer, ckpt["epoch"]
