"""A run that is stopped anywhere ends with the bits of the one that was not; what cannot be read is not made up."""

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


def test_the_last_score_stays_in_the_progress_while_the_next_epoch_trains(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int | None] = []
    monkeypatch.setattr(hooks, "TELL_S", 0.0)
    inner = record.write_progress

    def watched(folder: Path, value: Mapping[str, Any]) -> None:
        if value["doing"] == "training":
            seen.append(value.get("validated_epoch"))
        inner(folder, value)

    monkeypatch.setattr(record, "write_progress", watched)
    start(plan, tmp_path / "run")
    assert seen == [None] * 4 + [1] * 4 + [2] * 4


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


def test_a_run_killed_before_its_score_makes_up_for_it_with_the_statistics_that_it_kept(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = changed(plan, precise_images=48, ema_momentum=0.1)
    assert start(made, tmp_path / "whole") == record.DONE
    with monkeypatch.context() as patch:
        patch.setattr(hooks.Record, "before_val_epoch", lambda self, runner: killed() if runner.epoch == 2 else None)
        patch.setattr(hooks.Record, "val_began", 0.0, raising=False)
        with pytest.raises(Killed):
            start(made, tmp_path / "run")
    assert list(History.of(tmp_path / "run").validations) == [1]
    assert go_on(tmp_path / "run") == record.DONE
    assert_same_run(tmp_path / "whole", tmp_path / "run")


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


# ---------------------------------------------------------------------------------------------- precise statistics


def test_what_is_kept_is_what_was_scored(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, averages and precise statistics at the validation are those of the file and of the export."""
    from safetensors.torch import load_file

    scored: dict[int, dict[str, torch.Tensor]] = {}
    inner = hooks.Record.before_val_epoch

    def watched(self: Any, runner: Any) -> None:
        scored[runner.epoch] = {k: v.clone() for k, v in runner.model.state_dict().items()}
        inner(self, runner)

    monkeypatch.setattr(hooks.Record, "before_val_epoch", watched)
    folder = tmp_path / "run"
    start(changed(plan, precise_images=48, ema_momentum=0.1), folder)
    for epoch in (2, 3):
        kept = checkpoint(folder, f"epoch_{epoch}.pth")["state_dict"]
        assert kept.keys() == scored[epoch].keys()
        for key, value in kept.items():
            if not key.endswith("num_batches_tracked"):
                assert torch.equal(value, scored[epoch][key]), key
    for key, value in load_file(folder / "weights.safetensors").items():
        assert torch.equal(value, scored[3][f"backbone.net.{key}"]), key


def test_precise_statistics_are_the_mean_of_the_batches_own(tmp_path: Path) -> None:
    from torch import nn

    from bblab.pretraining import norms

    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, momentum=0.01), nn.Dropout(0.5))
    net.add_module("frozen", nn.BatchNorm2d(2).eval())
    frozen = net[-1]
    net.train = lambda mode=True: [m.train(mode) for m in list(net)[:-1]] and net  # type: ignore[method-assign]
    batches = [torch.randn(8, 3, 4, 4) * scale for scale in (1.0, 3.0)]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = norms.precise(net, batches, net)
    with torch.no_grad():
        outputs = [net[0](batch) for batch in batches]
    means = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    variances = torch.stack([o.var((0, 2, 3)) for o in outputs]).mean(0)
    assert found.keys() == {"1.running_mean", "1.running_var"}
    torch.testing.assert_close(found["1.running_mean"], means)
    torch.testing.assert_close(found["1.running_var"], variances)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert (net[1].momentum, frozen.momentum) == (0.01, 0.1)


def test_a_norm_under_two_names_gets_its_statistics_under_both() -> None:
    from torch import nn

    from bblab.pretraining import norms

    shared = nn.BatchNorm2d(2)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    found = norms.precise(net, [torch.randn(4, 2, 3, 3)], net)
    assert found.keys() == {f"{i}.running_{what}" for i in (0, 2) for what in ("mean", "var")}
    before = norms.exchanged(net, found)
    assert torch.equal(shared.running_mean, found["2.running_mean"]) and not before["0.running_mean"].any()


def test_running_averages_settle_in_ten_times_one_over_momentum_steps() -> None:
    from torch import nn

    from bblab.pretraining import nets

    norm = nn.BatchNorm2d
    assert nets.settling_steps(nn.Sequential(norm(2), norm(2, momentum=0.01))) == 1000  # the slower one
    slow = norm(2, momentum=0.01)
    assert nets.settling_steps(nn.Sequential(norm(2), slow), [slow]) == 100
    assert nets.settling_steps(nn.Sequential(nn.GroupNorm(1, 2), norm(2, track_running_stats=False))) == 0
    assert nets.settling_steps(norm(2, momentum=None)) == 10**9


# ---------------------------------------------------------------------------------------------- unreadable images


@pytest.fixture
def own(plan: Plan, tmp_path: Path) -> Plan:
    """The plan on a copy of its images."""
    folder = tmp_path / "images"
    shutil.copytree(plan.data["root"], folder)
    return replace(plan, data=data.fingerprint(folder).to_json())


def images_of(plan: Plan, split: str) -> list[Path]:
    return sorted((Path(plan.data["root"]) / split).rglob("*.jpg"))


def spoil(paths: list[Path]) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[:100])


def test_unreadable_validation_images_are_counted_and_not_scored(own: Plan, tmp_path: Path) -> None:
    """The same net scores 29 of 32 images as the mean over those 29."""
    spoil(images_of(own, "val")[:3])
    folder = tmp_path / "run"
    assert start(own, folder) == record.DONE
    history = History.of(folder)
    assert [(v["images"], v["bad_images"]) for v in history.validations.values()] == [(29, 3)] * 3
    top1 = history.validations[3]["top1_percent"]
    right = top1 / 100 * 29
    assert right == pytest.approx(round(right), abs=1e-3)  # a whole number of 29
    assert [e["bad_images"] for e in history.epochs.values()] == [0, 0, 0]
    assert "(29 images; 95 % interval); 3 images could not be read" in (folder / "card.md").read_text()
    assert len({line.split("\t")[0] for line in (folder / "bad_images.txt").read_text().splitlines()}) == 3


def test_too_many_unreadable_validation_images_end_the_run_and_their_return_scores_the_epoch(
    own: Plan, tmp_path: Path
) -> None:
    kept = {path: path.read_bytes() for path in images_of(own, "val")[:4]}  # 4 of 32: above a tenth
    spoil(list(kept))
    with pytest.raises(hooks.Ended, match="4 of 32 validation images could not be read"):
        start(own, tmp_path / "run")
    assert not History.of(tmp_path / "run").validations
    for path, content in kept.items():
        path.write_bytes(content)
    assert go_on(tmp_path / "run") == record.DONE
    assert start(own, tmp_path / "whole") == record.DONE
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_training_images_that_vanished_and_came_back_cost_one_epoch_once(
    own: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Path(own.data["root"]) / "away"
    train = Path(own.data["root"]) / "train" / "0"

    def vanish() -> None:
        shutil.copytree(train, away)
        shutil.rmtree(train)
        train.mkdir()

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, epoch=2, step=1, act=vanish)
        with pytest.raises(hooks.Ended, match="of 64 training images could not be read"):
            start(own, folder)
    train.rmdir()
    away.rename(train)
    for _ in range(2):  # the first goes on, the second has nothing to lose
        assert go_on(folder) == record.DONE
    assert start(own, tmp_path / "whole") == record.DONE
    assert_same_run(folder, tmp_path / "whole")
    assert [e["bad_images"] for e in History.of(folder).epochs.values()] == [0, 0, 0]


def test_a_few_unreadable_training_images_are_replaced_and_counted_each_epoch(own: Plan, tmp_path: Path) -> None:
    spoil(images_of(own, "train")[:2])
    assert start(own, tmp_path / "run") == record.DONE
    assert [e["bad_images"] for e in History.of(tmp_path / "run").epochs.values()] == [2, 2, 2]


def test_training_never_sees_a_made_up_picture(own: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the images are cut from the centre: a grey square with a label would be learnt."""
    from bblab.pretraining.data import transforms

    spoil(images_of(own, "train")[:2])
    made: list[int] = []
    monkeypatch.setattr(transforms, "_grey", lambda height, width: made.append(height))
    for step in ({"step": "center_crop"}, {"step": "random_crop", "pad": 2}):
        assert start(changed(own, augment=(step,), epochs=1), tmp_path / str(step["step"])) == record.DONE
    assert not made


def test_images_that_stand_for_each_other_do_not_end_a_run(own: Plan) -> None:
    """Two unreadable images, each the other's stand-in by its own random numbers, have a readable one all the same."""
    import numpy as np

    from bblab.pretraining.unreadable import TRIES, ReadableImages

    class Few(ReadableImages):
        def __init__(self, readable: set[int]) -> None:
            self.readable = readable

        def __len__(self) -> int:
            return 50

        def prepare_data(self, idx: int) -> int | None:
            np.random.seed(idx)
            return idx if idx in self.readable else None

    for readable in ({7}, {0, 49}):
        found = [Few(readable)[i] for i in range(50)]
        assert set(found) <= readable and found == [Few(readable)[i] for i in range(50)]
    with pytest.raises(RuntimeError, match=f"{TRIES} training images in a row"):
        Few(set())[0]
