"""The training engine: what it builds, that nothing is lost, that a resumed run is the uninterrupted one."""

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
from bblab.errors import RunError
from bblab.lab import Lab
from bblab.pretraining import card, checkpoints, data, hooks, nets, record, result, run
from bblab.pretraining.config import Plan, Settings, plain_spec, with_head
from bblab.pretraining.recipe import Recipe
from bblab.pretraining.record import History

TINY = """
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


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of digits, 16 training and 8 validation images each."""
    source = data.digits(tmp_path_factory.mktemp("digits"))
    folder = tmp_path_factory.mktemp("few")
    for split, count in (("train", 16), ("val", 8)):
        for name in sorted(p.name for p in (source / split).iterdir())[:4]:
            (folder / split / name).mkdir(parents=True)
            for image in sorted((source / split / name).iterdir())[:count]:
                shutil.copy(image, folder / split / name)
    return folder


@pytest.fixture(scope="module")
def plan(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_of(TINY, images, Lab(tmp_path_factory.mktemp("planning")))


def plan_of(text: str, images: Path, lab: Lab, recipe: Recipe = RECIPE, **settings: Any) -> Plan:
    spec = language.parse(text, lab.kinds, name="tiny")
    trained, _ = with_head(spec, 4)
    info = data.fingerprint(images).to_json()
    made = {"batch_size": 16, "save_minutes": 0.0, **settings}
    return Plan("tiny", plain_spec(trained), spec.spec_id, recipe, info, Settings(**made), code_version="test")


Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train a plan in this process; its folder."""

    def go(made: Plan, name: str = "run", **changed: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        recipe = {k: v for k, v in changed.items() if k in Recipe.__dataclass_fields__}
        settings = {k: v for k, v in changed.items() if k in Settings.__dataclass_fields__}
        made = replace(made, recipe=replace(made.recipe, **recipe), settings=replace(made.settings, **settings))
        run.write_plan(folder, made)
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            run.train(folder)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return folder

    return go


def weights(path: Path) -> Mapping[str, torch.Tensor]:
    found: Mapping[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def are_equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may handle it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int, act: Callable[[], None]) -> None:
    """Do something in the middle of an epoch, before anything of that step is saved."""
    inner = hooks.StopOnBadLoss.after_train_iter

    def after(self: Any, runner: Any, batch_idx: int, **more: Any) -> None:
        inner(self, runner, batch_idx, **more)
        if runner.epoch + 1 == epoch and batch_idx + 1 == step:
            act()

    monkeypatch.setattr(hooks.StopOnBadLoss, "after_train_iter", after)


def killed() -> None:
    raise Killed


# ---------------------------------------------------------------------------------------------- resuming


def test_a_run_killed_in_mid_epoch_and_moved_ends_with_the_weights_of_the_uninterrupted_one(
    plan: Plan, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(plan, "whole", ema_momentum=0.1)
    with monkeypatch.context() as patch:
        kill_at(patch, epoch=2, step=3, act=killed)
        with pytest.raises(Killed):
            train(plan, "first", ema_momentum=0.1)
    moved = (tmp_path / "first").rename(tmp_path / "moved")
    assert run.train(moved) == record.DONE
    assert are_equal(weights(moved / "epoch_3.pth"), weights(whole / "epoch_3.pth"))
    a, b = (torch.load(f / "epoch_3.pth", weights_only=True) for f in (moved, whole))
    assert are_equal(a["ema_state_dict"], b["ema_state_dict"])
    one, two = History.of(moved), History.of(whole)
    assert [e["train_loss"] for e in one.epochs.values()] == [e["train_loss"] for e in two.epochs.values()]
    assert one.curve("val", "top1_percent") == two.curve("val", "top1_percent")
    starts = [line for line in one.lines if line["kind"] == "start"]
    assert [s["resumed_from"] for s in starts] == [None, "epoch_1.pth"]


def test_ctrl_c_saves_inside_the_epoch_and_the_rest_is_as_if_it_had_not_been_pressed(
    plan: Plan, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(plan, "whole")
    with monkeypatch.context() as patch:
        kill_at(patch, epoch=2, step=2, act=lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(hooks.Ended) as stopped:
            train(plan, "stopped")
    assert stopped.value.status == record.STOPPED
    folder = tmp_path / "stopped"
    assert checkpoints.listed(folder)[0].name == "epoch_1_iter_2.pth"
    assert History.of(folder).end["status"] == record.STOPPED  # type: ignore[index]
    assert run.train(folder) == record.DONE
    assert are_equal(weights(folder / "epoch_3.pth"), weights(whole / "epoch_3.pth"))
    losses = [[e["train_loss"] for e in History.of(f).epochs.values()] for f in (folder, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert not list(folder.glob("*_iter_*.pth"))  # the epoch's own checkpoint replaced it


def test_a_nan_ends_the_run_with_epoch_and_step_and_keeps_the_last_good_checkpoint(
    plan: Plan, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = nets.scores

    def broken(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        broken.calls += net.training  # type: ignore[attr-defined]
        return inner(net, x) * (float("nan") if broken.calls == 7 else 1.0)  # type: ignore[attr-defined]

    broken.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(nets, "scores", broken)
    with pytest.raises(RunError, match="loss is nan at epoch 2, step 3 of 4"):
        train(plan)
    folder = tmp_path / "run"
    assert [p.name for p in checkpoints.listed(folder)] == ["epoch_1.pth"]
    end = History.of(folder).end
    assert end is not None and (end["status"], end["epoch"], end["step"]) == (record.BAD_LOSS, 2, 3)


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint_before(
    plan: Plan, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmengine.runner import Runner

    inner = Runner.save_checkpoint
    calls = []

    def full(self: Any, out_dir: str, filename: str, **more: Any) -> None:
        calls.append(filename)
        inner(self, out_dir, filename, **more)
        if len(calls) == 2:  # half a file is there when the disk is full
            path = Path(out_dir) / filename
            path.write_bytes(path.read_bytes()[:1000])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Runner, "save_checkpoint", full)
    with pytest.raises(RunError, match=r"epoch_2\.pth cannot be written: No space left"):
        train(plan, keep=1)
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.glob("*.pth")) == ["best.pth", "epoch_1.pth"]
    assert not list(folder.glob(".*partial"))
    assert run.train(folder) == record.DONE


def test_the_newest_checkpoint_that_loads_is_taken(plan: Plan, train: Train) -> None:
    folder = train(plan, epochs=2, keep=2)
    assert {"state_dict", "optimizer", "param_schedulers", "message_hub", "meta"} <= set(
        torch.load(folder / "best.pth", weights_only=True)
    )
    (folder / "epoch_2.pth").write_bytes((folder / "epoch_2.pth").read_bytes()[:2000])
    found, wrong = checkpoints.newest(folder)
    assert found == folder / "epoch_1.pth"
    assert len(wrong) == 1 and wrong[0].startswith("epoch_2.pth does not load")


# ---------------------------------------------------------------------------------------------- what is trained


def test_frozen_stages_keep_weights_and_norm_statistics(plan: Plan, train: Train) -> None:
    folder = train(plan, epochs=2, freeze="a")
    after, later = weights(folder / "epoch_1.pth"), weights(folder / "epoch_2.pth")
    moved = {key for key in after if not torch.equal(after[key], later[key])}
    assert {key.split(".")[3] for key in moved if ".stages." in key} == {"b"}
    assert not after["backbone.net.stages.a.0.norm.running_mean"].any()  # as it began
    assert "backbone.net.stages.b.0.norm.running_mean" in moved


def test_accumulating_four_batches_takes_a_quarter_of_the_updates(plan: Plan, train: Train) -> None:
    folder = train(plan, epochs=1, batch_size=4, accumulation=4)
    state = torch.load(folder / "epoch_1.pth", weights_only=True)
    # 64 images: 16 steps of 4, whose 4th each updates. The warm-up epoch counts steps, not updates.
    assert state["meta"]["iter"] == 16
    assert History.of(folder).epochs[1]["images"] == 64


def test_label_smoothing_bce_mixup_average_and_bf16_all_train(plan: Plan, train: Train) -> None:
    folder = train(
        plan, epochs=1, label_smoothing=0.1, mixup=0.2, cutmix=1.0, loss="bce", ema_momentum=0.01, precision="bf16",
        optimizer="lamb", clip_grad_norm=1.0,
    )  # fmt: skip
    line = History.of(folder).last["result"]
    assert line["is_average"] and line["forms_rel_diff"] < 1e-4
    text = (folder / "config.py").read_text()
    for word in ("AutocastOptimWrapper", "LabelSmoothLoss", "Mixup", "CutMix", "EMAHook", "Lamb"):
        assert word in text


def test_the_training_size_grows_as_the_ramp_says(plan: Plan, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    inner = nets.scores

    def watched(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        if net.training:
            sizes.append(x.shape[-1])
        return inner(net, x)

    monkeypatch.setattr(nets, "scores", watched)
    folder = train(plan, resolution_px=8, resolution_ramp=((1, 12), (2, 16)))
    assert sizes == [8] * 4 + [12] * 4 + [16] * 4
    assert [e["px"] for e in History.of(folder).epochs.values()] == [8, 12, 16]


def test_weight_decay_goes_down_along_a_cosine_and_norms_stay_at_none(
    plan: Plan, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []

    def after(self: Any, runner: Any, batch_idx: int, **more: Any) -> None:
        seen.append([g["weight_decay"] for g in runner.optim_wrapper.optimizer.param_groups])

    monkeypatch.setattr(hooks.StopOnBadLoss, "after_train_iter", after)
    train(plan, weight_decay=1e-2, final_weight_decay=1e-3)
    assert {norms for _, norms in seen} == {0.0}
    assert seen[0][0] == pytest.approx(1e-2) and seen[-1][0] == pytest.approx(1e-3, rel=0.2)
    # half-way, step 6 of 12: 1e-3 + 9e-3 * (1 + cos(pi * 6/12)) / 2
    assert seen[6][0] == pytest.approx(1e-3 + 9e-3 * 0.5, rel=1e-6)


FUSES = """
import torch
from torch import nn


class Fuses(nn.Module):
    def __init__(self, in_ch, out_ch, stride=1, move=0.0, times=1.0):
        super().__init__()
        self.c = nn.Conv2d(in_ch, out_ch, 1, stride)
        self.move, self.times = move, times

    def forward(self, x):
        return self.c(x)

    def fuse(self):  # equal in exact numbers where times is 1
        with torch.no_grad():
            self.c.weight.copy_((self.c.weight + self.move) * self.times - self.move)
"""


def forms_of(row: str, images: Path, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The two forms of a small net with a block that fuses itself, compared on made-up images."""
    lab = Lab(folder)
    (folder / "blocks").mkdir(parents=True)
    (folder / "blocks" / "own.py").write_text(FUSES)
    text = f"""
stages:
  a: {{block: conv, out: 8, stride: 2}}
  b: {{block: own.Fuses, out: 16, {row}}}
head: {{block: classifier}}
"""
    plan = replace(plan_of(text, images, lab), lab=str(folder))
    spec, kinds = nets.spec_of(plan.spec, plan.name, plan.lab)
    net, _ = nets.make(spec, kinds, 4)
    net.get_parameter("head.last.weight").data.normal_()
    batches = [{"inputs": torch.randn(8, 3, 16, 16)} for _ in range(2)]
    return result.compare_forms(plan, net.state_dict(), batches, Handed())


class Handed(torch.nn.Module):
    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


def test_forms_that_float64_brings_together_are_rounding_and_do_not_fail_a_training(
    images: Path, tmp_path: Path
) -> None:
    """Weights near 0.1 beside 30,000: float32 has steps of 0.002 there, float64 of 4e-12."""
    apart, line = forms_of("move: 30000.0", images, tmp_path / "lab")
    assert line["forms_rel_diff"] > 1e-3 and line["forms_rel_diff_float64"] < 1e-9
    assert apart.is_rounding and not apart.is_another_function
    assert card.rounding(line).startswith(", rounding alone: ")


def test_a_deploy_form_of_another_function_fails_a_training(images: Path, tmp_path: Path) -> None:
    apart, line = forms_of("times: 1.5", images, tmp_path / "lab")
    assert line["forms_rel_diff_float64"] == pytest.approx(line["forms_rel_diff"], rel=1e-3)
    assert apart.is_another_function


def test_forms_that_agree_in_float32_are_not_run_in_float64(images: Path, tmp_path: Path) -> None:
    apart, line = forms_of("times: 1.0", images, tmp_path / "lab")
    assert line["forms_rel_diff"] < 1e-5 and line["forms_rel_diff_float64"] is None
    assert not apart.is_another_function and card.rounding(line) == "" and line["forms_images"] == 16
