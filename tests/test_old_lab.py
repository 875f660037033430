"""A lab that an older version wrote is read, searched, reported and gone on with (tests/data)."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

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
