"""SiamTrackers 248663f, nanotrack/utils/lr_scheduler.py: step(epoch)."""


class Scheduler:
    def step(self, epoch=None):
        self.epoch = epoch


def build_lr_scheduler(optimizer, epochs=50):
    return Scheduler()
