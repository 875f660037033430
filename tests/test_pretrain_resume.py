"""A run that is stopped anywhere ends with the bits of the one that was not, whatever it is made of."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmpretrain")

import torch

from bblab import spec as language
from bblab.lab import Lab
from bblab.pretraining import checkpoints, data, hooks, record, run
from bblab.pretraining.config import Plan, Settings, plain_spec, with_head
from bblab.pretraining.gates import Gate
from bblab.pretraining.recipe import Recipe
from bblab.pretraining.record import History

NET = """
stages:
  a: {block: conv, out: 8, stride: 2}
  b: {block: conv, out: 16, stride: 2}
head: {block: classifier, dropout: 0.1}
"""
RECIPE = Recipe(
    name="tiny", about="for tests", source="chosen by us", epochs=3, optimizer="sgd", lr=0.05, base_batch=16,
    schedule="cosine", warmup_epochs=1, weight_decay=1e-3, decays_norms=False, resolution_px=16, val_resolution_px=16,
    val_crop_ratio=1.0, augment=({"step": "random_resized_crop", "scale": (0.5, 1.0), "ratio": (0.75, 1.333)},),
)  # fmt: skip
RAMP = {"resolution_px": 8, "resolution_ramp": ((1, 12), (2, 16))}
MIXED = {"mixup": 0.2, "cutmix": 1.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "accumulate": {"accumulation": 3},  # 4 steps an epoch: one gradient waits at its end
    "average": {"ema_momentum": 0.1},
    "average of accumulated": {"ema_momentum": 0.1, "accumulation": 3},
    "sizes": RAMP,
    "mixed": MIXED,
    "mixed by workers": {**MIXED, "workers": 2},
    "precise": {"precise_images": 48},
    "precise average": {"precise_images": 48, "ema_momentum": 0.1},
    "last batch": {"batch_size": 24, "keeps_last": True},
    "repeats": {"repeated_augment": 2, "augment": (*RECIPE.augment, {"step": "rand_augment", "ops": 2,
                                                                       "magnitude": 6, "magnitude_std": 0.5})},
    "adaptive": {"optimizer": "lamb", "clip_grad_norm": 1.0, "loss": "bce"},
    "all": {**RAMP, **MIXED, "accumulation": 3, "ema_momentum": 0.1, "precise_images": 48, "workers": 2,
            "final_weight_decay": 1e-4, "batch_size": 24, "keeps_last": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Four classes of digits, 16 training and 8 validation images each; steps of 16."""
    source = data.digits(tmp_path_factory.mktemp("digits"))
    folder = tmp_path_factory.mktemp("few")
    for split, count in (("train", 16), ("val", 8)):
        for name in sorted(p.name for p in (source / split).iterdir())[:4]:
            (folder / split / name).mkdir(parents=True)
            for image in sorted((source / split / name).iterdir())[:count]:
                shutil.copy(image, folder / split / name)
    lab = Lab(tmp_path_factory.mktemp("planning"))
    spec = language.parse(NET, lab.kinds, name="tiny")
    trained, _ = with_head(spec, 4)
    settings = Settings(batch_size=16, save_minutes=0.0, workers=0)
    return Plan(
        "tiny", plain_spec(trained), spec.spec_id, RECIPE, data.fingerprint(folder).to_json(), settings,
        code_version="test",
    )  # fmt: skip


def changed(plan: Plan, **options: Any) -> Plan:
    recipe = {k: v for k, v in options.items() if k in Recipe.__dataclass_fields__}
    settings = {k: v for k, v in options.items() if k in Settings.__dataclass_fields__}
    rest = {k: v for k, v in options.items() if k in Plan.__dataclass_fields__}
    return replace(plan, recipe=replace(plan.recipe, **recipe), settings=replace(plan.settings, **settings), **rest)


def start(plan: Plan, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    run.write_plan(folder, plan)
    return go_on(folder)


def go_on(folder: Path) -> str:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        return run.train(folder)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may handle it."""


def killed() -> None:
    raise Killed


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def at_step(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int, act: Callable[[], None]) -> None:
    """Do something in the middle of an epoch, before anything of that step is saved."""
    inner = hooks.StopOnBadLoss.after_train_iter

    def after(self: Any, runner: Any, batch_idx: int, **more: Any) -> None:
        inner(self, runner, batch_idx, **more)
        if runner.epoch + 1 == epoch and batch_idx + 1 == step:
            act()

    monkeypatch.setattr(hooks.StopOnBadLoss, "after_train_iter", after)


def checkpoint(folder: Path, name: str = "epoch_3.pth") -> Mapping[str, Any]:
    found: Mapping[str, Any] = torch.load(folder / name, weights_only=True)
    return found


def assert_same_run(one: Path, two: Path) -> None:
    """Weights, averages, statistics, optimizer, scores and losses, to the bit."""
    a, b = checkpoint(one), checkpoint(two)
    for part in ("state_dict", "ema_state_dict"):
        assert a.get(part, {}).keys() == b.get(part, {}).keys()
        wrong = [k for k in a.get(part, {}) if not torch.equal(a[part][k], b[part][k])]
        assert not wrong, (part, wrong)
    assert a["bblab"].keys() == b["bblab"].keys()
    for part in ("gradients", "training_statistics"):
        x, y = (c["bblab"].get(part) or {} for c in (a, b))
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), part
    assert a["bblab"]["average_images"] == b["bblab"]["average_images"]
    moments = [[v for s in c["optimizer"]["state"].values() for v in s.values()] for c in (a, b)]
    assert len(moments[0]) == len(moments[1]) > 0
    assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(*moments, strict=True))
    histories = [History.of(folder) for folder in (one, two)]
    assert histories[0].curve("val", "top1_percent") == histories[1].curve("val", "top1_percent")
    losses = [h.curve("epoch", "train_loss") for h in histories]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_that_was_killed_and_later_interrupted_is_the_uninterrupted_one(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made = changed(plan, **OPTIONS[name])
    assert start(made, tmp_path / "whole") == record.DONE
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        at_step(patch, epoch=2, step=2, act=killed)
        with pytest.raises(Killed):
            start(made, folder)
    with monkeypatch.context() as patch:
        at_step(patch, epoch=3, step=2, act=interrupt)
        with pytest.raises(hooks.Ended):
            go_on(folder)
    assert checkpoints.listed(folder)[0].name == "epoch_2_iter_2.pth"
    assert go_on(folder) == record.DONE
    assert_same_run(tmp_path / "whole", folder)


def test_workers_change_nothing_also_where_images_are_mixed_and_dropped_out(plan: Plan, tmp_path: Path) -> None:
    for workers in (0, 2):
        start(changed(plan, **MIXED, workers=workers, precise_images=48), tmp_path / str(workers))
    assert_same_run(tmp_path / "0", tmp_path / "2")


def test_precise_statistics_change_nothing_of_the_training(plan: Plan, tmp_path: Path) -> None:
    for images in (0, 48):
        start(changed(plan, precise_images=images), tmp_path / str(images))
    plain, precise = (checkpoint(tmp_path / str(images)) for images in (0, 48))
    replaced = precise["bblab"]["training_statistics"]
    assert len(replaced) == 4  # mean and variance of two norms
    for key, value in plain["state_dict"].items():
        assert torch.equal(value, replaced.get(key, precise["state_dict"][key])), key
        assert (key in replaced) == (not torch.equal(value, precise["state_dict"][key])), key


def test_the_epoch_of_a_new_size_is_augmented_from_the_runs_seed_and_its_own_number(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bblab.pretraining.adapter import SeededSample

    seen: dict[tuple[int, int], set[int]] = {}
    inner = SeededSample.transform

    def watched(self: Any, results: dict[str, Any]) -> Any:
        seen.setdefault((self.seed, self.epoch), set()).add(int(results["sample_idx"]))
        return inner(self, results)

    monkeypatch.setattr(SeededSample, "transform", watched)
    start(changed(plan, **RAMP, seed=7), tmp_path / "run")
    assert {place: len(images) for place, images in seen.items()} == {(7, 0): 64, (7, 1): 64, (7, 2): 64}


def test_a_run_killed_after_its_score_still_stops_at_the_gate(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = changed(plan, gates=(Gate("loss > 0 at epoch 2", "loss", ">", 2, 0.0),))
    with monkeypatch.context() as patch:
        patch.setattr(hooks.StopAtGate, "scored", lambda self, runner, top1: killed() if runner.epoch == 2 else None)
        with pytest.raises(Killed):
            start(made, tmp_path / "run")
    assert go_on(tmp_path / "run") == record.GATED
    assert go_on(tmp_path / "run") == record.DONE  # asked to go on in spite of it


def test_an_average_means_the_same_at_another_batch_size_and_accumulated(plan: Plan, tmp_path: Path) -> None:
    """The share of the beginning that is left after an epoch of 64 images: (1 - 0.1) ** (64 / 16) of it at any batch.

    The first update is a copy, so one step's images are missing from each.
    """
    left = {}
    for batch, accumulation in ((16, 1), (8, 1), (8, 2), (4, 3)):
        name = f"{batch}x{accumulation}"
        seen: list[float] = []
        made = changed(plan, ema_momentum=0.1, batch_size=batch, accumulation=accumulation, epochs=1)
        with pytest.MonkeyPatch.context() as patch:
            inner = hooks.EMAHook.after_train_iter

            def after(self: Any, *args: Any, seen: list[float] = seen, inner: Any = inner, **more: Any) -> None:
                seen.append(1 - self.ema_model.momentum)
                inner(self, *args, **more)

            patch.setattr(hooks.EMAHook, "after_train_iter", after)
            start(made, tmp_path / name)
        share = 1.0
        for factor in seen:
            share *= factor
        left[name] = (share, len(seen))
    # 16 steps of 4 in threes: five updates of 12, and the run's last step alone
    assert {name: count for name, (_, count) in left.items()} == {"16x1": 4, "8x1": 8, "8x2": 4, "4x3": 6}
    for name, (share, _) in left.items():
        assert share == pytest.approx(0.9**4), name
