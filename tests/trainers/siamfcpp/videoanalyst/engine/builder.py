"""MegviiDetection/video_analyst f4d1bcc, engine/builder.py: the trainer by its name, with its hyper-parameters."""

from videoanalyst.engine.trainer.trainer_base import TRACK_TRAINERS


def build(task, cfg, engine_type, *args):
    trainer = TRACK_TRAINERS[cfg.name](*args)
    trainer._hyper_params.update(cfg[cfg.name])
    trainer.update_params()
    return trainer
