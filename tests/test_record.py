"""bblab record: results from outside are stored once, found again by value, and answer a rule to stop by."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bblab.errors import BblabError
from bblab.lab import Lab
from bblab.store import NewRun

Command = Callable[..., Any]  # conftest's Ran
SPEC = "mobileone_k5_se"
TABLE = """| Tracker Name | Accuracy | Robustness | Lost Number |  EAO  |
|checkpoint_e37|  0.565   |   0.440    |    94.0     | 0.265 |
|checkpoint_e36|  0.560   |   0.460    |    98.0     | 0.255 |
"""


def training(losses: dict[int, float]) -> str:
    return "".join(
        f"[2024-12-07 23:{e:02d}:02,081-rk0-train.py#249] Epoch: [{e}][0/20] lr: 0.010000\n"
        "\tbatch_time: 0.25 (0.25)\tdata_time: 0.0 (0.0)\n"
        f"\tcls_loss: {v:.6f} ({v:.6f})\ttotal_loss: {v:.6f} ({v:.6f})\n"
        for e, v in losses.items()
    )


FALLING = {e: 1 / e for e in range(1, 11)}


@pytest.fixture
def train_log(tmp_path: Path) -> Path:
    path = tmp_path / "train.log"
    path.write_text(training(FALLING))
    return path


def rows(lab: Path, kind: str) -> list[Any]:
    with Lab(lab).notebook(read_only=True) as store:
        return store.runs(kind=kind)


def test_a_log_and_scores_become_rows_that_are_found_by_value(bblab: Command, lab: Path, train_log: Path) -> None:
    ran = bblab("record", SPEC, "--log", train_log, "--metric", "vot2018_eao@9=0.265", "--note", "third try")
    assert (ran.code, ran.err) == (0, "")
    assert "epochs 1 to 10" in ran.out and "vot2018_eao  0.265  higher is better      9" in ran.out
    (run,) = rows(lab, "tracker_training")
    assert run.inputs["trainer"] == "pysot" and run.inputs["logs"][0]["path"] == str(train_log)
    assert run.inputs["logs"][0]["size_bytes"] == train_log.stat().st_size
    assert [p["total_loss"] for p in run.result["curve"]][:2] == [1.0, 0.5]
    assert run.result["curve"][3] == {
        "epoch": 4, "lr": 0.01, "cls_loss": 0.25, "total_loss": 0.25, "total_loss last": 0.25, "batch_time_s": 0.25,
        "iteration": 20, "is_complete": True,
    }  # fmt: skip
    (score,) = rows(lab, "tracker_score")
    told = {k: score.result[k] for k in ("metric", "value", "epoch", "higher_is_better", "split")}
    assert told == {
        "metric": "vot2018_eao", "value": 0.265, "epoch": 9, "higher_is_better": True, "split": "test"
    }  # fmt: skip
    assert "result.curve[6].total_loss" in bblab("find", "0.142857").out  # 1/7
    assert "tracker_score" in bblab("find", "0.265").out and "tracker_training" in bblab("find", "third try").out
    listing = bblab("runs").out
    assert "vot2018_eao 0.265 (higher is better), epoch 9" in listing
    assert "pysot log, epoch 10, total_loss 0.1000" in listing
    shown = bblab("show", run.id).out
    assert "[9]     10  0.01" in shown


def test_recording_a_log_again_adds_nothing(bblab: Command, lab: Path, train_log: Path) -> None:
    args = ("record", SPEC, "--log", train_log, "--metric", "vot2018_eao=0.265")
    bblab(*args)
    ran = bblab(*args)
    assert ran.code == 0
    assert "this log is run 1 already: no epoch is new" in ran.out
    assert "known already, not stored again: run 2" in ran.out and "nothing new, nothing stored" in ran.out
    assert len(rows(lab, "tracker_training")) == len(rows(lab, "tracker_score")) == 1
    moved = train_log.rename(train_log.with_name("moved.log"))  # it is the content that counts
    assert "this log is run 1 already" in bblab("record", SPEC, "--log", moved).out
    later = bblab("record", SPEC, "--log", moved, "--metric", "vot2018_eao@9=0.265")  # the score of another epoch
    assert "stored as run 3 " in later.out
    other = bblab("record", "mobileone_k5", "--log", moved)
    assert (
        other.code == 2 and "this log is recorded as run 1, of mobileone_k5_se" in other.err and "--force" in other.err
    )
    forced = bblab("record", "mobileone_k5", "--log", moved, "--force")
    assert "recorded as run 1, of mobileone_k5_se" in forced.out and "stored as run 4" in forced.out


def test_a_grown_log_adds_a_row_that_names_the_one_before(bblab: Command, lab: Path, train_log: Path) -> None:
    whole = train_log.read_text()
    train_log.write_text(training({e: v for e, v in FALLING.items() if e <= 7}))
    bblab("record", SPEC, "--log", train_log)
    train_log.write_text(whole)
    ran = bblab("record", SPEC, "--log", train_log)
    assert "goes on where run 1 ended; new since then: 3 epochs, 8 to 10" in ran.out
    newest, first = rows(lab, "tracker_training")
    assert (newest.inputs["continues"], newest.result["num_epochs"], first.result["num_epochs"]) == (1, 10, 7)
    train_log.write_text(whole + "[2024-12-07 23:59:59,081-rk0-log_helper.py#105] Progress: 380 / 187500 [0%]\n")
    assert "this log is run 2 already" in bblab("record", SPEC, "--log", train_log).out


def test_a_resumed_training_in_two_files_replaces_what_was_trained_again(
    bblab: Command, lab: Path, train_log: Path
) -> None:
    bblab("record", SPEC, "--log", train_log)
    second = train_log.with_name("resumed.log")
    second.write_text(training({9: 0.05}))
    ran = bblab("record", SPEC, "--log", train_log, "--log", second)
    assert "epochs 9 to 10 are of the later pass" in ran.out
    assert "goes on where run 1 ended; its last epochs were trained again" in ran.out
    newest = rows(lab, "tracker_training")[0]
    assert [p["total_loss"] for p in newest.result["curve"]][-2:] == [0.125, 0.05]


def test_a_rule_to_stop_by_is_answered_by_word_and_exit_code(bblab: Command, lab: Path, train_log: Path) -> None:
    def ask(rule: str) -> Any:
        return bblab("record", SPEC, "--log", train_log, "--stop-if", rule)

    stop = ask("total_loss > 0.15 at epoch 5")
    assert stop.code == 1
    assert "STOP: total_loss is 0.2 at epoch 5 (stop if total_loss > 0.15 at epoch 5)" in stop.out
    assert rows(lab, "tracker_training")[0].result["gates"][0]["answer"] == "stop"
    assert ask("total_loss > 0.25 at epoch 5").code == 0
    assert "not yet: the log is complete as far as epoch 10" in ask("total_loss > 0.25 at epoch 30").out
    assert ask("iou > 0.25 at epoch 3").code == 2
    rules = ("--stop-if", "loss > 1 at epoch 2", "--stop-if", "epoch 3 and cls_loss > 0")
    answers = json.loads(bblab("record", SPEC, "--log", train_log, *rules, "--json", "-").out)["gates"]
    assert [a["answer"] for a in answers] == ["go_on", "stop"]


def test_a_table_needs_its_data_and_its_rows(bblab: Command, lab: Path, tmp_path: Path) -> None:
    table = tmp_path / "eval.txt"
    table.write_text(TABLE)
    asked = bblab("record", SPEC, "--log", table)
    assert asked.code == 2 and "say it: --benchmark vot2018" in asked.err
    near = bblab("record", SPEC, "--log", table, "--benchmark", "vot2081")
    assert near.code == 2 and "did you mean 'vot20" in near.err
    ran = bblab("record", SPEC, "--log", table, "--benchmark", "vot18")
    assert ran.code == 0 and "the best of them was chosen on the data that it is measured on" in ran.out
    found = {(r.result["metric"], r.result["epoch"]): r.result for r in rows(lab, "tracker_score")}
    assert len(found) == 8
    assert found["vot2018_eao", 37]["value"] == 0.265 and found["vot2018_eao", 37]["rows_in_table"] == 2
    assert found["vot2018_robustness", 36]["higher_is_better"] is False
    assert ran.out.index("vot2018_eao") < ran.out.index("vot2018_accuracy")  # what the benchmark ranks by


def test_of_several_trackers_in_a_table_one_is_named(bblab: Command, lab: Path, tmp_path: Path) -> None:
    table = tmp_path / "VOT2019.txt"  # the file's name says the data
    table.write_text(TABLE.replace("checkpoint_e37", "SiamRPN++").replace("checkpoint_e36", "mine"))
    asked = bblab("record", SPEC, "--log", table)
    assert asked.code == 2 and "2 trackers: SiamRPN++, mine" in asked.err
    missing = bblab("record", SPEC, "--log", table, "--tracker", "mint")
    assert missing.code == 2 and "did you mean 'mine'" in missing.err
    assert bblab("record", SPEC, "--log", table, "--tracker", "mine", "--epoch", 50).code == 0
    found = {r.result["metric"]: r.result for r in rows(lab, "tracker_score")}
    assert (found["vot2019_eao"]["value"], found["vot2019_eao"]["epoch"]) == (0.255, 50)


def test_a_training_and_its_table_may_stand_in_one_file(bblab: Command, lab: Path, train_log: Path) -> None:
    train_log.write_text(train_log.read_text() + "$ eval.py --dataset VOT2018\n" + TABLE)
    assert bblab("record", SPEC, "--log", train_log).code == 0
    assert len(rows(lab, "tracker_training")) == 1 and len(rows(lab, "tracker_score")) == 8


def test_an_export_is_named_by_its_id_and_must_be_of_the_spec(bblab: Command, lab: Path, train_log: Path) -> None:
    without = bblab("record", SPEC, "--log", train_log, "--export", "3fa9c1")
    assert without.code == 2 and "no notebook yet" in without.err
    with Lab(lab).notebook() as store:
        ours = Lab(lab).spec(SPEC)
        for spec_id, export_id in ((ours.spec_id, "3fa9c1d2"), ("0123456789ab", "77777777")):
            store.add_many([NewRun("export", spec_id, "net", "", {}, {"export_id": export_id})])
        store.add_many([NewRun("profile", ours.spec_id, "net", "", {}, {})])
    for said in ("3fa9c1d2", "3fa9", "1"):
        assert bblab("record", SPEC, "--metric", f"vot2018_eao=0.{len(said)}", "--export", said).code == 0
    assert {r.inputs["export"] for r in rows(lab, "tracker_score")} == {1}
    wrong = bblab("record", SPEC, "--log", train_log, "--export", "77777777")
    assert wrong.code == 2 and "is of net (0123456789ab), not of mobileone_k5_se" in wrong.err
    profile = bblab("record", SPEC, "--log", train_log, "--export", "3")
    assert profile.code == 2 and "run 3 is a profile, not an export" in profile.err and "3fa9c1d2 (net)" in profile.err
    assert "no export 'beef'" in bblab("record", SPEC, "--log", train_log, "--export", "beef").err


def test_a_metric_of_ones_own_is_accepted_with_what_is_not_known(bblab: Command, lab: Path) -> None:
    ran = bblab("record", SPEC, "--metric", "jitter_px=3.5")
    assert ran.code == 0
    assert "direction unknown" in ran.out and "jitter_px:higher=3.5 or jitter_px:lower=3.5 says it" in ran.out
    bblab("record", SPEC, "--metric", "jitter_px:lower=3.2")
    newest, first = rows(lab, "tracker_score")
    assert (newest.result["higher_is_better"], first.result["higher_is_better"]) == (False, None)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "nothing to record"),
        (("--metric", "vot2018_eao"), "is not NAME=VALUE"),
        (("--metric", "=3"), "is not NAME=VALUE"),
        (("--metric", "vot2018_eao=x"), "is no number"),
        (("--metric", "vot2018_eao@x=0.2"), "'x' is no epoch"),
        (("--metric", "foo:better=0.2"), "'better' says no direction"),
        (("--metric", "vot2018_eoa=0.2"), "did you mean 'vot2018_eao'"),
        (("--metric", "lasot_auc=53.8"), "lasot_auc=53.8% for percent"),
        (("--metric", "vot2018_eao=0.2", "--stop-if", "loss > 1 at epoch 3"), "asks for a log"),
        (("--log", "/nonexistent.log"), "No such file"),
        (("--log", "/"), "Is a directory"),
        (("--log", "LOG", "--stop-if", "never"), "is no rule to stop by"),
    ],
)
def test_mistakes_are_told_and_nothing_is_stored(
    bblab: Command, lab: Path, train_log: Path, args: tuple[str, ...], said: str
) -> None:
    ran = bblab("record", SPEC, *[str(train_log) if a == "LOG" else a for a in args])
    assert ran.code in (1, 2) and said in ran.err
    assert not (lab / "lab.sqlite").exists()


def test_one_wrong_score_among_right_ones_stores_none(bblab: Command, lab: Path, train_log: Path) -> None:
    ran = bblab("record", SPEC, "--log", train_log, "--metric", "vot2018_eao=0.2", "--metric", "lasot_auc=7")
    assert ran.code == 2 and not (lab / "lab.sqlite").exists()


def test_json_holds_what_the_screen_says_and_nothing_else(bblab: Command, train_log: Path) -> None:
    ran = bblab("record", SPEC, "--log", train_log, "--metric", "vot2018_eao=0.265", "--json", "-")
    told = json.loads(ran.out)
    assert (told["training_id"], told["score_ids"], told["new_epochs"]) == (1, [2], list(range(1, 11)))
    assert told["training"]["total"] == "total_loss" and told["scores"][0]["value"] == 0.265


def test_a_diverged_training_says_so(bblab: Command, lab: Path, train_log: Path) -> None:
    train_log.write_text(training({1: 0.5, 2: float("nan")}))
    ran = bblab("record", SPEC, "--log", train_log, "--stop-if", "total_loss > 9 at epoch 2")
    assert ran.code == 1 and "STOP: total_loss is no number any more at epoch 2" in ran.out
    assert rows(lab, "tracker_training")[0].result["curve"][1]["total_loss"] is None
    assert "total_loss no number" in bblab("runs").out


def test_two_trainings_are_compared(bblab: Command, train_log: Path) -> None:
    bblab("record", SPEC, "--log", train_log)
    train_log.write_text(training({e: v + 0.1 for e, v in FALLING.items()}))
    bblab("record", SPEC, "--log", train_log)
    ran = bblab("diff", 1, 2)
    assert ran.code == 0 and "result.curve[9].total_loss" in ran.out


def test_the_lab_records_without_the_command(lab: Path, train_log: Path) -> None:
    done = Lab(lab).record(
        SPEC, logs=[train_log], scores=["got10k_val_ao=60.4%"], stop_if=["total loss > 0.3 from epoch 3"]
    )
    assert done.must_stop and done.verdicts[0].epoch == 3
    assert [(s.metric.name, s.value) for s in done.scores] == [("got10k_val_ao", 0.604)]
    with pytest.raises(BblabError):
        Lab(lab).record(SPEC)


def test_a_long_curve_does_not_hide_other_runs_from_find(bblab: Command, lab: Path, train_log: Path) -> None:
    bblab("record", SPEC, "--metric", "vot2018_eao=0.5")
    train_log.write_text(training(dict.fromkeys(range(1, 101), 0.5)))
    bblab("record", SPEC, "--log", train_log)
    ran = bblab("find", "0.5")
    assert ran.out.count("result.curve") == 3 and "result.value" in ran.out
    # 100 epochs, each with cls_loss, total_loss and its last value, less the three that are shown
    assert "and 297 more such values in run 2" in ran.out


def test_a_close_call_is_said(bblab: Command, train_log: Path) -> None:
    # Two prints of an epoch of 40: their mean is 0.25, the bracket of the last one 0.35.
    line = "Epoch: [1][{i}/40] lr: 0.01\n\ttotal_loss: {v} ({m})\n"
    train_log.write_text(line.format(i=20, v=0.3, m=0.3) + line.format(i=0, v=0.2, m=0.35))
    ran = bblab("record", SPEC, "--log", train_log, "--stop-if", "total_loss > 0.3 at epoch 1")
    assert ran.code == 0 and "a close call: total_loss was 0.35 as printed last" in ran.out


# ---- the hand-over that was trained


def handed_over(bblab: Command, folder: Path, spec: str, *edits: str) -> tuple[Path, str]:
    """A hand-over's folder with a log where its trainer may write it, and the export's ID."""
    sets = [a for e in edits for a in ("--set", e)]
    ran = bblab("export", spec, "--for", "nanotrack", "--out", folder, "--json", "-", *sets)
    assert ran.code == 0, ran.err
    log = folder / "logs" / "2024" / "train.log"
    log.parent.mkdir(parents=True)
    log.write_text(training(FALLING))
    return log, json.loads(ran.out)["export_id"]


def test_a_log_in_a_hand_overs_folder_needs_no_spec_and_no_export(bblab: Command, lab: Path, tmp_path: Path) -> None:
    log, export_id = handed_over(bblab, tmp_path / "a", "nanotrack")
    ran = bblab("record", "--log", log, "--metric", "vot2018_eao=0.31")
    assert (ran.code, ran.err) == (0, "")
    (run,) = rows(lab, "tracker_training")
    (score,) = rows(lab, "tracker_score")
    assert (run.name, run.spec_id) == ("nanotrack", Lab(lab).spec("nanotrack").spec_id)
    assert [r.inputs["export_id"] for r in (run, score)] == [export_id, export_id]
    assert run.inputs["export"] == score.inputs["export"] == rows(lab, "export")[0].id
    assert "already" in bblab("record", "nanotrack", "--log", log).out  # named, it is the same


def test_a_log_of_another_net_is_refused_under_a_spec_in_words(bblab: Command, lab: Path, tmp_path: Path) -> None:
    log, export_id = handed_over(bblab, tmp_path / "a", "nanotrack")
    wrong = bblab("record", "mobileone_k5_se", "--log", log)
    assert wrong.code == 2 and "the log is not of mobileone_k5_se" in wrong.err
    assert "says that nanotrack" in wrong.err and "leave SPEC away" in wrong.err
    edited = bblab("record", "nanotrack", "--set", "stage2.1.kernel=5", "--log", log)
    assert edited.code == 2 and "nanotrack as it is now" in edited.err
    handed_over(bblab, tmp_path / "b", "mobileone_k5_se")
    other = rows(lab, "export")[0]
    export = bblab("record", "--log", log, "--export", other.id)
    assert export.code == 2 and "not of nanotrack" in export.err
    assert bblab("record", "--log", log, "--export", export_id).code == 0
    assert bblab("record", "--log", tmp_path / "none.log").code == 2
    nothing = bblab("record", "--metric", "vot2018_eao=0.3")
    assert nothing.code == 2 and "which net was trained?" in nothing.err
    assert len(rows(lab, "tracker_training")) == 1


def test_what_was_trained_is_recorded_though_the_spec_was_edited_since(
    bblab: Command, lab: Path, tmp_path: Path
) -> None:
    assert bblab("new", "mine", "--like", "nanotrack").code == 0
    log, _ = handed_over(bblab, tmp_path / "a", "mine")
    trained = Lab(lab).spec("mine").spec_id
    path = lab / "arch_specs" / "mine.yaml"
    path.write_text(path.read_text().replace("width: 88", "width: 96"))
    assert Lab(lab).spec("mine").spec_id != trained
    refused = bblab("record", "mine", "--log", log)
    assert refused.code == 2 and "mine as it is now" in refused.err
    assert bblab("record", "--log", log).code == 0
    (run,) = rows(lab, "tracker_training")
    assert (run.name, run.spec_id) == ("mine", trained)


def test_the_log_of_a_smoke_run_is_no_training(bblab: Command, lab: Path, tmp_path: Path) -> None:
    log, _ = handed_over(bblab, tmp_path / "a", "nanotrack")
    smoke = tmp_path / "a" / "runs" / "smoke"
    (smoke / "logs").mkdir(parents=True)
    shutil.copyfile(tmp_path / "a" / "manifest.json", smoke / "manifest.json")
    shutil.copyfile(log, smoke / "logs" / "logs.txt")
    ran = bblab("record", "--log", smoke / "logs" / "logs.txt")
    assert ran.code == 2 and "smoke run" in ran.err and "runs/1" in ran.err
    assert rows(lab, "tracker_training") == []


def test_two_hand_overs_are_two_trainings(bblab: Command, lab: Path, tmp_path: Path) -> None:
    """Also where a trainer wrote both into one file: the second then begins with the first's lines."""
    first, _ = handed_over(bblab, tmp_path / "a", "nanotrack")
    second, _ = handed_over(bblab, tmp_path / "b", "nanotrack", "stage2.1.kernel=5")
    both = bblab("record", "--log", first, "--log", second)
    assert both.code == 2 and "the logs are of two hand-overs" in both.err and "record each" in both.err
    copy = tmp_path / "copy" / "logs" / "train.log"  # the same folder once more, trained again
    copy.parent.mkdir(parents=True)
    copy.write_text(training(FALLING).replace("2024", "2025"))
    (tmp_path / "copy" / "manifest.json").write_bytes((tmp_path / "a" / "manifest.json").read_bytes())
    twice = bblab("record", "--log", first, "--log", copy)
    assert twice.code == 2 and "two trainings, in two folders" in twice.err
    bblab("record", "--log", first)
    later = {e: v / 2 for e, v in FALLING.items()}
    second.write_text(training(FALLING) + training(later))
    ran = bblab("record", "--log", second)
    assert ran.code == 0 and "the file begins with what is recorded as run" in ran.out
    assert "goes on" not in ran.out and "resumed" not in ran.out
    newest, oldest = rows(lab, "tracker_training")
    assert "continues" not in newest.inputs and newest.spec_id != oldest.spec_id
    assert [p["total_loss"] for p in newest.result["curve"]][:2] == [0.5, 0.25]
    second.write_text(training({**FALLING, 11: 0.05}))  # goes on where another net's training ended
    refused = bblab("record", "--log", second)
    assert refused.code == 2 and "the log begins with what is recorded as run" in refused.err


def test_a_training_that_begins_anew_in_the_same_file_is_not_a_resumed_one(
    bblab: Command, lab: Path, train_log: Path
) -> None:
    bblab("record", SPEC, "--log", train_log)
    train_log.write_text(train_log.read_text() + training({1: 0.9, 2: 0.8, 3: 0.7}))
    ran = bblab("record", SPEC, "--log", train_log)
    assert (
        ran.code == 0 and "two trainings: one begins anew behind epochs 1 to 10; only the later one is read" in ran.out
    )
    newest, _ = rows(lab, "tracker_training")
    assert "continues" not in newest.inputs and [p["epoch"] for p in newest.result["curve"]] == [1, 2, 3]


def test_a_manifest_of_somebody_else_is_not_read(bblab: Command, lab: Path, train_log: Path) -> None:
    manifest = train_log.with_name("manifest.json")
    for text in ("{", "[]", '{"format": "bblab-export-1"}', '{"format": 3, "spec": []}'):
        manifest.write_text(text)
        assert bblab("record", SPEC, "--log", train_log, "--json", "-").code == 0
    manifest.write_text('{"format": "bblab-export-1", "trainer": {}, "spec": null}')  # ours, and damaged
    ran = bblab("record", SPEC, "--log", train_log)
    assert ran.code == 2 and "does not say what was trained" in ran.err
    assert len(rows(lab, "tracker_training")) == 1
