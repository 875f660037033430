"""Published figures: every net of the zoo has its family, and no figure stands without its source and device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bblab.cli import main
from bblab.errors import BblabError
from bblab.lab import Lab
from bblab.rooms import room


def test_every_spec_has_a_family_and_every_row_a_spec(tmp_path: Path) -> None:
    known = Lab(tmp_path).published()
    assert set(known) == {p.stem for p in room("arch_specs").glob("*.yaml")}
    assert all(p.family and p.code for p in known.values())


def test_no_figure_stands_without_its_source_and_device(tmp_path: Path) -> None:
    for name, p in Lab(tmp_path).published().items():
        if p.top1_percent is not None or p.speed:
            assert p.figures_source, name
        assert bool(p.speed) == bool(p.speed_device), name
        assert p.top1_percent is None or 50 < p.top1_percent < 90, name


def test_a_lab_adds_its_own_figures(tmp_path: Path) -> None:
    folder = tmp_path / "arch_specs"
    folder.mkdir()
    (folder / "published.csv").write_text(
        "spec,family,code,top1_percent,top1_note,speed,speed_device,figures_source\n"
        "mine,Mine,me,61.5,16 epochs,7 ms,my phone,my notes\n"
    )
    found = Lab(tmp_path).published()
    assert found["mine"].top1_percent == 61.5
    assert found["resnet18"].family == "ResNet"


def test_a_broken_file_says_which_columns_it_needs(tmp_path: Path) -> None:
    (tmp_path / "arch_specs").mkdir()
    (tmp_path / "arch_specs" / "published.csv").write_text("name,top1\nmine,high\n")
    with pytest.raises(BblabError, match=r"published\.csv cannot be read") as error:
        Lab(tmp_path).published()
    assert "figures_source" in error.value.hint


def test_specs_lists_one_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["specs", "--family", "lenet", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in rows] == ["lenet5"]
    assert rows[0]["params"]["train"] == 61_706  # mmpretrain's LeNet5
    assert main(["specs", "--family", "lenett"]) == 2
    assert "did you mean 'LeNet'" in capsys.readouterr().err
