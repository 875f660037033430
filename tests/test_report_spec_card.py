"""The spec card, and the effective receptive field on nets small enough to work out by hand."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bblab.analysis.effective import EffectiveField, effective_field
from bblab.store import MIGRATIONS, Store


def field_of(module: nn.Module, side: int = 9) -> EffectiveField:
    return effective_field(module, (1, side, side), images=2)


def test_a_3x3_convolution_sees_nine_pixels_as_its_weights_say() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]]]))
    field = field_of(conv)
    # The central unit of a 9x9 map is 4: pixels 3..5, the largest (4) as 1.
    assert [row[3:6] for row in field.rows[3:6]] == [(0.25, 0.5, 0.25), (0.5, 1.0, 0.5), (0.25, 0.5, 0.25)]
    assert sum(map(sum, field.rows)) == pytest.approx(4.0)
    assert field.centre == pytest.approx((4.5, 4.5))
    # One pixel holds 4 of 16, all nine hold 16.
    assert (field.side_holding(0.25), field.side_holding(0.26), field.side_holding(1.0)) == (1, 3, 3)


def test_two_3x3_convolutions_see_five_pixels() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    for conv in module:
        nn.init.ones_(conv.weight)
    # Every channel adds up the same symmetric kernel; random signs scale it, or cancel it (seen as a refusal).
    assert effective_field(module, (1, 9, 9), images=8).side_holding(1.0) == 5


def test_channels_do_not_cancel_out() -> None:
    conv = nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[1.0]]], [[[-1.0]]]]))
    seen = effective_field(conv, (1, 5, 5), images=16)
    assert seen.rows[2][2] == 1.0


def test_a_net_that_does_not_see_its_image_is_refused() -> None:
    class Blind(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0

    with pytest.raises(ValueError, match="does not depend"):
        field_of(Blind())


def test_a_card_has_stages_costs_growth_and_field(bblab: Any, spec_file: Any) -> None:
    spec = spec_file(
        "name: tiny\ntracker: {template: 31, search: 63}\ninput: [3, 64, 64]\n"
        "stages:\n  stem: {block: conv, out: 8, stride: 2}\n  s4: {block: conv, out: 16, stride: 2}\n",
        "tiny",
    )
    assert bblab("profile", spec, "--no-latency").code == 0
    ran = bblab("report", "spec_card", "--json", "-")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert {c["sort"] for c in found["charts"]} >= {"Diagram", "Bars", "LineChart"}
    rows = {r["stage"]: r for r in found["rows"]}
    # 3x3 on 3 channels to 8, its bias: 8 * 27 + 8; 3x3 at stride 2 after one at stride 2 sees 3 + 2 * 2 = 7.
    assert rows["stem"]["params"] == 224
    assert (rows["stem"]["receptive_field"], rows["s4"]["receptive_field"]) == (3, 7)


def test_a_notebook_of_an_older_version_is_kept_before_it_is_changed(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "lab.sqlite"
    row = {"spec_id": "a", "name": "a", "code_version": "0", "inputs": {}, "result": {"x": 1}}
    with Store.open(path) as store:
        store.add("timing", **row)
    monkeypatch.setattr("bblab.store.MIGRATIONS", [*MIGRATIONS, ("CREATE TABLE later (x TEXT)",)])
    with Store.open(path) as store:
        assert len(store.runs()) == 1
    kept = path.with_name(f"lab.sqlite.version-{len(MIGRATIONS)}")
    with sqlite3.connect(kept) as db:
        assert db.execute("SELECT count(*) FROM runs").fetchone()[0] == 1
        assert db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'later'").fetchone()[0] == 0
    assert sorted(p.name for p in tmp_path.glob("*.partial")) == []
