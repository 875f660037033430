"""MegviiDetection/video_analyst f4d1bcc, videoanalyst/model/module_base.py 26-95: hyper-parameters; what matches is loaded."""

from copy import deepcopy

import torch
from torch import nn


class ModuleBase(nn.Module):
    default_hyper_params = {"pretrain_model_path": ""}

    def __init__(self):
        super().__init__()
        self._hyper_params = deepcopy(self.default_hyper_params)

    def update_params(self):
        path = self._hyper_params["pretrain_model_path"]
        if path:
            self.load_state_dict(torch.load(path, map_location=torch.device("cpu")), strict=False)
