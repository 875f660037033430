"""bblab report: what stands together on a chart, what stands apart, the tables, and the page in a browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bblab import reports
from bblab.errors import BblabError
from bblab.lab import Lab, reporting
from bblab.reports import Options, Page
from bblab.reports.kit import placement, tables
from bblab.reports.kit.charts import ParetoChart
from bblab.reports.kit.verdict import conclusions
from bblab.reports.kit.words import Words
from bblab.rooms import Rooms
from bblab.store import MIGRATIONS, NewRun, Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# A notebook of made-up nets, written as the lab writes it ---------------------------------------------------------


def timing(
    name: str,
    spec_id: str,
    seconds: float,
    *,
    form: str = "deploy",
    spread: float = 0.0,
    session: str = "s1",
    reference: str = "resnet18",
    with_samples: bool = True,
    **more: Any,
) -> NewRun:
    """A timing of 6 processes of 5 calls beside a reference of 40 ms. `spread`: of a process's level, relative."""
    lengths = [5] * 6
    rng = np.random.default_rng(abs(hash_of(name, form, session)))
    own = [s for _ in lengths for s in [seconds * (1 + spread * rng.standard_normal())] * 5]
    beside = [0.040] * 30
    inputs = {
        "spec": name, "device": "host", "runtime": "ort", "runtime_version": "1.32.0", "form": form,
        "precision": "float32", "threads": 1, "input": [3, 255, 255], "batch": 1, "pace_fps": None,
        "reference": reference, "protocol": 2,
    }  # fmt: skip
    inputs |= {k: v for k, v in more.items() if k in inputs}
    ratio = float(np.exp(np.mean(np.log(np.array(own) / 0.040))))
    figures = {
        "cpu_p10_s": float(np.quantile(own, 0.1)), "ratio": ratio, "ratio_low": ratio * (1 - 2 * spread),
        "ratio_high": ratio * (1 + 2 * spread),
    }  # fmt: skip
    cold = {key: 1.2 * value for key, value in figures.items()}
    result = {
        **figures, "warm": figures, "cold": cold, "paced": None, "processor": "cpu", "steady": True,
        "is_busy": False, "is_reference": False, "reference_form": "deploy",
        "reference_input": inputs["input"], "session": session, "doubts": [],
        "conditions": {"before": {"cpu_model": "Made-up CPU", "load_average": [0.5]}, "after": {"load_average": [0.7]}},
        "samples_per_process": {"cpu_s": lengths, "reference_cpu_s": lengths} if with_samples else {},
    }  # fmt: skip
    samples = {"cpu_s": own, "reference_cpu_s": beside} if with_samples else {}
    return NewRun("timing", spec_id, name, "0", inputs, result, samples)


def hash_of(*parts: str) -> int:
    return sum(ord(c) * (i + 7) for i, c in enumerate("|".join(parts)))


def training(
    name: str,
    spec_id: str,
    top1_percent: float | None,
    *,
    seed: int = 0,
    half: float | None = 1.0,
    recipe: str = "digits",
    status: str = "done",
    data: str = "digits",
) -> NewRun:
    known = top1_percent is not None and half is not None
    result = {
        "status": status, "epochs_trained": 10, "epochs_planned": 10, "top1_percent": top1_percent,
        "top1_low_percent": top1_percent - half if known else None,
        "top1_high_percent": top1_percent + half if known else None, "folder": f"/runs/{name}-{recipe}-{seed}",
    }  # fmt: skip
    inputs = {
        "recipe": {"name": recipe, "resolution_px": 48}, "settings": {"seed": seed},
        "data": {"root": f"/data/{data}", "hash": "abcdef123", "num_classes": 10, "val_count": 360},
    }  # fmt: skip
    curve = {"train_loss": [2.0, 1.0, 0.5], "top1_percent": [20.0, 40.0, 60.0]}
    return NewRun("pretrain", spec_id, name, "0", inputs, result, curve)


def profile(name: str, spec_id: str, params: float = 1e6) -> NewRun:
    form = {"params_backbone": params, "macs_backbone": params * 200, "activations_backbone": params * 3}
    finding = {
        "rule": "heavy-last-stage",
        "severity": "note",
        "where": "s16",
        "message": "82 % of <all>",
        "waived": None,
    }
    result = {
        "name": name, "spec_id": spec_id, "about": "made up", "input": [3, 224, 224],
        "forms": {"deploy": form, "train": form}, "receptive_field": 423, "feature_maps": [], "findings": [finding],
        "tracker": {
            "search": {"size": 255, "map": [8, 16, 16], "macs_backbone": params * 260},
            "template": {"size": 127, "map": [8, 8, 8], "macs_backbone": params * 60}, "rf_over_template": 3.3,
        },
    }  # fmt: skip
    return NewRun("profile", spec_id, name, "0", {"spec": name}, result)


def score(name: str, spec_id: str, value: float, epoch: int = 50, **more: Any) -> NewRun:
    result = {
        "metric": "vot2018_eao", "value": value, "epoch": epoch, "higher_is_better": True, "split": "test", **more,
    }  # fmt: skip
    return NewRun("tracker_score", spec_id, name, "0", {"spec": name, "tracker": None, "logs": []}, result)


def net(name: str, number: int, ms: float, top1: float, **more: Any) -> list[NewRun]:
    spec_id = f"{number:012x}"
    return [timing(name, spec_id, ms / 1e3, **more), training(name, spec_id, top1), profile(name, spec_id, ms * 2e5)]


@pytest.fixture
def filled(lab: Path) -> Callable[[Sequence[NewRun]], Lab]:
    def fill(rows: Sequence[NewRun]) -> Lab:
        with Store.open(lab / "lab.sqlite") as store:
            store.add_many(rows)
        return Lab(lab)

    return fill


def page_of(lab: Lab, select: str = "", **options: Any) -> Page:
    stored = reporting.gather(lab, select=select, with_published=options.get("with_published", False))
    return reports.find_for_notebook("pareto", Rooms(lab.folder))(stored, Options(**options))


def main_charts(page: Page) -> list[ParetoChart]:
    return [c for c in page.charts if isinstance(c, ParetoChart) and c.is_main]


FOUR = [*net("a", 1, 2, 60), *net("b", 2, 4, 70), *net("c", 3, 6, 65), *net("d", 4, 9, 80)]


# What stands together -----------------------------------------------------------------------------------------------


def test_the_front_is_that_of_hand_worked_points(filled: Any) -> None:
    # (2 ms, 60), (4, 70), (9, 80) rise together; (6, 65) costs more than b and gives less. Latencies are exact, c's
    # best draw would need 5 points of 1/1.96 standard deviation: never.
    (chart,) = main_charts(page_of(filled(FOUR)))
    assert {m.name: m.is_on_front for m in chart.marks} == {"a": True, "b": True, "c": False, "d": True}
    assert {m.name: round(m.probability, 2) for m in chart.marks} == {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0}
    assert [(round(x * 1e3, 6), round(y, 6)) for x, y in chart.fronts[0].corners] == [(2, 0.6), (4, 0.7), (9, 0.8)]


def test_milliseconds_are_the_ratio_times_the_references_time(filled: Any) -> None:
    (chart,) = main_charts(page_of(filled(FOUR)))
    assert {m.name: pytest.approx(m.x * 1e3) for m in chart.marks} == {"a": 2, "b": 4, "c": 6, "d": 9}
    assert "40.0 ms" in chart.caption


@pytest.mark.parametrize(
    "other",
    [
        {"device": "pixel6"}, {"runtime": "ncnn"}, {"runtime_version": "1.33.0"}, {"threads": 2},
        {"precision": "int8"}, {"input": [3, 127, 127]}, {"batch": 2},
    ],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_what_differs_in_its_setting_shares_no_chart(filled: Any, other: dict[str, Any]) -> None:
    rows = [*FOUR, *(timing(n, f"{i:012x}", 0.003, session="s2", **other) for i, n in enumerate("abcd", 1))]
    charts = main_charts(page_of(filled(rows)))
    assert len(charts) == 2
    assert {tuple(sorted(m.name for m in c.marks)) for c in charts} == {("a", "b", "c", "d")}
    assert sorted({round(m.x * 1e3, 3) for c in charts for m in c.marks} - {2, 4, 6, 9}) == [3]
    assert len({c.key for c in charts}) == 2


def test_accuracies_of_different_data_share_no_chart(filled: Any) -> None:
    rows = [*FOUR, training("a", f"{1:012x}", 99, data="photos"), training("b", f"{2:012x}", 98, data="photos")]
    scales = {c.scale for c in main_charts(page_of(filled(rows)))}
    assert len(scales) == 2


def test_accuracies_of_different_recipes_share_a_chart_but_no_front(filled: Any) -> None:
    rows = [*FOUR, training("c", f"{3:012x}", 99, recipe="long")]
    (chart,) = main_charts(page_of(filled(rows)))
    assert {f.protocol.split(",")[0]: len(f.corners) for f in chart.fronts} == {"digits": 3, "long": 1}


def test_the_unfused_form_is_shown_but_is_on_no_front(filled: Any) -> None:
    rows = [*FOUR, timing("d", f"{4:012x}", 0.001, form="train")]
    (chart,) = main_charts(page_of(filled(rows)))
    unfused = next(m for m in chart.marks if m.form == "train")
    assert (unfused.is_on_front, unfused.probability) == (False, 0.0)


def test_seeds_are_one_accuracy_and_a_repeated_seed_is_no_other_sample(filled: Any) -> None:
    again = [training("a", f"{1:012x}", 64, seed=1), training("a", f"{1:012x}", 64, seed=1)]
    (chart,) = main_charts(page_of(filled([*FOUR, *again])))
    a = next(m for m in chart.marks if m.name == "a")
    assert a.y == pytest.approx((0.60 + 0.64) / 2)
    assert dict(a.provenance)["accuracy from"].endswith("seeds 0, 1")


def test_candidates_within_each_others_intervals_are_ties(filled: Any) -> None:
    # e is 1 % slower than b and 0.1 points worse; both vary by 3 %: neither axis tells them apart.
    rows = [*net("a", 1, 2, 60), *net("b", 2, 4, 70, spread=0.03), *net("e", 5, 4.04, 69.9, spread=0.03)]
    (chart,) = main_charts(page_of(filled(rows)))
    assert chart.ties == (("b", "e"),)
    levels = {m.name: (m.is_on_front, m.is_level) for m in chart.marks}
    assert sorted(levels[n] for n in "be") in ([(False, True), (True, False)], [(True, False), (True, False)])
    assert all(0.2 < m.probability < 0.99 for m in chart.marks if m.name in "be")


def test_what_to_measure_next_is_one_of_those_that_cannot_be_told_apart(filled: Any) -> None:
    rows = [*FOUR, *net("e", 5, 4.04, 69.9, spread=0.03)]
    (chart,) = main_charts(page_of(filled(rows)))
    assert chart.advice is not None
    assert chart.advice.name in ("b", "e")
    assert 0 < chart.advice.settled <= chart.advice.open
    assert re.match(r"bblab (bench|pretrain) [be] ", chart.advice.command)


def test_a_settled_front_asks_for_nothing(filled: Any) -> None:
    (chart,) = main_charts(page_of(filled(FOUR)))
    assert chart.advice is None


def test_a_missing_interval_is_taken_as_exact_and_said(filled: Any) -> None:
    rows = [timing("a", "1" * 12, 0.002), training("a", "1" * 12, 60, half=None)]
    page = page_of(filled(rows))
    assert main_charts(page)[0].marks[0].y_low is None
    assert any("taken as exact" in note and "a" in note for note in page.notes)


def test_a_timing_without_samples_keeps_its_interval(filled: Any) -> None:
    rows = [timing("a", "1" * 12, 0.002, spread=0.02, with_samples=False), training("a", "1" * 12, 60)]
    (mark,) = main_charts(page_of(filled(rows)))[0].marks
    assert mark.x_low is not None and mark.x_high is not None
    assert (mark.x_high - mark.x_low) / mark.x == pytest.approx(0.08, rel=0.15)  # stored as +- 4 %


def test_the_best_recorded_checkpoint_of_a_training_counts_once(filled: Any) -> None:
    rows = [
        *net("a", 1, 2, 60),
        *(score("a", f"{1:012x}", v, epoch=e) for e, v in ((10, 0.2), (20, 0.265), (30, 0.25))),
    ]
    (chart,) = main_charts(page_of(filled(rows), accuracy="vot2018_eao"))
    (mark,) = chart.marks
    assert (mark.y, mark.kind) == (0.265, "recorded")
    assert "best of 3 recorded checkpoints" in dict(mark.provenance)["accuracy from"]


def test_against_counts_needs_no_latency(filled: Any) -> None:
    rows = [training("a", "1" * 12, 60), profile("a", "1" * 12, 1e6)]
    for axis, wanted in (("macs", 260e6), ("params", 1e6), ("activations", 3e6)):
        (chart,) = main_charts(page_of(filled(rows) if axis == "macs" else Lab(), against=axis))
        assert chart.marks[0].x == wanted


# What stands apart --------------------------------------------------------------------------------------------------


def apart(page: Page) -> dict[str, str]:
    section = dict(page.sections).get("apart: not on a chart")
    return {} if section is None else {row[0]: row[2] for row in section.cells}


def test_candidates_without_accuracy_or_latency_are_listed_apart(filled: Any) -> None:
    rows = [*FOUR, timing("fast", "f" * 12, 0.001), training("slow", "e" * 12, 90)]
    found = apart(page_of(filled(rows)))
    assert found["fast"] == "no accuracy"
    assert found["slow"] == "no latency: bblab bench slow"
    assert set(found) == {"fast", "slow"}


def test_an_accuracy_that_is_no_number_is_listed_apart(filled: Any) -> None:
    found = apart(page_of(filled([*FOUR, training("broken", "b" * 12, None)])))
    assert "not a number" in found["broken"]


def test_a_net_timed_beside_another_reference_only_is_listed_apart(filled: Any) -> None:
    rows = [*FOUR, timing("x", "9" * 12, 0.003, reference="a", session="duel"), training("x", "9" * 12, 75)]
    found = apart(page_of(filled(rows)))
    assert "no common reference: bblab bench x" in found["x"]


def test_an_older_protocol_is_apart_and_on_no_chart(filled: Any) -> None:
    rows = [*FOUR, *(timing(n, i, 0.020, session="old") for n, i in (("a", f"{1:012x}"), ("z", "2" * 12)))]
    for row in rows[-2:]:
        row.inputs.pop("protocol")  # type: ignore[attr-defined]
    page = page_of(filled(rows))
    (chart,) = main_charts(page)
    assert {round(m.x * 1e3, 3) for m in chart.marks} == {2, 4, 6, 9}  # not averaged with its 20 ms
    (old,) = (table for title, table in page.sections if title.startswith("apart: measured by an older protocol"))
    # a has been measured again since, z has not
    assert [(cells[0], cells[2][:4], cells[-1]) for cells in old.cells] == [
        ("a", "0.50", "measured again"), ("z", "0.50", "bblab bench --again")
    ]  # fmt: skip
    assert all("protocol 1 (cold, mixed)" in cells[6] for cells in old.cells)


def test_cold_has_a_chart_of_its_own_where_it_is_selected(filled: Any) -> None:
    lab = filled(FOUR)
    (warm,) = main_charts(page_of(lab))
    (cold,) = main_charts(page_of(Lab(), select="state=cold"))
    assert (dict(warm.place)["state"], dict(cold.place)["state"]) == ("warm", "cold")
    assert sorted(round(m.x * 1e3, 2) for m in cold.marks) == [2.4, 4.8, 7.2, 10.8]


def test_one_process_is_on_no_chart(filled: Any) -> None:
    lone = timing("lone", "7" * 12, 0.001, with_samples=False)
    for figures in (lone.result, lone.result["warm"]):
        figures["ratio_low"] = figures["ratio_high"] = None  # type: ignore[index]
    page = page_of(filled([*FOUR, lone, training("lone", "7" * 12, 75)]))
    assert "lone" not in {m.name for c in main_charts(page) for m in c.marks}
    assert "no interval" in apart(page)["lone"]


def test_a_stopped_training_has_no_accuracy(filled: Any) -> None:
    rows = [timing("a", "1" * 12, 0.002), training("a", "1" * 12, 60, status="stopped"), *FOUR[3:]]
    assert "a" in apart(page_of(filled(rows)))


# What is said of the front --------------------------------------------------------------------------------------------


def said(page: Page, lang: str = "en") -> list[tuple[str, str]]:
    (chart, *_) = main_charts(page)
    return [(s.text, s.command) for s in conclusions(chart, Words(lang))]


def test_a_front_without_gaps_ties_or_unknown_spreads_is_settled(filled: Any) -> None:
    ((text, command),) = said(page_of(filled(FOUR)))
    assert text == "The front is settled: no single measurement would change it." and command == ""


@pytest.mark.parametrize(
    ("more", "told", "command"),
    [
        ([training("e", "e" * 12, 90)], "e, its latency. Its accuracy is known", "bblab bench e --device host"),
        ([timing("e", "e" * 12, 0.001)], "e, its accuracy (top-1, digits abcdef). Its latency is known",
         "bblab pretrain e --data /data/digits --recipe digits --epochs 10"),
        ([timing("e", "e" * 12, 0.001, form="train"), training("e", "e" * 12, 90)],
         "latency in deploy form (it is timed unfused)", "bblab bench e"),
        ([timing("e", "e" * 12, 0.003, reference="a", session="duel"), training("e", "e" * 12, 75)],
         "beside resnet18 (it is timed beside another reference)", "bblab bench e"),
        ([timing("e", "e" * 12, 0.001), training("e", "e" * 12, None)], "e, its accuracy", "bblab pretrain e"),
        ([timing("e", "e" * 12, 0.001), training("e", "e" * 12, 50, status="stopped")], "e, its accuracy",
         "bblab pretrain e"),
    ],
    ids=["latency", "accuracy", "train form only", "another reference", "NaN", "stopped"],
)  # fmt: skip
def test_a_candidate_that_lacks_a_number_is_named_instead_of_a_settled_front(
    filled: Any, more: list[NewRun], told: str, command: str
) -> None:
    ((text, run),) = said(page_of(filled([*FOUR, *more])))
    assert text.startswith("Measure next: ") and told in text and "until both are, the front is not settled" in text
    assert run.startswith(command)


def test_the_missing_number_may_put_its_net_on_the_front(filled: Any) -> None:
    # The very case: e, at 90 %, lacked its latency only; measured at 3 ms it is on the front and throws b and d off.
    more = [training("e", "e" * 12, 90), timing("e", "e" * 12, 0.003)]
    (chart,) = main_charts(page_of(filled([*FOUR, *more])))
    assert {m.name for m in chart.marks if m.is_on_front} == {"a", "e"}


def test_the_reference_is_no_candidate(filled: Any) -> None:
    reference = timing("resnet18", "f" * 12, 0.040)
    row = NewRun("timing", "f" * 12, "resnet18", "0", reference.inputs, {**reference.result, "is_reference": True})
    assert "settled: no single" in said(page_of(filled([*FOUR, row])))[0][0]


def test_of_several_that_lack_a_number_the_most_promising_comes_first(filled: Any) -> None:
    more = [training("e", "e" * 12, 70), training("f", "f" * 12, 90), timing("g", "9" * 12, 0.001)]
    ((text, command),) = said(page_of(filled([*FOUR, *more])))
    assert "Measure next: f, its latency" in text and "One of the two is missing of e, g too." in text
    assert command.startswith("bblab bench f")


def test_a_front_with_points_that_cannot_be_told_apart_is_not_settled() -> None:
    from bblab.reports.kit.charts import Axis, Front, Mark

    def mark(name: str, x: float, y: float, is_on: bool) -> Mark:
        return Mark(name, name, name, "deploy", "other", x, x * 0.9, x * 1.1, y, y - 0.02, y + 0.02, "own", "p", is_on,
                    not is_on, float(is_on), None)  # fmt: skip

    bare = ParetoChart(
        "k", "t", "latency", (), "top-1", Axis("latency", "x"), Axis("y", "y"),
        (mark("a", 1, 0.7, True), mark("b", 1.05, 0.69, False)), (Front("p", "own", ((1, 0.7),)),), (("a", "b"),), None,
        "", True,
    )  # fmt: skip

    def text(**changes: Any) -> str:
        return conclusions(replace(bare, **changes), Words("en"))[0].text

    assert text() == (
        "The front is not settled: a = b cannot be told apart, and no single measurement would tell them."
    )
    assert text(ties=(), open=0.4).startswith("The front is not settled (0.40 open places)")
    assert text(ties=(), exact=("b",)) == (
        "The front is settled only if the numbers of b are exact: their spread is not known."
    )
    two = (Front("p", "own", ((1, 0.7),)), Front("q", "own", ((1, 0.7),)))
    assert text(ties=(), fronts=two).startswith("Each of the 2 fronts is settled among its own points")
    assert text(ties=()) == "The front is settled: no single measurement would change it."


def test_the_page_and_the_terminal_say_the_same(bblab: Any, filled: Any, tmp_path: Path) -> None:
    pytest.importorskip("altair")
    filled([*FOUR, training("e", "e" * 12, 90)])
    ran = bblab("report", "--out", tmp_path)
    told = "Measure next: e, its latency. Its accuracy is known; until both are, the front is not settled."
    assert told in ran.out and "settled: no single" not in ran.out
    assert "next: bblab bench e --device host --runtime ort --size 255" in ran.out


def trained_in_its_own_way(name: str, spec_id: str, top1: float, *, half: float, root: str) -> NewRun:
    made = training(name, spec_id, top1, half=half)
    inputs = {
        "recipe": {"name": "rank16", "resolution_px": 160, "base_batch": 1024},
        "settings": {"seed": 0, "batch_size": 512, "lr_rule": "linear", "accumulation": 2},
        "data": {"root": root, "hash": "abcdef123", "num_classes": 10, "val_count": 5_000},
    }
    return replace(made, inputs=inputs, result={**made.result, "epochs_planned": 4, "epochs_trained": 4})


def test_the_training_to_run_next_is_the_others_with_their_data_epochs_and_batch(filled: Any) -> None:
    both = [timing("a", "a" * 12, 0.001), timing("b", "b" * 12, 0.002)]
    first = trained_in_its_own_way("a", "a" * 12, 60, half=5, root="/my data/in256")
    how = "--data '/my data/in256' --recipe rank16 --epochs 4 --batch-size 512 --lr-rule linear --accumulate 2"
    ((_, command),) = said(page_of(filled([*both, first])))
    assert command == f"bblab pretrain b {how}"
    second = trained_in_its_own_way("b", "b" * 12, 61, half=5, root="/my data/in256")
    ((text, command),) = said(page_of(filled([*both, first, second])))
    assert "with another seed" in text
    assert command in {f"bblab pretrain {net} {how} --seed 1" for net in "ab"}


def test_a_net_whose_accuracy_is_only_published_is_shown_by_the_command_that_is_named(filled: Any) -> None:
    from bblab.lab import Lab

    lab = filled([*FOUR])
    spec = Lab(lab.folder).spec("resnet18")
    lab = filled([timing("resnet18", spec.spec_id, 0.010)])
    told = apart(page_of(lab))["resnet18"]
    assert told.endswith("(--accuracy top-1 --with-published)")
    page = page_of(lab, accuracy="top-1", with_published=True)
    assert any(m.name == "resnet18" for c in page.charts if isinstance(c, ParetoChart) for m in c.marks)


def test_a_report_that_is_not_made_of_the_notebook_is_refused_with_those_that_are(bblab: Any) -> None:
    ran = bblab("report", "bench")
    assert ran.code == 2 and "no report 'bench'" in ran.err
    assert "comparison, device, pareto, runs, spec_card" in ran.err


def test_a_click_says_why_a_finding_is_waived_and_that_attention_sees_all(filled: Any) -> None:
    made = profile("a", net("a", 1, 2, 60)[0].spec_id)
    finding = {**made.result["findings"][0], "waived": True, "waived_because": "our head learns it"}
    result = {**made.result, "findings": [finding], "receptive_field": 423, "is_receptive_field_global": True}
    page = page_of(filled([*FOUR, replace(made, result=result)]))
    detail = page.details[made.spec_id]
    assert detail["findings"] == [["note", "heavy-last-stage", "s16", "82 % of <all>", "our head learns it"]]
    assert (detail["receptive_field"], detail["is_receptive_field_global"]) == (423, True)


def test_why_a_net_is_on_no_chart_is_what_is_stored_of_it(filled: Any) -> None:
    cost = score("n", "8" * 12, 12.0, metric="latency_ms", higher_is_better=False)
    lab = filled([*FOUR, timing("n", "8" * 12, 0.001), cost, score("n", "8" * 12, 0.26)])
    told = apart(page_of(lab))["n"]
    assert told == "no top-1, digits abcdef; what is known of it is vot2018_eao, test (--accuracy vot2018_eao)"
    assert lab.notices[0] == "1 stored value of latency_ms is of a speed or a cost, not of an accuracy: on no chart"
    with pytest.raises(BblabError, match="no accuracy 'latency_ms'"):
        page_of(lab, accuracy="latency_ms")


def test_a_training_that_did_not_end_is_the_reason(filled: Any) -> None:
    lab = filled([*FOUR, timing("n", "8" * 12, 0.001), training("n", "8" * 12, 50, status="stopped")])
    assert apart(page_of(lab)) == {"n": "no accuracy: its training (run 14) did not run to its end"}


def test_a_score_without_a_direction_is_on_no_chart(filled: Any) -> None:
    lab = filled([timing("n", "8" * 12, 0.001), score("n", "8" * 12, 3.0, metric="mine", higher_is_better=None)])
    assert main_charts(page_of(lab)) == []
    assert "nobody said which way is better" in lab.notices[0]


def test_seeds_near_a_hundred_percent_have_no_interval_beyond_it(filled: Any) -> None:
    rows = [timing("a", "1" * 12, 0.002)]
    rows += [training("a", "1" * 12, v, seed=i, half=None) for i, v in enumerate((99.0, 100.0))]
    (mark,) = main_charts(page_of(filled(rows)))[0].marks
    # 99.5 +- .5 sqrt 2 = 100.2 before
    assert mark.y == pytest.approx(0.995) and mark.y_high == pytest.approx(1.0)


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_zero_and_negative_scores_are_numbers(filled: Any, value: float) -> None:
    pytest.importorskip("matplotlib")
    from bblab.reports.kit import draw_print

    rows = [timing("n", "8" * 12, 0.001), score("n", "8" * 12, value, metric="mine"), profile("n", "8" * 12)]
    page = page_of(filled(rows))
    (mark,) = main_charts(page)[0].marks
    assert mark.y == value
    low, high = draw_print.draw(page.charts[0]).axes[0].get_ylim()
    assert low < value < high


# Tables -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (5.741, 5.69, 5.80, "5.74 [5.69, 5.80]"),  # half width .055: two decimals
        (5.741, 5.2, 6.3, "5.7 [5.2, 6.3]"),  # .55
        (5.741, 4.2, 7.2, "5.7 [4.2, 7.2]"),  # 1.5 begins with 1: one digit more
        (574.1, 520, 630, "574 [520, 630]"),
        (0.265, 0.255, 0.275, "0.265 [0.255, 0.275]"),
        (5741.0, 5200, 6300, "5700 [5200, 6300]"),
        (5.741, None, None, "5.74"),
        (math.nan, None, None, "–"),
        (None, None, None, "–"),
    ],
)
def test_digits_are_those_that_the_interval_justifies(value: Any, low: Any, high: Any, shown: str) -> None:
    if shown == "574 [520, 630]":
        shown = "570 [520, 630]"  # half width 55: tens
    assert tables.with_interval(value, low, high) == shown


def test_latex_escapes_what_a_name_may_hold() -> None:
    assert tables.tex(r"a_b & 50% \x{y} #1 ~^ <$>") == (
        r"a\_b \& 50\% \textbackslash{}x\{y\} \#1 \textasciitilde{}\textasciicircum{} \textless{}\$\textgreater{}"
    )


def test_a_latex_table_has_booktabs_rules_units_and_footnotes() -> None:
    columns = tables.columns_of(("net", "n", "", "left"), ("top-1", "t", "%", "right"), ("", "hidden", "", "left"))
    made = reports.Table(columns, (("a_b", "71.4 [a]", "x"), ("[c]", "70.1", "x")), (("a_b", 71.4, 1), ("c", 70.1, 2)))
    text = tables.latex(made, "Top-1 of 100% of nets", "fig_1", [("a", "Smith & Co")])
    for line in (
        r"\toprule", r"\midrule", r"\bottomrule", r"a\_b & 71.4\textsuperscript{a} \\", r" & \% \\",
        r"\textsuperscript{a} Smith \& Co", r"\caption{Top-1 of 100\% of nets}", r"\begin{tabular}{lr}",
    ):  # fmt: skip
        assert line in text, line
    assert r"\\" + "\n    [" not in text  # would be read as the line break's argument


def test_markdown_escapes_pipes_and_marks() -> None:
    columns = tables.columns_of(("net", "n", "", "left"), ("x", "t", "ms", "right"))
    made = reports.Table(columns, (("a|b_c", "1.2 [a]"),), (("a", 1),))
    text = tables.markdown(made, [("a", "source")])
    assert r"| a\|b\_c | 1.2<sup>a</sup> |" in text
    assert "| net | x (ms) |" in text


def test_labels_are_placed_without_overlap() -> None:
    rng = np.random.default_rng(0)
    anchors = [placement.Anchor(x, y, 3, 40, 8) for x, y in zip(range(20, 400, 24), range(20, 250, 14), strict=False)]
    marks = [(a.x, a.y, a.radius) for a in anchors] + [
        (float(x), float(y), 2.0) for x, y in rng.uniform((150, 0), (400, 100), (60, 2))
    ]
    boxes = placement.place(anchors, marks, placement.Rect(0, 0, 420, 280))
    assert placement.overlapping(boxes) == []
    assert all(b.outside(placement.Rect(0, 0, 420, 280)) == 0 for b in boxes)


def test_every_source_of_a_published_number_is_a_footnote(filled: Any) -> None:
    lab = filled([])
    spec = lab.spec("mobileone_s0")
    with Store.open(lab.store_path) as store:
        store.add_many([timing("mobileone_s0", spec.spec_id, 0.006)])
    page = page_of(lab)
    (mark,) = main_charts(page)[0].marks
    assert (mark.kind, mark.y) == ("published", pytest.approx(0.714))
    assert page.sources == (("a", "apple/ml-mobileone README"),)
    assert page.table.cells[0][3] == "71.4 [a]"
    assert any("no accuracy of your own" in n for n in page.notes)
    assert not main_charts(page)[0].has_intervals  # and so no probability is claimed
    assert page.table.cells[0][10] == "–"


def test_an_edited_net_has_no_published_accuracy(filled: Any) -> None:
    lab = filled([timing("mobileone_s0", "0" * 12, 0.006)])
    assert main_charts(page_of(lab)) == []
    assert apart(page_of(lab)) == {"mobileone_s0": "no accuracy"}


# The command --------------------------------------------------------------------------------------------------------


def test_an_empty_notebook_says_what_to_run_first(bblab: Any, lab: Path) -> None:
    ran = bblab("report")
    assert ran.code == 2
    assert "empty" in ran.err and "bblab bench" in ran.err
    assert not (lab / "lab.sqlite").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--select", "device=hosst"], "did you mean 'host'"),
        (["--select", "divice=host"], "did you mean 'device'"),
        (["--select", "host"], "not KEY=VALUE"),
        (["--select", "runtime=ort size=127"], "matches nothing"),
        (["--select", "name=zz*"], "matches nothing"),
        (["--against", "latncy"], "did you mean 'latency'"),
        (["--accuracy", "top2"], "did you mean 'top-1'"),
        (["--budget", "soon"], "is not a time"),
        (["--budget", "0ms"], "is not a time"),
        (["--since", "yesterday"], "is not a time"),
        (["--since", "2999-01-01"], "nothing is stored since"),
        (["--lang", "fr"], "no language 'fr'"),
        (["paretto"], "did you mean 'pareto'"),
        (["pareto", "zebra"], "nothing is stored about 'zebra'"),
    ],
)
def test_a_mistake_is_told_with_what_would_be_right(bblab: Any, filled: Any, argv: list[str], said: str) -> None:
    filled(FOUR)
    ran = bblab("report", *argv)
    assert ran.code == 2
    assert said in ran.err


def test_an_output_that_cannot_be_written_is_refused_before_the_work(bblab: Any, filled: Any, tmp_path: Path) -> None:
    filled(FOUR)
    file = tmp_path / "file"
    file.write_text("")
    ran = bblab("report", "--out", file)
    assert ran.code == 1
    assert "cannot be written" in ran.err and "--out DIR" in ran.err


def test_rows_of_another_shape_are_counted_and_told(bblab: Any, filled: Any) -> None:
    filled([*FOUR, NewRun("timing", "f" * 12, "odd", "0", {"device": "host"}, {"ratio": "fast"})])
    ran = bblab("report", "--json", "-")
    assert ran.code == 0
    assert "1 stored row(s) of kind timing" in ran.err
    assert len(json.loads(ran.out)["charts"][0]["marks"]) == 4


def test_a_notebook_of_an_older_version_is_read(bblab: Any, filled: Any, lab: Path, monkeypatch: Any) -> None:
    filled(FOUR)
    monkeypatch.setattr("bblab.store.MIGRATIONS", [*MIGRATIONS, ("CREATE TABLE later (x TEXT)",)])
    before = (lab / "lab.sqlite").read_bytes()
    assert bblab("report", "--json", "-").code == 0
    assert (lab / "lab.sqlite").read_bytes() == before  # a report changes nothing: the file is its own backup
    with sqlite3.connect(lab / "lab.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)


def test_json_on_stdout_is_json_alone_and_writes_no_files(bblab: Any, filled: Any, lab: Path) -> None:
    filled(FOUR)
    ran = bblab("report", "--json", "-", "--budget", "5ms")
    found = json.loads(ran.out)
    assert found["charts"][0]["budget"] == pytest.approx(0.005)
    assert [r["name"] for r in found["rows"]] == ["a", "b", "d", "c"]
    assert not (lab / "out").exists()


def test_a_report_is_a_page_figures_and_tables(bblab: Any, filled: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("altair")
    filled(FOUR)
    ran = bblab("report", "--out", tmp_path / "r", "--budget", "10ms")
    assert ran.code == 0
    assert str(tmp_path / "r" / "pareto.html") in ran.out
    names = sorted(p.name for p in (tmp_path / "r").iterdir())
    stem = "pareto-latency-host-ort-255-top-1-digits-abcdef"
    assert names == sorted(
        ["pareto.csv", "pareto.html", "pareto.md", "pareto.tex", *(f"{stem}.{e}" for e in ("pdf", "png", "svg"))]
    )
    assert (tmp_path / "r" / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "r" / "pareto.csv").read_text().splitlines()[0].startswith("chart,name,form,accuracy")


@pytest.mark.parametrize("name", ["comparison", "runs", "device"])
def test_the_other_reports_are_made_of_the_same_notebook(bblab: Any, filled: Any, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("altair")
    filled(FOUR)
    ran = bblab("report", name, "--out", tmp_path)
    assert ran.code == 0
    assert (tmp_path / f"{name}.html").exists()
    assert "a" in (tmp_path / f"{name}.csv").read_text()


def test_a_lab_adds_its_own_report(bblab: Any, filled: Any, lab: Path) -> None:
    filled(FOUR)
    (lab / "reports").mkdir()
    (lab / "reports" / "count.py").write_text(
        "from bblab.reports import Page, Table, notebook_report\n"
        "from bblab.reports.kit import tables\n"
        "@notebook_report('count')\n"
        "def count(stored, options):\n"
        "    columns = tables.columns_of(('timings', 'timings', '', 'right'))\n"
        "    n = len(stored.timings)\n"
        "    return Page('count', Table(columns, ((str(n),),), ((n,),)))\n"
    )
    ran = bblab("report", "count", "--json", "-")
    assert json.loads(ran.out)["rows"] == [{"timings": 4}]


# A crowd ------------------------------------------------------------------------------------------------------------


def crowd(count: int) -> list[NewRun]:
    rng = np.random.default_rng(1)
    rows = []
    for i in range(count):
        ms = float(np.exp(rng.uniform(0.4, 3.4)))
        rows += net(f"net_{i}", i + 1, ms, 50 + 10 * math.log(ms) + float(rng.normal(0, 3)), with_samples=False)
    return rows


def test_of_a_crowd_the_front_and_what_may_be_on_it_stay() -> None:
    from bblab.reports.pareto import thinned

    class Fake:
        def __init__(self, i: int) -> None:
            self.x = float(i)
            self.is_on_front, self.is_reference, self.is_level = i % 500 == 0, i == 7, i % 100 == 1
            self.probability = 0.5 if i % 250 == 3 else 0.0

    marks: Any = [Fake(i) for i in range(10_000)]
    kept = thinned(marks, 2_000)
    assert len(kept) == 2_000
    for m in marks:
        if m.is_on_front or m.is_reference or m.is_level or m.probability:
            assert m in kept
    assert kept == sorted(kept, key=lambda m: m.x)


@pytest.mark.slow
def test_a_thousand_candidates_make_a_page_below_three_megabytes(filled: Any) -> None:
    from bblab.reports.kit import draw_html

    page = page_of(filled(crowd(1_000)))
    assert len(draw_html.page(page).encode()) < 3e6
    assert len(main_charts(page)[0].marks) == 1_000


@pytest.mark.slow
def test_ten_thousand_candidates_are_thinned_with_a_note(filled: Any) -> None:
    from bblab.reports.kit import draw_html

    page = page_of(filled(crowd(10_000)))
    (chart,) = main_charts(page)
    assert len(chart.marks) <= 2_000
    assert chart.left_out == 10_000 - len(chart.marks)
    assert f"{chart.left_out} of 10000 points" in chart.caption
    assert len(draw_html.page(page).encode()) < 3e6


# The page in a browser ----------------------------------------------------------------------------------------------


@pytest.fixture
def browser() -> Any:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("altair")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with sync.sync_playwright() as p:
        made = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


class Opened:
    """A page with all that it said and asked for."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.page = browser.new_page(viewport={"width": 1300, "height": 1000})
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-done]", state="attached", timeout=60_000)

    def point(self, name: str) -> Any:
        return self.page.locator(f'path[aria-label*="name: {name}"]').first

    def names(self) -> list[str]:
        found = self.page.locator('g.mark-symbol path[aria-label*="name: "]')
        labels = [found.nth(i).get_attribute("aria-label") for i in range(found.count())]
        return sorted(re.search(r"name: ([^;]*)", label)[1] for label in labels)  # type: ignore[index]

    def outside(self) -> list[str]:
        return [u for u in self.requests if not u.startswith(("file:", "data:", "blob:"))]


def written(lab: Lab, folder: Path, **options: Any) -> Path:
    from bblab.reports.kit import draw_html

    path = folder / "page.html"
    path.write_text(draw_html.page(page_of(lab, **options), options.get("lang", "en")), encoding="utf-8")
    return path


HOSTILE = "</script><img src=x onerror=alert(1)>"


def test_the_page_is_quiet_and_asks_nothing_of_any_network(browser: Any, filled: Any, tmp_path: Path) -> None:
    rows = [*FOUR, *net(HOSTILE, 9, 7, 72), timing("d", f"{4:012x}", 0.02, form="train")]
    path = written(filled(rows), tmp_path, budget_s=0.005)
    assert "http-equiv" in path.read_text() and "default-src 'none'" in path.read_text().replace("&#x27;", "'")
    opened = Opened(browser, path)
    assert opened.errors == []
    assert opened.outside() == []
    assert opened.names() == sorted(["a", "b", "c", "d", "d", HOSTILE])
    assert opened.page.locator("img").count() == 0  # the name is text


def test_hovering_shows_where_a_number_is_from(browser: Any, filled: Any, tmp_path: Path) -> None:
    opened = Opened(browser, written(filled(FOUR), tmp_path))
    opened.point("b").hover()
    tip = opened.page.locator("#tip")
    tip.wait_for(state="visible", timeout=10_000)
    text = tip.inner_text()
    for told in ("4.00 ms", "host (Made-up CPU), ort 1.32.0", "deploy", "000000000002", "load 0.5 → 0.7", "digits"):
        assert told in text, (told, text)
    assert re.search(r"latency runs\s+4\b", text) and re.search(r"run 5: digits", text)


def test_a_click_opens_the_spec_and_its_findings(browser: Any, filled: Any, tmp_path: Path) -> None:
    opened = Opened(browser, written(filled(FOUR), tmp_path))
    opened.point("b").click()
    text = opened.page.locator("#details").inner_text()
    assert "heavy-last-stage s16: 82 % of <all>" in text
    assert "423 px (3.30 × template)" in text
    assert "bblab show 6" in text


def test_filters_leave_what_they_say_and_the_front_follows(browser: Any, filled: Any, tmp_path: Path) -> None:
    rows = [*FOUR, timing("d", f"{4:012x}", 0.02, form="train")]
    rows += [timing(n, f"{i:012x}", 0.05, device="pixel6", session="p") for i, n in enumerate("abc", 1)]
    opened = Opened(browser, written(filled(rows), tmp_path))
    opened.page.click('button[data-key="form"][data-value="train"]')
    opened.page.wait_for_function("document.querySelectorAll('g.mark-symbol path[aria-label*=\"name: \"]').length == 4")
    opened.page.fill("#search", "c")
    opened.page.wait_for_function("document.querySelectorAll('g.mark-symbol path[aria-label*=\"name: \"]').length == 1")
    assert opened.names() == ["c"]
    assert "1 of 5 points" in opened.page.inner_text("#count")
    # c alone is its own front: it has a label now.
    assert opened.page.locator("g.labels").text_content() == "c"
    opened.page.fill("#search", "nothing like it")
    opened.page.wait_for_function("document.querySelectorAll('g.mark-symbol path[aria-label*=\"name: \"]').length == 0")
    opened.page.fill("#search", "")
    opened.page.select_option("#choose-device", "pixel6")
    opened.page.wait_for_function("document.querySelectorAll('g.mark-symbol path[aria-label*=\"name: \"]').length == 3")
    assert opened.errors == []


def test_the_axes_can_be_chosen(browser: Any, filled: Any, tmp_path: Path) -> None:
    opened = Opened(browser, written(filled(FOUR), tmp_path))
    titles = set()
    options = opened.page.locator("#choose-axis option")
    for value in [options.nth(i).get_attribute("value") for i in range(options.count())]:
        opened.page.select_option("#choose-axis", value)
        opened.page.wait_for_function("v => document.querySelector('#title').textContent.includes(v)", arg=value)
        titles.add(opened.page.inner_text("#title"))
    assert len(titles) == 4
    assert opened.errors == [] and opened.outside() == []


def test_the_page_speaks_chinese(browser: Any, filled: Any, tmp_path: Path) -> None:
    opened = Opened(browser, written(filled(FOUR), tmp_path, lang="zh"))
    assert "骨干网络" in opened.page.inner_text("#title")
    assert opened.page.get_attribute("html", "lang") == "zh-CN"
    assert opened.errors == []


# Names, units and commands, which are nobody's words; what comes from data and nets; a design rule's message.
NOT_OURS = re.compile(
    r"bblab [^，。；）]*|--[a-z-]+( [A-Z]+)?|\[[^\]]*\]|[A-Za-z0-9_.@:-]*[_@0-9][A-Za-z0-9_.@:-]*|"
    r"\b(top-1|MACs|UTC|ms|us|px|fps|ort|host|float32|deploy|train|nanotrack|digits|abcdef|Made-up CPU|CPU|RF|SE|GB|MB|"
    r"CSV|Markdown|JavaScript|SVG|PNG|M|K|G|B|val|test|arXiv|Luo et al|cpu|made up|heavy-last-stage|"
    r"of|all|s|x|a|b|c|d)\b"
)


def test_columns_and_cells_of_every_report_are_in_chinese(lab: Path) -> None:
    odd = [
        timing("fast_1", "f" * 12, 0.001), training("slow_1", "e" * 12, 90),
        timing("d", f"{4:012x}", 0.02, form="train"), score("a", f"{1:012x}", 0.2),
        training("n", "8" * 12, None), timing("n", "8" * 12, 0.003),
        timing("x", "9" * 12, 0.003, reference="a", session="duel"), training("a", f"{1:012x}", 61, seed=1),
        timing("a", f"{1:012x}", 0.003, pace_fps=30.0, threads=2, session="t"),
    ]  # fmt: skip
    with Store.open(lab / "lab.sqlite") as store:
        store.add_many([*FOUR, *odd])
    made = Lab(lab)
    for name in ("pareto", "comparison", "spec_card", "runs", "device"):
        stored = reporting.gather(made, lang="zh")
        page = reports.find_for_notebook(name, Rooms(lab))(stored, Options(lang="zh"))
        tables = [page.table, *(t for _, t in page.sections)]
        said = [page.heading, *page.about, *page.notes, *(title for title, _ in page.sections)]
        said += [text for t in tables for c in t.columns if c.title for text in (c.title, c.unit)]
        said += [row[i] for t in tables for row in t.cells for i, c in enumerate(t.columns) if c.title]
        said += [c.title for c in page.charts] + [getattr(c, "caption", "") for c in page.charts]
        said += [text for c in page.charts if isinstance(c, ParetoChart) for m in c.marks for pair in m.provenance
                 for text in pair]  # fmt: skip
        left = sorted({w for text in said for w in re.findall(r"[A-Za-z]{3,}", NOT_OURS.sub(" ", text))})
        assert left == [], (name, left, [t for t in said if any(w in t for w in left)][:5])


def test_a_wrong_axis_in_python_is_a_mistake_of_the_user(filled: Any) -> None:
    with pytest.raises(BblabError, match="latncy"):
        page_of(filled(FOUR), against="latncy")
