"""researchmm/Stark 162e1d3, lib/train/trainers: base_trainer.py (54-185: a crash is printed, and the training ends as if
done; load_checkpoint) and ltr_trainer.py (57-154: a line is printed, and appended to the log)."""

import glob
import os
import traceback

import torch


class LTRTrainer:
    def __init__(self, actor, loaders, optimizer, settings, lr_scheduler=None):
        self.actor, self.loaders, self.optimizer, self.lr_scheduler = actor, loaders, optimizer, lr_scheduler
        self.settings, self.device, self.epoch, self.stats = settings, settings.device, 0, {}
        self._checkpoint_dir = os.path.join(settings.save_dir, "checkpoints")
        os.makedirs(os.path.join(settings.env.tensorboard_dir, settings.project_path), exist_ok=True)
        os.makedirs(self._checkpoint_dir, exist_ok=True)
        actor.net.to(self.device)

    def train(self, max_epochs, load_latest=False, fail_safe=True):
        try:
            if load_latest:
                self.load_checkpoint()
            for epoch in range(self.epoch + 1, max_epochs + 1):
                self.epoch = epoch
                self.cycle_dataset(self.loaders[0])
                self.save_checkpoint()
        except Exception:
            print("Training crashed at epoch {}".format(self.epoch))
            print(traceback.format_exc())
            if not fail_safe:
                raise
        print("Finished training!")

    def cycle_dataset(self, loader):
        self.actor.net.train()
        total = 0
        for i, data in enumerate(loader, 1):
            loss = self.actor([t.to(self.device) for t in data])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
            if i % self.settings.print_interval == 0 or i == len(loader):
                text = "[train: %d, %d / %d] FPS: 1.0 (1.0)  ,  Loss/total: %.5f  ,  IoU: 0.1" % (
                    self.epoch,
                    i,
                    len(loader),
                    total / i,
                )
                print(text)
                with open(self.settings.log_file, "a") as f:
                    f.write(text + "\n")

    def save_checkpoint(self):
        net = self.actor.net
        state = {
            "epoch": self.epoch,
            "net_type": type(net).__name__,
            "net": net.state_dict(),
            "settings": self.settings,
        }
        state.update(optimizer=self.optimizer.state_dict(), stats=self.stats, constructor=None, net_info=None)
        directory = "{}/{}".format(self._checkpoint_dir, self.settings.project_path)
        os.makedirs(directory, exist_ok=True)
        torch.save(state, "{}/{}_ep{:04d}.pth.tar".format(directory, type(net).__name__, self.epoch))

    def load_checkpoint(self, checkpoint=None):
        net = self.actor.net
        if checkpoint is None:
            found = "{}/{}/{}_ep*.pth.tar".format(self._checkpoint_dir, self.settings.project_path, type(net).__name__)
            found = sorted(glob.glob(found))
            if not found:
                return
            checkpoint = found[-1]
        state = torch.load(checkpoint, map_location="cpu")
        assert type(net).__name__ == state["net_type"], "Network is not of correct type."
        net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]
