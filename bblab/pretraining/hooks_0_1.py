"""The hooks that a config.py of version 0.1 names: mmpretrain's own tool goes on training by it.

There each was a hook of its own, ordered by mmengine's priorities. Here each tells what it was given, and the first of
them has today's `Training` do their work. Schedules, averages and changes of size are mmengine's and mmpretrain's own
hooks there, which act before it at every point. Importing this module registers the names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS

from bblab.pretraining import hooks
from bblab.pretraining.hooks import STATE, Training


class Told(Hook):
    """A hook of version 0.1: what it was given."""

    priority = "VERY_LOW"

    def __init__(self, **given: Any) -> None:
        self.given = given

    def before_run(self, runner: Any) -> None:
        """The first one brings the hook that does the work of all; mmengine comes to it after those of its priority."""
        told = [hook for hook in runner.hooks if isinstance(hook, Told)]
        if told[0] is self and not any(isinstance(hook, Together) for hook in runner.hooks):
            runner.register_hook(Together({type(hook): hook.given for hook in told}))


@HOOKS.register_module()
class EpochSeed(Told):
    """Every step's random numbers begin from (seed, epoch, step, rank)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)


@HOOKS.register_module()
class StopOnBadLoss(Told):
    """Ends the run where the loss is NaN or infinite. `interval`: steps between looks."""

    def __init__(self, interval: int = 1) -> None:
        super().__init__(interval=interval)


@HOOKS.register_module()
class Record(Told):
    """record.jsonl and progress.json in the work_dir. ramp: (epoch counted from 0, training px), for the record."""

    def __init__(self, ramp: Sequence[Sequence[int]] = ((0, 0),), bad_list: str | None = None) -> None:
        super().__init__(ramp=[(int(epoch), int(px)) for epoch, px in ramp], bad_list=bad_list)


@HOOKS.register_module()
class SurvivingCheckpoint(Told):
    """A checkpoint at every epoch's end, and inside it after `save_minutes` or when asked to stop."""

    def __init__(self, keep: int = 2, save_minutes: float = 0.0) -> None:
        super().__init__(keep=keep, save_minutes=save_minutes)


@HOOKS.register_module()
class StopAtGate(Told):
    """Ends the run where a gate is hit."""

    def __init__(self, gates: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(gates=gates)


class Together(Training):
    """Today's hook, doing what those of version 0.1 did that are there, and no more.

    given: the arguments by the hook's class. What is not named is not done, but for the record, which is always kept.
    """

    def __init__(self, given: Mapping[type, Mapping[str, Any]]) -> None:
        recorded, saved = given.get(Record, {}), given.get(SurvivingCheckpoint, {})
        super().__init__(
            seed=given.get(EpochSeed, {}).get("seed", 0),
            loss_interval=given.get(StopOnBadLoss, {}).get("interval", 1),
            gates=given.get(StopAtGate, {}).get("gates", ()),
            bad_list=recorded.get("bad_list"),
            **saved,
        )
        nothing: Any = Nothing()
        self.schedules = nothing  # mmengine's own hook steps them
        self.sizes = Named(recorded.get("ramp") or [(0, 0)])
        if EpochSeed not in given:
            self.seeds = nothing
        if StopOnBadLoss not in given:
            self.loss = nothing
        if SurvivingCheckpoint not in given:
            self.saving = nothing
        self.averaging: EMAHook | None = None

    def before_run(self, runner: Any) -> None:
        self.averaging = next((hook for hook in runner.hooks if isinstance(hook, EMAHook)), None)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint.setdefault(STATE, {})  # where another hook saves
        super().before_save_checkpoint(runner, checkpoint)

    def _kept(self, runner: Any) -> torch.nn.Module:
        net: torch.nn.Module = self.averaging.ema_model.module if self.averaging else super()._kept(runner)
        return net


class Named(hooks.Sizes):
    """The size of each epoch, for the record; mmpretrain's SwitchRecipeHook switches."""

    def __init__(self, ramp: Sequence[tuple[int, int]]) -> None:
        self.ramp = list(ramp)
        self.px = 0

    def before_train_epoch(self, runner: Any) -> None:
        self.px = next((px for epoch, px in reversed(self.ramp) if epoch <= runner.epoch), 0)


class Nothing:
    """A part that the configuration does not name: it does nothing at any point."""

    is_inside = is_part = False
    offset = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **more: None
