"""What is decided before a training: learning rates, gates, plans, resumption; and how its record is read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bblab.errors import BblabError
from bblab.lab import Lab, training
from bblab.pretraining import card, checkpoints, config, gates, record
from bblab.pretraining import recipe as recipes
from bblab.pretraining.config import Plan, Settings
from bblab.pretraining.launch import Machines, command, environment
from bblab.pretraining.record import History
from bblab.pretraining.schedule import Scaling, iterations_per_epoch, keeps_last_batch, schedulers

TINY = """
stages:
  a: {block: conv, out: 8, stride: 2}
  b: {block: conv, out: 16, stride: 2}
head: {block: classifier}
"""
DATA = {
    "root": "/data/some", "layout": "folders", "classes": ["a", "b"], "train_count": 1000, "val_count": 100,
    "hash": "ab12", "ann_train": None, "ann_val": None, "prefix_train": "train", "prefix_val": "val", "problems": [],
}  # fmt: skip
RECIPE = recipes.Recipe(
    name="r", about="for tests", source="us", epochs=10, optimizer="sgd", lr=0.5, base_batch=1024, schedule="linear",
    warmup_epochs=2,
)  # fmt: skip


def plan_of(**changed: Any) -> Plan:
    made = Plan("net", {"input": [3, 32, 32]}, "0123456789ab", RECIPE, DATA, Settings(batch_size=100))
    return replace(made, **changed)


# ---------------------------------------------------------------------------------------------- learning rates


def test_half_the_batch_takes_half_the_learning_rate_and_shows_the_sum() -> None:
    scaling = Scaling(0.5, 1024, 512, rule="linear")
    assert scaling.lr == 0.25
    assert scaling.arithmetic == "0.5 × 512/1024 = 0.25"


def test_processes_and_accumulation_count_as_batch() -> None:
    scaling = Scaling(0.5, 1024, 64, processes=2, accumulation=4, rule="linear")
    assert (scaling.total_batch, scaling.lr) == (512, 0.25)
    assert scaling.batch_arithmetic == "64 × 2 processes × 4 accumulated = 512"


def test_the_square_root_rule_scales_by_the_root() -> None:
    scaling = Scaling(0.4, 1024, 256, rule="sqrt")
    assert scaling.lr == pytest.approx(0.2)  # √(256/1024) = 1/2
    assert scaling.arithmetic == "0.4 × √(256/1024) = 0.2"


def test_without_scaling_the_recipe_is_kept_and_the_difference_said() -> None:
    scaling = Scaling(0.5, 1024, 512)
    assert scaling.lr == 0.5
    assert "--lr-scale would make it 0.25" in scaling.advice
    assert Scaling(0.5, 1024, 1024).advice == ""


def test_warm_up_and_floor_are_shares_of_the_scaled_rate() -> None:
    warm, main = schedulers(replace(RECIPE, final_lr_ratio=0.01), iterations=50)
    assert (warm["begin"], warm["end"], main["begin"], main["end"]) == (0, 100, 100, 500)  # 2 and 10 epochs of 50
    assert warm["start_factor"] == RECIPE.warmup_start_factor
    assert main["end_factor"] == 0.01


def test_steps_of_a_recipe_are_counted_from_the_end_of_its_warm_up() -> None:
    found = schedulers(replace(RECIPE, schedule="step", milestones=(4, 8), gamma=0.1), iterations=50)[-1]
    assert found["milestones"] == [100, 300]  # epochs 4 and 8 are iterations 200 and 400; the warm-up took 100


def test_an_epoch_is_the_full_batches_of_each_process() -> None:
    assert iterations_per_epoch(1437, 64, 1) == 22  # 22 × 64 = 1408
    assert iterations_per_epoch(1437, 64, 2) == 11  # 719 images each: 11 × 64 = 704


# ---------------------------------------------------------------------------------------------- gates


def test_gates_are_read_as_people_write_them() -> None:
    assert gates.parse("loss > 2.5 at epoch 3", 10) == gates.Gate("loss > 2.5 at epoch 3", "loss", ">", 3, 2.5)
    assert gates.parse("accuracy < 40% @ epoch 5", 10).value == 40
    earlier = gates.parse("below the worst of 5 earlier runs at epoch 3", 10)
    assert (earlier.metric, earlier.op, earlier.which, earlier.runs) == ("accuracy", "<", "worst", 5)


@pytest.mark.parametrize(
    "text",
    ["loss", "loss > x at epoch 3", "loss > 2 at epoch 0", "loss > 2 at epoch 11", "accuracy < 0.4 at epoch 3", ""],
)
def test_other_gates_are_refused_with_examples(text: str) -> None:
    with pytest.raises(BblabError) as error:
        gates.parse(text, 10)
    assert error.value.hint


def test_a_gate_is_hit_at_its_epoch_only() -> None:
    gate = gates.parse("accuracy < 40 at epoch 5", 10)
    assert gate.is_hit(5, {"loss": 1.0, "accuracy": 39.9})
    assert not gate.is_hit(5, {"loss": 1.0, "accuracy": 40.0})
    assert not gate.is_hit(4, {"loss": 1.0, "accuracy": 1.0})


def test_the_worst_of_the_earlier_runs_is_the_lowest_accuracy_and_the_highest_loss() -> None:
    curves = [
        {"accuracy": [10, 50], "loss": [3, 2]},
        {"accuracy": [20, 40], "loss": [3, 1]},
        {"accuracy": [5], "loss": [9]},
    ]
    below = gates.parse("below the worst of 5 earlier runs at epoch 2", 10)
    found = gates.against(below, curves)
    assert (found.value, found.runs) == (40, 2)  # the third never reached epoch 2
    above = gates.parse("loss above the worst of 5 earlier runs at epoch 2", 10)
    assert gates.against(above, curves).value == 2
    with pytest.raises(BblabError, match="no earlier run"):
        gates.against(gates.parse("below the best of 2 earlier runs at epoch 3", 10), curves)


# ---------------------------------------------------------------------------------------------- plans


def test_a_plan_survives_json(tmp_path: Path) -> None:
    made = plan_of(gates=(gates.parse("loss > 2 at epoch 3", 10),))
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_the_config_is_plain_data_and_names_nothing_but_strings(tmp_path: Path) -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            assert all(isinstance(k, str) for k in value)
            for item in value.values():
                walk(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)
        else:
            assert value is None or isinstance(value, (str, int, float, bool)), value

    walk(config.build(plan_of(), tmp_path))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(BblabError, match="1001 is more than the 1000 training images"):
        config.build(plan_of(settings=Settings(batch_size=1001)), Path("x"))


def test_a_shorter_run_keeps_its_share_of_warm_up_and_ramp() -> None:
    full = replace(RECIPE, epochs=16, resolution_ramp=((10, 176), (12, 192)))
    short = training.shortened(full, 8)
    assert (short.warmup_epochs, short.resolution_ramp) == (1, ((5, 176), (6, 192)))


def test_a_net_without_a_head_gets_one_and_it_is_said(lab: Path) -> None:
    opened = Lab(lab)
    made, note = config.with_head(opened.spec("mobilenetv3_small@s16"), 7)
    assert made.head is not None and (made.head.kind, made.head.out) == ("classifier", 7)
    assert "no head" in note


def test_several_machines_need_an_address() -> None:
    with pytest.raises(BblabError, match="need the first one's address"):
        Machines(2, 0, "")
    line = command(Path("/r"), 4, Machines(2, 1, "10.0.0.1:29500"))
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", "--nproc-per-node=4"} <= set(line)
    assert "bblab.pretraining.run" in command(Path("/r"), 1, Machines())


def test_a_training_imports_nothing_from_the_folder_one_stands_in() -> None:
    assert environment(1)["PYTHONSAFEPATH"] == "1"


# ---------------------------------------------------------------------------------------------- records


def test_a_line_that_a_kill_cut_off_is_skipped_and_closed(tmp_path: Path) -> None:
    record.append(tmp_path, "epoch", epoch=1, train_loss=2.0)
    with (tmp_path / record.RECORD).open("ab") as file:
        file.write(b'{"kind": "epoch", "epo')
    record.append(tmp_path, "epoch", epoch=2, train_loss=float("nan"))
    history = History.of(tmp_path)
    assert history.curve("epoch", "train_loss") == [2.0, None]


def test_an_epoch_that_was_trained_twice_counts_once(tmp_path: Path) -> None:
    for loss in (2.0, 1.5):
        record.append(tmp_path, "epoch", epoch=1, train_loss=loss, epoch_s=3.0)
    assert History.of(tmp_path).train_s == 3.0


def test_a_run_is_running_while_its_lock_is_held(tmp_path: Path) -> None:
    assert not record.is_running(tmp_path)
    held = record.hold(tmp_path)
    assert record.is_running(tmp_path)
    held.close()
    assert not record.is_running(tmp_path)


def test_pruning_keeps_the_newest_and_what_they_need(tmp_path: Path) -> None:
    for name in ("epoch_1.pth", "epoch_2.pth", "epoch_3.pth", "epoch_10.pth", "epoch_2_iter_5.pth", "best.pth"):
        (tmp_path / name).write_bytes(b"x")
    checkpoints.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pth", "epoch_10.pth", "epoch_3.pth"]


def test_no_room_for_the_checkpoints_is_known_before(tmp_path: Path) -> None:
    with pytest.raises(BblabError, match="MB free; this run needs"):
        checkpoints.check_room(tmp_path, 10**13, keep=2, has_ema=True, moments=1)


def test_wilsons_interval_of_all_right_does_not_reach_down_to_nothing() -> None:
    low, high = card.interval(100.0, 360)
    # n / (n + z²) with z = 1.96: 360 / 363.84
    assert low == pytest.approx(100 * 360 / (360 + 1.959964**2), rel=1e-6) and high == 100.0


@pytest.fixture
def ended(lab: Path) -> Callable[..., Path]:
    """A run folder with a hand-written record."""

    def make(name: str, accuracies: list[float], status: str | None = record.DONE) -> Path:
        folder = lab / "runs" / name
        folder.mkdir(parents=True)
        (folder / record.PLAN).write_text(json.dumps(plan_of(code_version="v").to_json()))
        record.append(folder, "start", device="cpu", versions={})
        for epoch, value in enumerate(accuracies, 1):
            record.append(
                folder, "epoch", epoch=epoch, train_loss=3.0 / epoch, lr=0.1, epoch_s=2.0, images=1000,
                images_per_s=500.0, wait_share=0.25, px=32, bad_images=0,
            )  # fmt: skip
            record.append(folder, "val", epoch=epoch, val_s=1.0, top1_percent=value)
        if status:
            record.append(folder, "end", status=status, message="why")
        return folder

    return make


def test_a_run_that_ended_unseen_is_stored_by_the_next_command_once(lab: Path, ended: Callable[..., Path]) -> None:
    pytest.importorskip("matplotlib")
    folder = ended("crashed", [50.0, 60.5], status=None)
    opened = Lab(lab)
    (run_id,) = training.sweep(opened)
    assert training.sweep(opened) == []
    assert "crashed had ended unseen (killed)" in opened.notices[0] and "--resume" in opened.notices[0]
    with opened.notebook(read_only=True) as store:
        row = store.get(run_id)
        assert row.result["status"] == record.KILLED
        assert row.result["top1_percent"] == 60.5
        assert row.inputs["scaling"]["arithmetic"] == "0.5"
        assert store.samples(run_id)["top1_percent"] == (50.0, 60.5)
        assert store.samples(run_id)["train_loss"] == (3.0, 1.5)
        assert {hit.run.id for hit in store.find("60.5%")} == {run_id}
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_the_newest_unfinished_run_is_gone_on_with(lab: Path, ended: Callable[..., Path]) -> None:
    ended("done", [1.0])
    stopped = ended("stopped", [1.0], status=record.STOPPED)
    assert training._unfinished(Lab(lab), None) == stopped
    with pytest.raises(BblabError, match="no run of other"):
        training._unfinished(Lab(lab), "other")


def test_earlier_runs_give_their_curves_to_gates(lab: Path, ended: Callable[..., Path]) -> None:
    opened = Lab(lab)
    for name, values in (("one", [10.0, 50.0]), ("two", [20.0, 40.0])):
        training.ingest(opened, ended(name, values))
    found = training.curves(opened, RECIPE, "ab12")
    assert [c["accuracy"] for c in found] == [[20.0, 40.0], [10.0, 50.0]]
    assert training.curves(opened, RECIPE, "other data") == []
    assert training.curves(opened, replace(RECIPE, epochs=5), "ab12") == []


def test_the_card_says_what_was_trained_on_what_and_its_interval(ended: Callable[..., Path]) -> None:
    folder = ended("one", [90.0])
    record.append(folder, "result", top1_percent=90.0, forms_rel_diff=1e-6, forms_images=100, forms_other_answers=0)
    text = card.text(plan_of(), History.of(folder))
    low, high = card.interval(90.0, 100)
    assert f"90.00 % [{low:.1f}, {high:.1f}]" in text and "1000 training images in 2 classes" in text
    assert math.isclose(low, 82.56, abs_tol=0.01)  # Wilson, 90 of 100


# ---------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--data", "/nowhere"], "no data folder /nowhere"),
        (["--recipe", "digitz"], "did you mean 'digits'?"),
        (["--batch-size", "5000"], "a batch of 5000 is more than the 1437 training images"),
        (["--batch-size", "1"], "batch norm needs two images"),
        (["--gpus", "0"], "--gpus 0"),
        (["--accumulate", "0"], "--accumulate 0"),
        (["--epochs", "0"], "--epochs 0"),
        (["--freeze", "zzz"], "has no stage 'zzz'"),
        (["--weights", "/nowhere.safetensors"], "no file /nowhere.safetensors"),
        (["--stop-if", "loss is bad"], "is no condition"),
        (["--stop-if", "below the worst of 5 earlier runs at epoch 3"], "no earlier run of this recipe"),
        (["--lr-rule", "cubic"], "linear or sqrt"),
        (["--precision", "fp8"], "auto, fp32 or bf16"),
        (["--nodes", "2"], "need the first one's address"),
        (["--resume"], "is unfinished"),
        (["--resume", "--epochs", "3"], "--epochs cannot be changed"),
        (["--resume", "--run", "/nowhere"], "is no run"),
    ],
)
def test_mistakes_are_told_before_any_training(
    bblab: Callable[..., Any], spec_file: Callable[..., Path], argv: list[str], said: str
) -> None:
    pytest.importorskip("simplejpeg")
    pytest.importorskip("sklearn")
    ran = bblab("pretrain", spec_file(TINY, "tiny"), *argv)
    assert ran.code == 2
    assert said in ran.err.replace("\n", " ")


def test_without_a_spec_and_without_a_profile_it_asks_which(bblab: Callable[..., Any]) -> None:
    ran = bblab("pretrain")
    assert ran.code == 2 and "None was profiled in this lab yet" in ran.err


def test_the_spec_profiled_last_is_taken_as_it_was_then(
    lab: Path, spec_file: Callable[..., Path], bblab: Callable[..., Any]
) -> None:
    path = spec_file(TINY, "tiny")
    assert bblab("profile", path, "--no-latency").code == 0
    wanted = Lab(lab).spec(str(path)).spec_id
    path.unlink()
    found = training.chosen_spec(Lab(lab), None)
    assert (found.name, found.spec_id) == ("tiny", wanted)


def test_a_fused_net_is_refused_with_the_reason(bblab: Callable[..., Any], spec_file: Callable[..., Path]) -> None:
    pytest.importorskip("sklearn")
    rows = "\n".join(f"  s{i}: {{block: conv, out: 8, norm: false}}" for i in range(9))
    ran = bblab("pretrain", spec_file(f"stages:\n{rows}\nhead: {{block: classifier}}\n", "fused"))
    assert ran.code == 2
    assert "9 convolutions and no norm: it is a fused net" in ran.err and "all zeros" in ran.err


# ---------------------------------------------------------------------------------------------- what the opening says


def opening_of(
    opened: Lab, recipe: str | None = None, spec: str = "mobilenetv3_small", **wanted: Any
) -> tuple[Plan, str]:
    from bblab.cli.pretrain import opening

    made = training.plan(opened, opened.spec(spec), training.Wanted(recipe=recipe, **wanted))
    return made, "\n".join(opening(made))


@pytest.fixture
def opened(lab: Path) -> Lab:
    pytest.importorskip("sklearn")
    pytest.importorskip("mmpretrain")
    (lab / "arch_specs").mkdir()
    (lab / "arch_specs" / "tiny.yaml").write_text(TINY)
    for channels in (1, 2):
        (lab / "arch_specs" / f"c{channels}.yaml").write_text(f"input: [{channels}, 48, 48]\n{TINY}")
    return Lab(lab)


def test_the_steps_in_all_and_the_images_left_out_are_said(opened: Lab) -> None:
    made, text = opening_of(opened)
    assert "22 steps an epoch, 220 in all; 29 of 1,437 images (2 %) left out of each epoch" in text  # 22 x 64 = 1408
    made, text = opening_of(opened, batch_size=512, lr_rule="linear")
    assert (made.iterations, made.settings.keeps_last, made.left_out) == (3, True, 0)  # 2 x 512 + 413
    assert "3 steps an epoch, 30 in all; no image left out (each epoch's last batch: 413)" in text
    made, text = opening_of(opened, batch_size=1300)
    assert (made.iterations, made.left_out) == (1, 137)  # a tenth of a batch
    assert "1 step an epoch, 10 in all; 137 of 1,437 images (9.5 %) left out" in text


def test_a_last_batch_is_kept_where_it_is_half_a_batch_or_much_of_an_epoch() -> None:
    assert keeps_last_batch(1437, 512, 1)  # 413 of 512
    assert not keeps_last_batch(1437, 64, 1)  # 29 of 64, and 2 % of the epoch
    assert keeps_last_batch(1437, 1024, 1)  # 413 of 1024, and 29 % of the epoch
    assert not keeps_last_batch(1437, 1300, 1)  # 137 of 1300
    assert not keeps_last_batch(3, 2, 1)  # one image has no variance
    assert not keeps_last_batch(100, 128, 1)  # more than there is: refused elsewhere
    assert keeps_last_batch(1437, 256, 2)  # 719 in each process: 207 of 256
    assert iterations_per_epoch(1437, 256, 2, keeps_last=True) == 3


def test_few_steps_an_epoch_take_precise_statistics_and_say_by_which_rule(opened: Lab) -> None:
    made, text = opening_of(opened)  # momentum 0.1: 100 steps
    assert made.settings.precise_images == 1408  # 22 x 64
    assert "norm statistics from 1,408 training images before each validation" in text
    assert "settle in 100 steps (10 / momentum), an epoch has 22" in text
    made, text = opening_of(opened, batch_size=12)  # 119 of 12, and 9
    assert (made.iterations, made.settings.precise_images) == (120, 0) and "norm statistics" not in text


def test_the_warm_up_that_is_said_is_the_one_there_is(opened: Lab) -> None:
    made, text = opening_of(opened, "rank16", "tiny", epochs=3)  # 2 of 16 epochs: 0.375 of 3, of 2 steps each
    assert made.iterations == 2
    assert "no warm-up: 0.375 epochs of it would be less than 2 steps · then linear down to 0" in text
    assert [s["type"] for s in schedulers(made.recipe, made.iterations)] == ["LinearLR"]
    made, text = opening_of(opened, "rank16", "tiny", batch_size=64, lr_rule="linear")
    assert "warm-up from 3.13e-06 over 44 steps (2 epochs)" in text  # 0.5 x 64/1024 x 1e-4
    made, text = opening_of(opened, "mobilenetv3_600", "tiny", batch_size=64)
    assert "no warm-up · then × 0.973 every 44 steps (2 epochs)" in text and "down to" not in text


def test_a_ramp_that_does_not_fit_is_kept_or_its_loss_said(opened: Lab) -> None:
    made, text = opening_of(opened, "rank16", "tiny", epochs=2)
    assert made.recipe.resolutions_px == ((0, 160), (1, 192)) and "no room" not in text
    made, text = opening_of(opened, "rank16", "tiny", epochs=1)
    assert made.recipe.resolutions_px == ((0, 160),)
    assert "in 1 epoch there is no room for training at 192 px, which rank16 has" in text
    full = replace(RECIPE, epochs=16, resolution_ramp=((10, 176), (12, 192)), schedule="step", milestones=(8, 9, 15))
    short = training.shortened(full, 2)
    assert (short.resolution_ramp, short.milestones) == (((1, 192),), (1,))  # 8/8 and 9/8 are epoch 1, 15/8 the end
    assert training.lost(full, short) == [
        "in 2 epochs there is no room for training at 176 px, which r has",
        "in 2 epochs 1 of the 3 steps of r's learning rate remain",
    ]
    assert training.lost(full, training.shortened(full, 32)) == []


def test_the_linear_rule_names_the_root_for_optimizers_that_are_not_sgd(opened: Lab) -> None:
    for optimizer in ("lamb", "rmsprop", "adamw"):
        scaling = Scaling(0.008, 2048, 512, rule="linear", optimizer=optimizer)
        assert scaling.lr == 0.002  # linear all the same
        assert f"for {optimizer} the square root is usual: --lr-rule sqrt would make it 0.004" in scaling.advice
        assert Scaling(0.008, 2048, 512, rule="sqrt", optimizer=optimizer).advice == ""
    assert Scaling(0.5, 1024, 512, rule="linear").advice == ""
    _, text = opening_of(opened, "rsb_a3", "tiny", batch_size=128, lr_rule="linear")
    assert "--lr-rule sqrt would make it 0.002" in text  # 0.008 x √(128/2048) = 0.008 / 4


def test_an_average_that_outlasts_the_run_is_said(opened: Lab) -> None:
    _, text = opening_of(opened, "mobileone300", "tiny", epochs=2, batch_size=128)
    assert "weights averaged: 0.0005 of the new ones for each 256 images, 0.00025 for a step of 128" in text
    assert "99 % of it will still be the weights after the first step" in text  # 0.9995 ** (2 x 1437 / 256)


def test_grey_nets_are_trained_on_grey_pictures_and_others_refused(opened: Lab) -> None:
    made, text = opening_of(opened, spec="c1")
    built = config.build(made, Path("run"))
    assert "at 48 px, grey" in text
    # 0.299 R + 0.587 G + 0.114 B of ImageNet's means and deviations
    assert (built["data_preprocessor"]["mean"], built["data_preprocessor"]["std"]) == ([117.038], [57.53])
    with pytest.raises(BblabError, match=r"c2 takes 2 channels \(input: \[2, 48, 48\]\)"):
        opening_of(opened, spec="c2")


def test_a_seed_that_numpy_does_not_take_is_refused(opened: Lab) -> None:
    with pytest.raises(BblabError, match="--seed -1"):
        opening_of(opened, spec="tiny", seed=-1)


# ---------------------------------------------------------------------------------------------- going on


def test_damaged_checkpoints_are_named_and_the_one_before_is_taken(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for epoch in (1, 2, 3):
        value = {"meta": {"epoch": epoch}, "state_dict": {"w": torch.rand(5000)}, "optimizer": {}}
        facts = checkpoints.write(
            tmp_path / f"epoch_{epoch}.pth", lambda partial, value=value: torch.save(value, partial)
        )
        record.append(tmp_path, "checkpoint", epoch=epoch, batches=0, **facts)
    assert training.goes_on_from(tmp_path, plan_of()) == ["goes on from epoch_3.pth, after epoch 3 of 10"]

    def spoil(epoch: int) -> None:
        path = tmp_path / f"epoch_{epoch}.pth"
        content = bytearray(path.read_bytes())
        content[8000:12000] = bytes(4000)
        path.write_bytes(content)

    spoil(3)
    first, second = training.goes_on_from(tmp_path, plan_of())
    assert first.startswith("epoch_3.pth does not load as it was written (its sha256 is") and "record.jsonl" in first
    assert second == "the one before is taken: goes on from epoch_2.pth, after epoch 2 of 10"
    (tmp_path / record.RECORD).unlink()  # without the record the file's own checksums speak
    assert "the checksum of" in training.goes_on_from(tmp_path, plan_of())[0]
    spoil(2)
    spoil(1)
    with pytest.raises(BblabError, match=r"no checkpoint in .* can be gone on with"):
        training.goes_on_from(tmp_path, plan_of())


def test_a_run_without_a_checkpoint_says_that_it_begins_anew(tmp_path: Path) -> None:
    (said,) = training.goes_on_from(tmp_path, plan_of())
    assert said.endswith("has no checkpoint yet: begins with epoch 1")


def test_a_run_does_not_go_on_with_other_images(opened: Lab, tmp_path: Path) -> None:
    import shutil

    from bblab.pretraining import data
    from bblab.pretraining.run import write_plan
    from bblab.rooms import cache_dir

    images = shutil.copytree(data.digits(cache_dir()), tmp_path / "images")
    made, _ = opening_of(opened, "digits", "tiny", data=images)
    (tmp_path / "run").mkdir()
    write_plan(tmp_path / "run", made)
    first, second, *_ = (images / "train" / "3").iterdir()
    first.write_bytes(first.read_bytes()[:-1])
    same = training._with_data(made, training.Wanted())  # as many of the same classes: said, not refused
    assert same.data["hash"] != made.data["hash"]
    second.unlink()
    with pytest.raises(BblabError, match=r"not the data that this run began with: 1,436 \+ 360 images"):
        training.resume(opened, tmp_path / "run", wanted=training.Wanted())
