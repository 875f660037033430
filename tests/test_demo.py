"""bblab demo: its steps are commands, it keeps what is trained, and the whole chain ends with a report."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bblab import cli
from bblab.cli import demo
from bblab.lab import Lab


class Typed:
    """Stands for `bblab.cli.main`: notes the demo's commands and runs none of them."""

    def __init__(self, failing: str = "") -> None:
        self.steps: list[list[str]] = []
        self.failing = failing

    def __call__(self, argv: list[str]) -> int:
        self.steps.append(argv)
        return int(argv[0] == self.failing)


def store_training(lab: Path, name: str, epochs: int, status: str) -> int:
    with Lab(lab).notebook() as store:
        return store.add(
            "pretrain", spec_id="c0ffee", name=name, code_version="1", inputs={"recipe": {"name": "digits"}},
            result={"status": status, "epochs_trained": epochs},
        )  # fmt: skip


def test_the_demo_types_the_chain_from_profile_to_report(
    bblab: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = Typed()
    monkeypatch.setattr("bblab.cli.main", typed)
    ran = bblab("demo", "--out", tmp_path / "demo")
    assert ran.code == 0
    assert [step[0] for step in typed.steps] == ["profile", "bench", "pretrain", "pretrain", "pretrain", "report"]
    assert [step[1] for step in typed.steps[2:5]] == list(demo.CANDIDATES)
    assert all(step[-2:] == ["--lab", str(tmp_path / "demo" / "lab")] for step in typed.steps)
    assert ran.out.count("$ bblab ") == len(typed.steps)
    assert "pareto.html" in ran.out.splitlines()[-2]


def test_a_demo_run_again_keeps_what_was_trained_to_the_end(
    bblab: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = tmp_path / "demo" / "lab"
    first, second, third = demo.CANDIDATES
    number = store_training(lab, first, demo.EPOCHS, "done")
    store_training(lab, second, demo.EPOCHS - 1, "stopped")
    store_training(lab, third, demo.EPOCHS + 1, "done")
    typed = Typed()
    monkeypatch.setattr("bblab.cli.main", typed)
    ran = bblab("demo", "--out", tmp_path / "demo")
    assert [step[1] for step in typed.steps if step[0] == "pretrain"] == [second, third]
    assert f"{first} is trained: run {number}" in ran.out


def test_a_step_that_fails_ends_the_demo_with_what_to_type(
    bblab: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = Typed(failing="bench")
    monkeypatch.setattr("bblab.cli.main", typed)
    ran = bblab("demo", "--out", tmp_path / "demo")
    assert ran.code == 1 and len(typed.steps) == 2
    assert "step 2 of 6 failed: bench" in ran.err and "bblab demo --out" in ran.err


def test_a_folder_that_cannot_be_made_is_said(bblab: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = bblab("demo", "--out", tmp_path / "file" / "demo")
    assert ran.code == 1 and "cannot be made" in ran.err and "--out" in ran.err


@pytest.mark.slow
def test_the_whole_chain_runs_and_ends_with_a_chart_of_three_nets(tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain")
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "bblab", "demo", "--out", str(out)], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    page = (out / "report" / "pareto.html").read_text()
    rows = (out / "report" / "pareto.csv").read_text()
    for name in demo.CANDIDATES:
        assert name in page and name in rows
    with Lab(out / "lab").notebook(read_only=True) as store:
        trained = store.runs(kind="pretrain")
    assert {run.name for run in trained} == set(demo.CANDIDATES)
    assert all(run.result["status"] == "done" and run.result["top1_percent"] > 50 for run in trained)
    assert cli.main(["report", "runs", "--out", str(tmp_path / "again"), "--lab", str(out / "lab")]) == 0
