"""MegviiDetection/video_analyst f4d1bcc: engine/trainer/trainer_base.py (snapshots, resume) and trainer_impl/regular_trainer.py
(the losses are in the progress bar alone, which goes to stderr)."""

import os
import os.path as osp
from collections import Mapping, OrderedDict

import torch
from tqdm import tqdm

from videoanalyst.model.backbone.backbone_base import Registry

TRACK_TRAINERS = Registry()


@TRACK_TRAINERS.register
class RegularTrainer:
    def __init__(self, optimizer, dataloader, monitors=[]):
        self._hyper_params = {"exp_name": "default_training", "exp_save": "snapshots", "minibatch": 1, "snapshot": ""}
        self._state = {"epoch": -1, "initialized": False, "snapshot_file": ""}
        self._model, self._optimizer = optimizer.model, optimizer
        self._losses = optimizer.model.loss
        self._dataloader = iter(dataloader)

    def update_params(self):
        hps = self._hyper_params
        assert isinstance(hps, Mapping)
        hps["num_iterations"] = hps["nr_image_per_epoch"] // hps["minibatch"]
        self._state["snapshot_dir"] = osp.join(hps["exp_save"], hps["exp_name"])

    def set_device(self, devs):
        self._state["devices"] = [torch.device(dev) for dev in devs]

    def is_completed(self):
        return self._state["epoch"] + 1 >= self._hyper_params["max_epoch"]

    def resume(self, resume):
        self._state["snapshot_file"] = resume

    def load_snapshot(self):
        if osp.exists(self._state["snapshot_file"]):
            snapshot = torch.load(self._state["snapshot_file"], map_location=self._state["devices"][0])
            self._model.load_state_dict(snapshot["model_state_dict"])
            self._optimizer.load_state_dict(snapshot["optimizer_state_dict"])
            self._state["epoch"] = snapshot["epoch"]

    def train(self):
        if not self._state["initialized"]:
            self._model.train()
            self.load_snapshot()
        self._state["initialized"] = True
        self._state["epoch"] += 1
        epoch = self._state["epoch"]
        self._optimizer.modify_grad(epoch)
        pbar = tqdm(range(self._hyper_params["num_iterations"]))
        for iteration, _ in enumerate(pbar):
            data = {k: v.to(self._state["devices"][0]) for k, v in next(self._dataloader).items()}
            info = self._optimizer.schedule(epoch, iteration)
            self._optimizer.zero_grad()
            found = self._model(data)
            losses = OrderedDict((name, loss(found, data)[0]) for name, loss in self._losses.items())
            sum(losses.values()).backward()
            self._optimizer.modify_grad(epoch, iteration)
            self._optimizer.step()
            text = "epoch %d, " % epoch + "".join("%s: %.1e, " % item for item in info.items())
            pbar.set_description(
                text + "".join("%s: %.3f, " % (k, v.item()) for k, v in losses.items()) + " max mem: 0.0M"
            )

    def save_snapshot(self, model_param_only=False):
        epoch, folder = self._state["epoch"], self._state["snapshot_dir"]
        os.makedirs(folder, exist_ok=True)
        state = {"epoch": epoch, "model_state_dict": self._model.state_dict()}
        if not model_param_only:
            state["optimizer_state_dict"] = self._optimizer.state_dict()
        torch.save(state, osp.join(folder, "final_model.pkl" if model_param_only else "epoch-{}.pkl".format(epoch)))
