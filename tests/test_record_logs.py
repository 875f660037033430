"""Reading trainers' logs, tables of scores, names of metrics and rules to stop by: values, not screens."""

from __future__ import annotations

import hashlib
import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from bblab.errors import BblabError
from bblab.tracking import gates, logs, metrics

Write = Callable[..., Path]

# As each trainer's code prints them: two prints of one epoch of 40 iterations.
PYSOT = """[2024-12-07 23:40:02,081-rk0-train.py#249] Epoch: [{e}][20/40] lr: 0.010000
\tbatch_time: 0.255338 (0.250000)\tdata_time: 0.000201 (0.000221)
\tcls_loss: 0.200000 (0.300000)\tloc_loss: 0.100000 (0.200000)
\ttotal_loss: 0.400000 (0.500000)\t

[2024-12-07 23:40:02,081-rk0-log_helper.py#105] Progress: 20 / 80 [25%], Speed: 0.256 s/iter, ETA 0:13:17 (D:H:M)

[2024-12-07 23:41:02,081-rk0-train.py#249] Epoch: [{e}][0/40] lr: 0.010000
\tbatch_time: 0.255338 (0.350000)\tdata_time: 0.000201 (0.000221)
\tcls_loss: 0.100000 (0.200000)\tloc_loss: 0.100000 (0.200000)
\ttotal_loss: 0.200000 (0.400000)\t
"""
TRACKIT = """2020-08-01 10:00:00,000 Epoch: [{e}][20/40] lr: 0.0050000\t Batch Time: 0.250s \t Data Time:0.010s \t \
CLS_ORI Loss:0.30000 \t CLS_ALIGN Loss:0.20000 \t REG Loss:0.10000 \t Loss:0.62000
2020-08-01 10:00:00,000 Progress: 20 / 2000 [1%], Speed: 0.250 s/iter, ETA 0:00:08 (D:H:M)
2020-08-01 10:01:00,000 Epoch: [{e}][40/40] lr: 0.0050000\t Batch Time: 0.350s \t Data Time:0.010s \t \
CLS_ORI Loss:0.20000 \t CLS_ALIGN Loss:0.10000 \t REG Loss:0.10000 \t Loss:0.42000
"""
STARK = """[train: {e}, 20 / 40] FPS: 9.6 (24.4)  ,  DataTime: 0.013 (0.014)  ,  Loss/total: 0.62000  ,  IoU: 0.50000
[train: {e}, 40 / 40] FPS: 9.6 (24.4)  ,  DataTime: 0.013 (0.014)  ,  Loss/total: 0.42000  ,  IoU: 0.60000
[val: {e}, 10 / 10] FPS: 9.6 (24.4)  ,  Loss/total: 0.70000  ,  IoU: 0.40000
"""
SIAMFC = "Epoch: {e} [20/40] Loss: 0.62000\nEpoch: {e} [40/40] Loss: 0.22000\n"
MMENGINE = """2022-04-20 18:00:00,000 - mmtrack - INFO - Epoch [{e}][20/40]\tlr: 1.000e-02, eta: 1 day, 2:03:04, \
time: 0.500, data_time: 0.100, memory: 3000, loss_rpn_cls: 0.3000, loss: 0.6200
2022-04-20 18:00:00,000 - mmtrack - INFO - Epoch [{e}][40/40]\tlr: 1.000e-02, eta: 1 day, 2:03:04, \
time: 0.500, data_time: 0.100, memory: 3000, loss_rpn_cls: 0.1000, loss: 0.2200
"""
VIDEO_ANALYST = (
    "epoch {e}, lr: 1.4e-04, cls: 0.400, ctr: 0.159, reg: 0.140, iou: 0.035, data: 3.5e-02, fwd: 1.0e-01, "
    " max mem: 8231.2M:  50%|█████     | 20/40 [00:10<00:10,  2.00it/s]\r"
    "epoch {e}, lr: 1.4e-04, cls: 0.200, ctr: 0.159, reg: 0.140, iou: 0.035, data: 3.5e-02, fwd: 1.0e-01, "
    " max mem: 8231.2M: 100%|██████████| 40/40 [00:20<00:00,  2.00it/s]\n"
)


@pytest.fixture
def log(tmp_path: Path) -> Write:
    def write(text: str | bytes, name: str = "train.log") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def epochs(pattern: str, *numbers: int) -> str:
    return "".join(pattern.replace("{e}", str(e)) for e in numbers)


@pytest.mark.parametrize(
    ("pattern", "trainer", "name", "mean", "last", "lr"),
    [
        # 40 iterations have no whole window of 100: the mean of what is printed, (0.4 + 0.2) / 2; last: in brackets.
        (PYSOT, "pysot", "total_loss", 0.3, 0.4, 0.01),
        # A mean since the epoch's start: the last line is the epoch's.
        (TRACKIT, "trackit", "Loss", 0.42, 0.42, 0.005),
        (TRACKIT, "trackit", "CLS_ORI Loss", 0.2, 0.2, 0.005),
        (STARK, "stark", "Loss/total", 0.42, 0.42, None),
        (STARK, "stark", "val Loss/total", 0.7, 0.7, None),
        (STARK, "stark", "IoU", 0.6, 0.6, None),
        # Single or interval losses: their mean.
        (SIAMFC, "siamfc", "Loss", 0.42, 0.22, None),
        (MMENGINE, "mmengine", "loss", 0.42, 0.22, 0.01),
        (VIDEO_ANALYST, "video_analyst", "cls", 0.3, 0.2, 1.4e-4),
    ],
)
def test_each_trainer_is_read_as_it_prints(
    log: Write, pattern: str, trainer: str, name: str, mean: float, last: float, lr: float | None
) -> None:
    found = logs.read([log(epochs(pattern, 1, 2))])
    assert found.trainer == trainer
    assert [e.epoch for e in found.epochs] == [1, 2] and found.last_complete == 2
    assert found.notes == ()
    for e in found.epochs:
        assert (e.iteration, e.iterations, e.num_lines) == (40, 40, 2)
        assert e.means[name] == pytest.approx(mean) and e.lasts[name] == pytest.approx(last)
        assert e.lr == lr


def test_times_and_speeds_are_no_losses(log: Write) -> None:
    assert logs.read([log(epochs(PYSOT, 1))]).names == ("cls_loss", "loc_loss", "total_loss")
    assert logs.read([log(epochs(MMENGINE, 1))]).names == ("loss_rpn_cls", "loss")
    assert logs.read([log(epochs(STARK, 1))]).names == ("Loss/total", "IoU", "val Loss/total", "val IoU")
    (epoch,) = logs.read([log(epochs(PYSOT, 1))]).epochs
    assert epoch.batch_time_s == pytest.approx((0.25 + 0.35) / 2)


def test_the_total_is_known_by_its_name(log: Write) -> None:
    totals = {p: logs.read([log(epochs(p, 1))]).total for p in (PYSOT, TRACKIT, STARK, SIAMFC, MMENGINE, VIDEO_ANALYST)}
    assert list(totals.values()) == ["total_loss", "Loss", "Loss/total", "Loss", "loss", None]


def test_a_line_pasted_from_a_terminal_is_read(log: Write) -> None:
    line = (
        "Epoch: [50][0/18750] lr: 0.000500 … cls_loss: 0.008570 (0.029082) loc_loss: 0.190246 (0.161141) "
        "total_loss: 0.198816 (0.190224)"
    )
    (epoch,) = logs.read([log(line)]).epochs
    # [0/18750] is the end of the epoch, where pysot prints the iteration modulo its number.
    assert (epoch.epoch, epoch.iteration, epoch.lr) == (50, 18750, 0.0005)
    assert epoch.lasts == {"cls_loss": 0.029082, "loc_loss": 0.161141, "total_loss": 0.190224}


def test_pysots_windows_of_an_epoch_are_averaged_without_overlap(log: Write) -> None:
    # Windows of 100: at 300 (201..300), 200, 100 lie in the epoch and share nothing; 0.1, 0.2, 0.9 have the mean 0.4.
    # At 40 the window still holds iterations of the epoch before, at 260 it overlaps the one at 300.
    means = {40: 9.0, 100: 0.9, 200: 0.2, 260: 9.0, 300: 0.1}
    text = "".join(f"Epoch: [2][{i % 300}/300] lr: 0.01\n\ttotal_loss: 5.0 ({m})\t\n" for i, m in means.items())
    (epoch,) = logs.read([log(text)]).epochs
    assert epoch.means["total_loss"] == pytest.approx(0.4)


def test_a_resumed_training_replaces_the_epochs_it_repeats(log: Write) -> None:
    first = log(epochs(SIAMFC, 1, 2, 3, 4), "a.log")
    second = log(epochs(SIAMFC.replace("0.22", "0.12"), 3), "b.log")
    found = logs.read([first, second])
    assert [e.epoch for e in found.epochs] == [1, 2, 3]  # 4 belonged to the abandoned pass
    assert [e.lasts["Loss"] for e in found.epochs] == [0.22, 0.22, 0.12]
    assert found.notes == (
        "the training was resumed: epochs 3 to 4 are of the later pass, the earlier one is left out",
    )
    same_file = logs.read([log(first.read_bytes() + second.read_bytes())])
    assert [e.means for e in same_file.epochs] == [e.means for e in found.epochs]


def test_a_training_stopped_and_resumed_within_an_epoch_has_the_later_pass(log: Write) -> None:
    text = epochs(SIAMFC, 1) + "Epoch: 2 [20/40] Loss: 9.00000\n" + epochs(SIAMFC, 2)
    found = logs.read([log(text)])
    assert found.epochs[1].means["Loss"] == pytest.approx(0.42)
    assert "epoch 2 is of the later pass" in found.notes[0]


def test_lines_that_are_logged_twice_count_once(log: Write) -> None:
    doubled = "".join(line * 2 for line in epochs(SIAMFC, 1, 2).splitlines(keepends=True))
    found = logs.read([log(doubled)])
    assert [(e.num_lines, e.means["Loss"]) for e in found.epochs] == [(2, pytest.approx(0.42))] * 2
    assert found.notes == ()


def test_a_growing_log_is_complete_as_far_as_its_last_whole_epoch(log: Write) -> None:
    found = logs.read([log(epochs(SIAMFC, 1) + "Epoch: 2 [20/40] Loss: 0.5\n")])
    assert [e.is_complete for e in found.epochs] == [True, False]
    assert found.last_complete == 1


def test_an_epoch_is_complete_at_the_last_line_that_its_print_interval_leaves(log: Write) -> None:
    text = "".join(f"Epoch: 1 [{i}/1166] Loss: 0.5\n" for i in range(20, 1166, 20))
    assert logs.read([log(text)]).last_complete == 1  # 1160 of 1166, every 20th


def test_a_loss_that_is_no_number_is_kept_as_such_and_said(log: Write) -> None:
    found = logs.read([log(epochs(SIAMFC, 1) + "Epoch: 2 [20/40] Loss: nan\nEpoch: 2 [40/40] Loss: 0.5\n")])
    assert math.isnan(found.epochs[1].means["Loss"]) and found.curve("Loss")[2] is None
    assert "no number (nan or infinite) in epoch 2" in found.notes[0]


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ("\ttotal_loss: 0.31", {"cls_loss", "loc_loss"}),
        ("\ttotal_loss: 0.31 (0.3", {"cls_loss", "loc_loss"}),
        ("\ttotal_lo", {"cls_loss", "loc_loss"}),
        ("\ttotal_loss: 0.318000 (0.320000)", {"cls_loss", "loc_loss", "total_loss"}),
    ],
)
def test_the_cut_off_number_of_a_half_written_line_is_not_believed(log: Write, cut: str, kept: set[str]) -> None:
    head = "Epoch: [1][40/40] lr: 0.01\n\tcls_loss: 0.200000 (0.300000)\tloc_loss: 0.100000 (0.200000)\n"
    (epoch,) = logs.read([log(head + cut)]).epochs
    assert set(epoch.means) == kept


def test_a_number_with_fewer_digits_than_its_neighbours_at_the_end_is_cut(log: Write) -> None:
    found = logs.read([log(epochs(TRACKIT, 1)[:-2])])  # ...0.42000 -> 0.4200
    assert found.epochs[0].means["Loss"] == pytest.approx(0.62)  # the line before
    assert "ends in the middle of a line: the last Loss is left out" in found.notes[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_logs_of_any_usual_encoding_are_read(log: Write, encoding: str) -> None:
    text = "训练开始 /数据/模型\r\n" + epochs(SIAMFC, 1, 2).replace("\n", "\r\n")
    data = ("\ufeff" + text).encode(encoding) if encoding == "utf-16-le" else text.encode(encoding)
    found = logs.read([log(data)])
    assert [e.means["Loss"] for e in found.epochs] == [pytest.approx(0.42)] * 2 and found.notes == ()


def test_bytes_of_another_encoding_are_said_and_do_no_harm(log: Write) -> None:
    found = logs.read([log("训练开始\n".encode("gbk") + epochs(SIAMFC, 1).encode())])
    assert found.epochs[0].means["Loss"] == pytest.approx(0.42)
    assert found.notes == ("train.log: 1 lines hold bytes that are no utf-8 text",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\n\n", "it is empty"),
        (b"# a readme\nwith words\n", "it begins with: # a readme"),
        (b"PK\x03\x04zzzz", "it is a zip file or a checkpoint"),
        (b"\x1f\x8b\x08\x00", "it is compressed (gunzip it first)"),
        (b"abc\x00\x01\x02", "it begins with the bytes 61 62 63 00 01 02"),
        (b"Epoch: [1][10/100] Time 0.1 (0.2) Loss 6.9 (6.8)\n", "it begins with: Epoch: [1][10/100] Time"),
        (b"epoch 3 was good: accuracy high\n", "it begins with: epoch 3 was good"),
        (b'{"a": {"b": 1}}', 'it begins with: {"a"'),
        (b"x" * 3_000_000, "it begins with: xxx"),
    ],
)
def test_what_is_no_log_is_refused_with_what_it_is(log: Write, content: bytes, said: str) -> None:
    path = log(content)
    with pytest.raises(BblabError) as caught:
        logs.read([path])
    assert said in caught.value.message and str(path) in caught.value.message
    assert "Epoch: [50][0/18750]" in caught.value.hint


def test_a_long_log_is_read_in_a_stream_and_hashed_as_it_goes(log: Write) -> None:
    one = epochs(PYSOT, 1).encode()
    data = b"".join(epochs(PYSOT, e).encode() for e in range(1, 4001))  # 3.7 MB
    path = log(data)
    ticks: list[tuple[int, int]] = []
    tracemalloc.start()
    try:
        found = logs.read([path], marks=[len(one), 10**9], on_progress=lambda done, total: ticks.append((done, total)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.epochs) == 4000
    assert peak < 16e6  # chunks of 1 MB and 4000 epochs, not the file's lines
    (file,) = found.files
    assert (file.size_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert file.prefixes == {len(one): hashlib.sha256(one).hexdigest()}
    assert ticks[-1] == (len(data), len(data)) and len(ticks) == math.ceil(len(data) / 2**20)


def test_where_the_backbone_began_to_train_is_noted(log: Write) -> None:
    message = "[2024-12-07 23:40:02,081-rk0-train.py#196] start training backbone.\n"
    found = logs.read([log(epochs(PYSOT, 9, 10) + message + epochs(PYSOT, 11))])
    assert found.unfrozen_at == 10
    assert (found.started, found.ended) == ("2024-12-07 23:40:02", "2024-12-07 23:41:02")


# ---- tables

VOT = """------------------------------------------------------------------
|  Tracker Name   | Accuracy | Robustness | Lost Number |  EAO  |
------------------------------------------------------------------
| checkpoint_e37  |  0.565   |   0.440    |    94.0     | 0.265 |
| checkpoint_e36  |  0.560   |   0.460    |    98.0     | 0.255 |
------------------------------------------------------------------
"""


def quantities(found: logs.Log) -> list[tuple[str, int | None, dict[str, float], str | None]]:
    return [(r.tracker, r.epoch, dict(r.quantities), r.benchmark) for r in found.rows]


def test_the_table_of_vot_is_read_with_the_epochs_of_its_names(log: Write) -> None:
    found = logs.read([log("$ python tools/eval.py --dataset VOT2018 --tracker_prefix ckpt\n" + VOT)])
    assert quantities(found) == [
        ("checkpoint_e37", 37, {"accuracy": 0.565, "robustness": 0.44, "lost_number": 94, "eao": 0.265}, "vot2018"),
        ("checkpoint_e36", 36, {"accuracy": 0.56, "robustness": 0.46, "lost_number": 98, "eao": 0.255}, "vot2018"),
    ]
    assert [r.benchmark for r in logs.read([log(VOT)]).rows] == [None, None]


def test_the_success_table_leaves_out_what_it_did_not_compute(log: Write) -> None:
    table = "|Tracker name| Success | Norm Precision | Precision |\n| mine |  0.696  |     0.000      |   0.914   |\n"
    assert quantities(logs.read([log(table)])) == [("mine", None, {"auc": 0.696, "precision": 0.914}, None)]


def test_pytrackings_table_is_in_percent_and_names_its_data(log: Write) -> None:
    table = (
        "lasot      | AUC        | OP50       | OP75       | Precision    | Norm Precision    | FPS        |\n"
        "mine_ep300 | 58.84      | 69.70      | 53.40      | 61.03        | 67.72             | 205.85     |\n"
    )
    found = logs.read([log(table)])
    assert quantities(found) == [
        (
            "mine_ep300",
            300,
            {"auc": 0.5884, "op50": 0.697, "op75": 0.534, "precision": 0.6103, "norm_precision": 0.6772},
            "lasot",
        )
    ]
    assert "a speed belongs to its device" in found.notes[0]


def test_a_table_by_video_and_colours_are_no_scores_of_a_tracker(log: Write) -> None:
    by_video = (
        "| Tracker name |       mine      |\n|  Video name  |  Acc   |   LN   |\n"
        "|    ants1     |\x1b[31m 0.400  \x1b[0m| 1.000  |\n"
    )
    assert len(logs.read([log(VOT + by_video)]).rows) == 2


def test_a_cut_row_is_not_believed(log: Write) -> None:
    text = VOT[: VOT.index("0.255") + 4]  # ...| 0.25
    found = logs.read([log(text)])
    assert [r.tracker for r in found.rows] == ["checkpoint_e37"]
    assert "may be cut and is left out" in found.notes[0]


def test_got10ks_report_is_of_the_validation_set(log: Write) -> None:
    report = {"mine": {"overall": {"ao": 0.604, "sr": 0.724, "speed_fps": 88.0, "succ_curve": [1, 0]}, "seq_wise": {}}}
    found = logs.read([log(json.dumps(report, indent=4), "performance.json")])
    assert quantities(found) == [("mine", None, {"ao": 0.604, "sr50": 0.724}, "got10k_val")]


# ---- names of metrics


@pytest.mark.parametrize(
    ("said", "name", "higher"),
    [
        ("vot2018_eao", "vot2018_eao", True),
        ("VOT-2018 EAO", "vot2018_eao", True),
        ("VOT18 EAO", "vot2018_eao", True),
        ("vot2019_robustness", "vot2019_robustness", False),  # failures
        ("vot2020_robustness", "vot2020_robustness", True),  # share of frames tracked
        ("vot2018_lost", "vot2018_lost_number", False),
        ("GOT-10k val AO", "got10k_val_ao", True),
        ("got10k_test_ao", "got10k_ao", True),
        ("got10k_sr0.5", "got10k_sr50", True),
        ("OTB2015_success", "otb100_auc", True),
        ("LaSOT norm precision", "lasot_norm_precision", True),
        ("VOT2018-LT F1", "vot2018lt_f1", True),
        ("mydata_auc", "mydata_auc", True),  # the quantity's direction
        ("swimming", "swimming", None),
    ],
)
def test_metrics_are_known_in_the_spellings_people_use(said: str, name: str, higher: bool | None) -> None:
    found = metrics.find(said)
    assert (found.name, found.higher_is_better) == (name, higher)


def test_validation_scores_are_another_split() -> None:
    assert (metrics.find("got10k_val_ao").split, metrics.find("got10k_ao").split) == ("val", "test")


def test_a_misspelt_metric_is_asked_about_and_a_stated_direction_accepts_it() -> None:
    with pytest.raises(BblabError, match="no metric 'vot2018_eoa'") as caught:
        metrics.find("vot2018_eoa")
    assert "did you mean 'vot2018_eao'" in caught.value.hint and "vot2018_eoa:higher=VALUE" in caught.value.hint
    assert metrics.find("vot2018_eoa", True).higher_is_better is True
    with pytest.raises(BblabError, match="vot2018_eao is better higher"):
        metrics.find("vot2018_eao", False)


@pytest.mark.parametrize(("text", "value"), [("0.265", 0.265), ("26.5%", 0.265), (" 0 ", 0.0), ("1", 1.0)])
def test_scores_are_read_as_shares(text: str, value: float) -> None:
    assert metrics.value(metrics.find("vot2018_eao"), text) == value


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("lasot_auc", "53.8", "lasot_auc=53.8% for percent"),
        ("lasot_auc", "-0.1", "lasot_auc=0.265"),
        ("vot2018_eao", "good", "vot2018_eao=0.265"),
        ("vot2018_eao", "nan", "vot2018_eao=0.265"),
        ("vot2018_lost_number", "-3", "check the sign"),
    ],
)
def test_scores_that_cannot_be_are_refused(name: str, text: str, hint: str) -> None:
    with pytest.raises(BblabError) as caught:
        metrics.value(metrics.find(name), text)
    assert caught.value.hint == hint


# ---- rules to stop by


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("total_loss > 0.25 at epoch 30", "total_loss > 0.25 at epoch 30"),
        ("total loss above .25 from epoch 30", "total loss > 0.25 from epoch 30"),
        ("epoch 30 and total loss above 0.25: stop", "total loss > 0.25 at epoch 30"),
        ("Loss/total >= 1e-1 @ 5", "Loss/total >= 0.1 at epoch 5"),
        ("IoU is below 0.5 at 10", "IoU < 0.5 at epoch 10"),
    ],
)
def test_rules_are_understood_in_words(text: str, plain: str) -> None:
    assert str(gates.parse(text)) == plain


@pytest.mark.parametrize("text", ["", "total_loss", "total_loss > x at epoch 3", "total_loss > 0.3", "> 3 at epoch 3"])
def test_what_is_no_rule_is_answered_with_an_example(text: str) -> None:
    with pytest.raises(BblabError) as caught:
        gates.parse(text)
    assert "total_loss > 0.25 at epoch 30" in caught.value.hint


@pytest.mark.parametrize(
    ("rule", "complete", "answer", "epoch"),
    [
        ("loss > 0.25 at epoch 2", 3, "stop", 2),
        ("loss > 0.35 at epoch 2", 3, "go_on", 2),
        ("loss > 0.30 at epoch 2", 3, "go_on", 2),  # not above
        ("loss >= 0.30 at epoch 2", 3, "stop", 2),
        ("loss > 0.25 at epoch 3", 3, "go_on", 3),  # 0.2: it recovered
        ("loss > 0.25 at epoch 3", 2, "not_yet", 2),  # epoch 3 is not complete
        ("loss > 0.25 at epoch 9", 3, "not_yet", 3),
        ("loss > 0.25 from epoch 2", 3, "stop", 2),
        ("loss > 0.25 from epoch 3", 3, "go_on", 3),
        ("loss > 0.25 at epoch 0", 3, "unknown", None),
        ("loss > 0.25 at epoch 1", None, "not_yet", None),
        ("loss > 99 at epoch 4", 4, "stop", 4),  # no number any more
    ],
)
def test_verdicts(rule: str, complete: int | None, answer: str, epoch: int | None) -> None:
    curve = {1: 0.5, 2: 0.3, 3: 0.2, 4: None}
    found = gates.judge(gates.parse(rule), curve, complete)
    assert (found.answer, found.epoch) == (answer, epoch)


def test_a_rule_names_a_curve_in_any_spelling() -> None:
    names = ["Loss/total", "Loss/giou"]
    assert gates.column("total_loss", names, "Loss/total") == "Loss/total"
    assert gates.column("loss giou", names, "Loss/total") == "Loss/giou"
    with pytest.raises(BblabError, match="has no 'Loss/gio'") as caught:
        gates.column("Loss/gio", names, "Loss/total")
    assert "did you mean 'Loss/giou'" in caught.value.hint
    with pytest.raises(BblabError, match="no total loss"):
        gates.column("total_loss", ["cls", "reg"], None)
