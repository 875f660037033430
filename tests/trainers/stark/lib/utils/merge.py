"""researchmm/Stark 162e1d3, lib/utils/merge.py 20-32: get_qkv."""

import torch


def get_qkv(inp_list):
    x = inp_list[-1]
    feat = torch.cat([i["feat"] for i in inp_list], dim=0)
    pos = torch.cat([i["pos"] for i in inp_list], dim=0)
    return x["feat"] + x["pos"], feat + pos, feat, torch.cat([i["mask"] for i in inp_list], dim=1)
