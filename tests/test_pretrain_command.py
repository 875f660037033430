"""bblab pretrain as a user runs it: trained, killed, stopped, resumed, on two processes, by mmpretrain's own tool."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmpretrain")
pytest.importorskip("sklearn")

import torch

from bblab.lab import Lab
from bblab.pretraining import data, record
from bblab.pretraining.record import History

pytestmark = pytest.mark.slow

TINY = """
stages:
  a: {block: conv, out: 8, stride: 2}
  b: {block: conv, out: 16, stride: 2}
head: {block: classifier, dropout: 0.1}
"""
RECIPE = """
about: for tests
source: chosen by us
epochs: 4
optimizer: sgd
lr: 0.1
base_batch: 32
schedule: cosine
warmup_epochs: 1
weight_decay: 1.0e-4
decays_norms: false
resolution_px: 24
val_resolution_px: 24
val_crop_ratio: 1.0
augment: [{random_resized_crop: {scale: [0.7, 1.0]}}]
"""


@pytest.fixture
def room(lab: Path, tmp_path: Path) -> Path:
    """A lab with a tiny net and a recipe of four epochs, and 320 + 80 digits in `digits`."""
    (lab / "arch_specs").mkdir()
    (lab / "pretrain").mkdir()
    (lab / "arch_specs" / "tiny.yaml").write_text(TINY)
    (lab / "pretrain" / "four.yaml").write_text(RECIPE)
    source = data.digits(tmp_path / "cache")
    for split, count in (("train", 32), ("val", 8)):
        for folder in sorted((source / split).iterdir()):
            target = tmp_path / "digits" / split / folder.name
            target.mkdir(parents=True)
            for image in sorted(folder.iterdir())[:count]:
                shutil.copy(image, target)
    return tmp_path


def argv(room: Path, *more: str) -> list[str]:
    data_args = [] if "--resume" in more else ["--recipe", "four", "--data", str(room / "digits")]
    return [sys.executable, "-m", "bblab.cli", "pretrain", "tiny", *data_args, *more]


def go(room: Path, *more: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(argv(room, *more), capture_output=True, text=True, timeout=500, cwd=room, env=env)


def until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def weights(path: Path) -> Mapping[str, torch.Tensor]:
    found: Mapping[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def are_equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def start(room: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = argv(room, "--run", str(folder), *more)
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=room, env=env)


def in_epoch(folder: Path, epoch: int) -> Callable[[], bool]:
    return lambda: record.read_progress(folder).get("epoch", 0) >= epoch


def test_a_killed_command_takes_its_training_along_and_resumes_after_a_move_as_if_nothing_had_been(
    room: Path, lab: Path
) -> None:
    whole = go(room, "--run", str(room / "whole"))
    assert whole.returncode == 0, whole.stderr
    process = start(room, room / "first")
    until(in_epoch(room / "first", 3), process)
    process.kill()
    process.communicate()
    end = time.monotonic() + 10
    while record.is_running(room / "first") and time.monotonic() < end:
        time.sleep(0.05)
    assert not record.is_running(room / "first")
    assert History.of(room / "first").end is None
    (room / "first").rename(room / "moved")
    resumed = go(room, "--resume", "--run", str(room / "moved"))
    assert resumed.returncode == 0, resumed.stderr
    assert are_equal(weights(room / "moved" / "epoch_4.pth"), weights(room / "whole" / "epoch_4.pth"))
    assert (room / "moved" / "weights.safetensors").exists() and (room / "moved" / "curves.png").exists()
    with Lab(lab).notebook(read_only=True) as store:
        rows = store.runs(kind="pretrain")
    assert [r.result["status"] for r in rows] == ["done", "done"]
    assert rows[0].result["top1_percent"] == rows[1].result["top1_percent"]


def test_ctrl_c_saves_and_says_how_to_go_on(room: Path) -> None:
    process = start(room, room / "stopped", "--epochs", "40")
    until(in_epoch(room / "stopped", 3), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "all of it is saved: go on with --resume" in err and "Traceback" not in out + err
    assert "bblab pretrain --resume --run" in out
    history = History.of(room / "stopped")
    assert history.end is not None and history.end["status"] == record.STOPPED


def test_mmpretrains_own_tool_trains_the_dumped_config_to_the_same_bits(room: Path) -> None:
    folder = room / "ours"
    assert go(room, "--run", str(folder), "--epochs", "1").returncode == 0
    found = importlib.util.find_spec("mmpretrain")
    assert found is not None and found.origin is not None
    tool = Path(found.origin).parent / ".mim" / "tools" / "train.py"
    line = [sys.executable, str(tool), str(folder / "config.py"), "--work-dir", str(room / "theirs")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    theirs = subprocess.run(line, capture_output=True, text=True, timeout=500, env=env)
    assert theirs.returncode == 0, theirs.stderr[-3000:]
    assert are_equal(weights(folder / "epoch_1.pth"), weights(room / "theirs" / "epoch_1.pth"))


def test_two_processes_train_as_one_with_twice_the_batch(room: Path) -> None:
    """Without norms and dropout, which see 16 instead of 32 images, the curves are the same but for rounding."""
    plain = ("--set", "a.norm=false", "--set", "b.norm=false", "--set", "head.dropout=0.0", "--lr-scale", "--json", "-")
    recipe = room / "lab" / "pretrain" / "four.yaml"
    recipe.write_text(RECIPE.replace("lr: 0.1", "lr: 1.0").replace("epochs: 4", "epochs: 8"))
    one = go(room, "--run", str(room / "one"), "--batch-size", "32", *plain)
    two = go(room, "--run", str(room / "two"), "--batch-size", "16", "--gpus", "2", *plain)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    a, b = json.loads(one.stdout), json.loads(two.stdout)
    assert b["inputs"]["scaling"]["lr"] == a["inputs"]["scaling"]["lr"] == 1.0
    assert b["inputs"]["scaling"]["batch_arithmetic"] == "16 × 2 processes = 32"
    assert [e["images"] for e in a["epochs"]] == [e["images"] for e in b["epochs"]] == [320] * 8
    for x, y in zip(a["epochs"], b["epochs"], strict=True):
        assert y["train_loss"] == pytest.approx(x["train_loss"], rel=1e-3)
        assert y["lr"] == pytest.approx(x["lr"], rel=1e-9)
    assert a["epochs"][-1]["train_loss"] < a["epochs"][0]["train_loss"]


def test_a_gate_ends_the_run_and_counts_the_time_saved(room: Path, lab: Path) -> None:
    ran = go(
        room, "--run", str(room / "gated"), "--stop-if", "loss > 0.01 at epoch 2", "--json", str(room / "out.json")
    )
    assert ran.returncode == 0, ran.stderr
    assert "stopped by a gate: loss" in ran.stdout and "2 epochs not trained" in ran.stdout
    found = json.loads((room / "out.json").read_text())
    assert (found["status"], found["epochs_trained"]) == ("gated", 2)
    assert found["saved_s"] > 0 and (room / "gated" / "weights.safetensors").exists()


def test_weights_that_were_trained_begin_another_run_and_fused_ones_are_refused(room: Path) -> None:
    assert go(room, "--run", str(room / "a"), "--epochs", "2").returncode == 0
    again = go(room, "--run", str(room / "b"), "--epochs", "1", "--weights", str(room / "a" / "weights.safetensors"))
    assert again.returncode == 0, again.stderr
    first = [History.of(room / name).epochs[1]["train_loss"] for name in "ab"]
    assert first[1] < first[0]
    from safetensors.torch import load_file, save_file

    state = {k: v for k, v in load_file(room / "a" / "weights.safetensors").items() if ".norm." not in k}
    save_file(state, room / "fused.safetensors")
    refused = go(room, "--run", str(room / "c"), "--weights", str(room / "fused.safetensors"))
    assert refused.returncode == 2 and "holds fused weights" in refused.stderr


def test_workers_change_nothing(room: Path) -> None:
    for name, workers in (("none", "0"), ("two", "2")):
        ran = go(room, "--run", str(room / name), "--epochs", "2", "--workers", workers)
        assert ran.returncode == 0, ran.stderr
    assert are_equal(weights(room / "none" / "epoch_2.pth"), weights(room / "two" / "epoch_2.pth"))


def test_a_vanished_image_is_counted_and_many_end_the_run(room: Path) -> None:
    process = start(room, room / "run", "--epochs", "60")
    until(in_epoch(room / "run", 2), process)
    shutil.rmtree(room / "digits" / "train")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1 and "Traceback" not in out + err
    assert "could not be read" in err, err
    assert any((room / "run").glob("epoch_*.pth"))


def test_an_estimate_names_the_limit_and_trains_nothing(room: Path, lab: Path) -> None:
    ran = go(room, "--estimate", "--json", "-")
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    assert found["limit"] in ("net", "data", "data (loaded by the training itself)")
    assert found["net_images_per_s"] > 0 and found["loader_images_per_s"] > 0
    assert 0 < found["hours"] < found["imagenet_hours"]
    assert not (lab / "runs").exists()


def test_mobilenetv3_small_learns_the_digits(lab: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "bblab.cli", "pretrain", "mobilenetv3_small", "--json", "-"]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=1200)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["top1_percent"] > 95
    assert found["weights"]["forms_rel_diff"] < 1e-4 and found["weights"]["forms_other_answers"] == 0
