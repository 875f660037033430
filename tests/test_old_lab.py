"""A lab that an older version wrote is read, searched, reported and gone on with (tests/data)."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bblab.errors import BblabError
from bblab.lab import Lab

OLD = Path(__file__).resolve().parent / "data" / "lab_0_1"
PRETRAINING, EXPORT = 28, 31


@pytest.fixture
def old(lab: Path) -> Path:
    """This test's lab: a copy of the stored one, at another place than it was written at."""
    shutil.copytree(OLD, lab, dirs_exist_ok=True)
    return lab


def test_every_kind_of_row_is_there_and_listed(old: Path, bblab: Callable) -> None:
    ran = bblab("runs", "--limit", "100", "--json", "-")
    assert ran.code == 0
    # two profiles of two nets and forms, bench of three nets, duel of two, ...
    assert Counter(row["kind"] for row in json.loads(ran.out)) == {
        "block": 10, "timing": 9, "conditions": 3, "profile": 2, "latency_estimate": 1, "pretrain_estimate": 1,
        "export": 2, "operators": 1, "pipeline": 1, "pretrain": 1, "tracker_score": 1,
    }  # fmt: skip


def test_every_row_is_shown(old: Path, bblab: Callable) -> None:
    for number in range(1, 33):
        ran = bblab("show", number)
        assert ran.code == 0, (number, ran.err)


def test_its_numbers_are_found(old: Path, bblab: Callable) -> None:
    for value, run in (("43.61%", PRETRAINING), ("0.301", 32)):
        ran = bblab("find", value, "--json", "-")
        assert ran.code == 0, ran.err
        assert f'"id": {run}' in ran.out


def test_a_report_is_made_of_it(old: Path, bblab: Callable, tmp_path: Path) -> None:
    for name in ("pareto", "runs"):
        ran = bblab("report", name, "--out", tmp_path / name)
        assert ran.code == 0, (name, ran.err)


def test_two_of_its_timings_are_compared(old: Path, bblab: Callable) -> None:
    ran = bblab("diff", 5, 6)
    assert ran.code == 0, ran.err
    assert "train" in ran.out and "deploy" in ran.out


# The nets of its nine timings, of which two are a session's reference; a card is of the spec that was profiled last.
TIMED = ["mine", "mine", "nanotrack", "nanotrack", "mobilenetv3_small@s16", "nanotrack", "mobileone_k5_se"]
SHOWN = {"pareto": TIMED, "comparison": TIMED, "spec_card": ["nanotrack"] * 3}


def test_its_latencies_are_of_protocol_1_apart_and_on_no_chart(old: Path, bblab: Callable, tmp_path: Path) -> None:
    ran = bblab("report", "comparison", "--json", "-")
    assert ran.code == 0, ran.err
    assert "bblab bench --again" in ran.out
    for name in ("pareto", "comparison", "spec_card"):
        page, _ = Lab().report(name, files=False)
        assert not any(chart.key.startswith("latency") for chart in page.charts)
        older = [table for title, table in page.sections if "older protocol" in title]
        assert {cells[-1] for table in older for cells in table.cells} == {"bblab bench --again"}
        assert [cells[0] for table in older for cells in table.cells] == SHOWN[name]
    with pytest.raises(BblabError, match="nothing is timed here by this protocol") as none:
        Lab().report("device", files=False)
    assert "bblab bench --again" in none.value.hint


# ---------------------------------------------------------------------------------------------- its training


RUN = "20261129-161720-tiny-digits"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, 13 training and 2 validation images of each: two steps of 64 an epoch."""
    pytest.importorskip("mmpretrain")
    from bblab.pretraining import data

    source, folder = data.digits(tmp_path_factory.mktemp("all")), tmp_path_factory.mktemp("few")
    for split, count in (("train", 13), ("val", 2)):
        for kind in sorted((source / split).iterdir()):
            (folder / split / kind.name).mkdir(parents=True)
            for image in sorted(kind.iterdir())[:count]:
                shutil.copy(image, folder / split / kind.name)
    return folder


def by_its_config(images: Path, work_dir: Path, resumed_from: Path | None = None, **hooks: dict) -> Any:
    """Train by the stored config.py as mmpretrain's own tool does; mmengine's Runner.

    hooks: arguments of its hooks that differ, or hooks that are added.
    """
    from mmengine.config import Config
    from mmengine.runner import Runner

    from bblab.pretraining.run import quieten

    quieten()
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    config = Config.fromfile(OLD / "runs" / RUN / "config.py")
    config.work_dir = str(work_dir)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset.data_root = str(images)
        loader.dataset.classes = str(OLD / "runs" / RUN / "classes.txt")
        for step in loader.dataset.pipeline:
            if "bad_list" in step:
                step.bad_list = str(work_dir / "bad_images.txt")
    for hook in config.custom_hooks:
        hook.update(hooks.pop(hook.type, {}))
        if "bad_list" in hook:
            hook.bad_list = str(work_dir / "bad_images.txt")
    config.custom_hooks += [{"type": kind, **given} for kind, given in hooks.items()]
    config.load_from = str(resumed_from) if resumed_from else None
    config.resume = resumed_from is not None
    config.experiment_name = f"{work_dir.name}_{time.monotonic_ns()}"
    try:
        runner = Runner.from_cfg(config)
        runner.train()
        return runner
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def weights_of(path: Path) -> dict:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def test_mmpretrain_trains_by_the_config_of_version_0_1(few: Path, tmp_path: Path) -> None:
    by_its_config(few, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["epoch", "checkpoint", "val"] * 2
    # LinearLR from 0.01 of 0.1 over 4 steps is stepped once a step: 0.01 + 0.99 * 2/3 of it after two, all after four
    assert [line["lr"] for line in lines[::3]] == pytest.approx([0.067, 0.1])
    assert [line["images"] for line in lines[::3]] == [128, 128]
    assert [line["px"] for line in lines[::3]] == [48, 48]
    assert all("images" not in line for line in lines[2::3])  # mmpretrain's Accuracy does not say how many it scored
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == ["best.pth", "epoch_1.pth", "epoch_2.pth"]


AVERAGE = {"ema_type": "ExponentialMovingAverage", "momentum": 0.1, "update_buffers": True}


@pytest.mark.parametrize("is_averaged", [False, True])
def test_a_run_by_that_config_ends_the_same_where_it_is_resumed(few: Path, tmp_path: Path, is_averaged: bool) -> None:
    import torch

    hooks: dict = {"SurvivingCheckpoint": {"keep": 2}}
    if is_averaged:
        hooks["EMAHook"] = AVERAGE
        smaller = [
            {"type": "SeededSample"},
            {"type": "LoadRandomCropFast", "px": 32, "on_bad": "skip"},
            {"type": "PackInputs"},
        ]
        hooks["SwitchRecipeHook"] = {"schedule": [{"action_epoch": 2, "train_pipeline": smaller}]}
        hooks["Record"] = {"ramp": [[0, 48], [1, 32]]}
    by_its_config(few, tmp_path / "whole", **hooks)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / "epoch_2.pth").unlink()
    by_its_config(few, tmp_path / "again", tmp_path / "again" / "epoch_1.pth", **hooks)
    one, other = (weights_of(tmp_path / name / "epoch_2.pth") for name in ("whole", "again"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(not torch.equal(one[key], value) for key, value in weights_of(tmp_path / "whole/epoch_1.pth").items())
    last = json.loads((tmp_path / "again" / "record.jsonl").read_text().splitlines()[-3])
    assert last["px"] == (32 if is_averaged else 48)


def test_a_gate_of_that_config_ends_the_run(few: Path, tmp_path: Path) -> None:
    from bblab.pretraining.hooks import Ended

    gate = {"text": "loss > 0.5 at epoch 1", "metric": "loss", "op": ">", "value": 0.5, "epoch": 1}
    with pytest.raises(Ended, match="stopped by a gate"):
        by_its_config(few, tmp_path, StopAtGate={"gates": [gate]})
    assert (tmp_path / "epoch_1.pth").exists()
    assert not (tmp_path / "epoch_2.pth").exists()


def test_its_run_is_gone_on_with_by_its_config(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("mmpretrain")
    from bblab.pretraining import data

    by_its_config(data.digits(cache), tmp_path, OLD / "runs" / RUN / "epoch_1.pth")
    lines = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["epoch"]) for line in lines if line["kind"] != "val" or line["epoch"] > 1] == [
        ("epoch", 2), ("checkpoint", 2), ("val", 2),
    ]  # fmt: skip
    # 0.1 recorded a loss of 1.72 in this epoch, and 10 % after the first: other images, the same training
    assert lines[-3]["train_loss"] == pytest.approx(1.72, abs=0.15)
    assert lines[-1]["top1_percent"] > 25


def unfinished(lab: Path) -> Path:
    """The stored run as it was after its first epoch; its folder."""
    folder = lab / "runs" / RUN
    for name in ("epoch_2.pth", "best.pth", "weights.safetensors"):
        (folder / name).unlink()
    lines = (folder / "record.jsonl").read_text().splitlines()
    (folder / "record.jsonl").write_text("".join(f"{line}\n" for line in lines[:4]))  # start, epoch, checkpoint, val
    return folder


def test_its_run_is_resumed_by_its_number_in_a_moved_lab(old: Path, bblab: Callable, few: Path) -> None:
    folder = unfinished(old)
    plan = json.loads((folder / "run.json").read_text())
    plan["data"]["root"] = str(old / "no longer there" / "digits-48px-v1")
    (folder / "run.json").write_text(json.dumps(plan))
    ran = bblab("pretrain", "--resume", "--run", PRETRAINING)
    assert ran.code == 0, ran.err
    assert "goes on from epoch_1.pth, after epoch 1 of 2" in ran.out
    last = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    result = next(line for line in last if line["kind"] == "result")
    assert result["top1_percent"] == pytest.approx(43.6, abs=15)  # 43.61 in 0.1
    ran = bblab("export", "tiny", "--run", 33 + 1, "--to", "onnx", "--out", old / "out")  # 33: the start cut off
    assert ran.code == 0, ran.err


def test_only_a_training_is_resumed_by_number(old: Path, bblab: Callable) -> None:
    ran = bblab("pretrain", "--resume", "--run", EXPORT)
    assert ran.code == 2
    assert "run 31 is no training but: export, nanotrack" in ran.err


@pytest.mark.parametrize("how", [("--to", "onnx"), ("--for", "nanotrack")])
def test_its_weights_are_exported(old: Path, bblab: Callable, how: tuple[str, str]) -> None:
    ran = bblab("export", "tiny", "--run", PRETRAINING, *how, "--out", old / "out")
    assert ran.code == 0, ran.err
    ran = bblab("export", "tiny", "--weights", old / "runs" / RUN / "best.pth", *how, "--out", old / "out2")
    assert ran.code == 0, ran.err


def test_weights_that_a_run_did_not_write_are_not_exported_as_its_own(old: Path, bblab: Callable) -> None:
    from bblab.weights import load, save

    path = old / "runs" / RUN / "weights.safetensors"
    state, metadata = load(path)
    path.unlink()
    metadata.pop("content_sha256", None)
    save({key: value + 1 if value.is_floating_point() else value for key, value in state.items()}, path, metadata)
    database = sqlite3.connect(old / "lab.sqlite")
    for (trigger,) in database.execute("select name from sqlite_master where type = 'trigger'").fetchall():
        database.execute(f"drop trigger {trigger}")  # a notebook only grows
    database.execute("update runs set result = replace(result, '/home/designer/lab', '/home/gone')")
    database.commit()
    database.close()
    ran = bblab("export", "tiny", "--run", PRETRAINING, "--to", "onnx", "--out", old / "out")
    assert ran.code == 2
    assert "does not hold the weights that run 28 wrote" in ran.err
    assert not (old / "out").exists()


def test_an_average_that_counted_steps_goes_on_at_its_pace() -> None:
    from bblab.pretraining.config import Plan

    value = json.loads((OLD / "runs" / RUN / "run.json").read_text())
    value["recipe"] |= {"ema_momentum": 0.1}
    value["settings"] |= {"batch_size": 128}
    # a step of 128 images took 0.1 of the new weights; the recipe's batch is 64: two of them leave 0.9
    assert (1 - (Plan.from_json(value).recipe.ema_momentum or 0)) ** 2 == pytest.approx(0.9)
    value["settings"] |= {"keeps_last": False}
    assert Plan.from_json(value).recipe.ema_momentum == 0.1
