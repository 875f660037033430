"""fvcore, thop and torch beside our counter: every difference is explained, op by op, and nothing is left over."""

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bblab import blocks, spec
from bblab.analysis import cost, witness
from bblab.analysis.net import Analyst
from bblab.cli import witnesses
from bblab.errors import BblabError, SpecError
from bblab.installing import how_to_install
from bblab.rooms import Rooms
from bblab.spec import ArchSpec, BlockInfo, Stage

pytest.importorskip("fvcore")
pytest.importorskip("thop")

SE = "se: {ratio: 0.25, gate: hsigmoid}"
SMALL = {  # every built-in block, at sizes that trace in a blink
    "mobileone": f"""
        stem: {{block: mobileone_dense, out: 16, stride: 2, branches: 2}}
        body: [{{block: mobileone, out: 24, stride: 2, kernel: 5, branches: 3, {SE}}}, {{block: mobileone}}]""",
    "repvgg": """
        stem: {block: repvgg, out: 16, stride: 2}
        body: {block: repvgg, groups: 4, repeat: 2}""",
    "grouped": """
        stem: {block: conv, out: 24, stride: 2, bias: true, act: hswish}
        body: [{block: conv, groups: 4, kernel: [3, 5]}, {block: mobileone_dense, out: 36, groups: 6}]
        tail: {block: conv, norm: false, kernel: 1, act: none}""",
    "mbconv": f"""
        stem: {{block: conv, out: 16, stride: 2, pad: tf_same, act: silu}}
        body: [{{block: mbconv, {SE}}}, {{block: mbconv, out: 24, stride: 2, kernel: 5, act: hswish,
            se: {{layers: linear}}, se_position: before_act}}, {{block: dwsep, out: 32, act: leaky_relu}}]""",
    "shuffle": """
        stem: [{block: conv, out: 16, stride: 2}, {block: maxpool, pad: 1, stride: 2}]
        body: [{block: shuffle, out: 32, stride: 2}, {block: shuffle}, {block: shuffle_down, out: 48}]
        pooled: [{block: shuffle_down, out: 64, shortcut: avgpool, branches: 2}, {block: avgpool, kernel: 2, stride: 2}]
        late: {block: shuffle_down, out: 96, shortcut: maxpool}""",
    "resnet": """
        stem: {block: conv, out: 16, stride: 2}
        body: [{block: basic}, {block: bottleneck, out: 32, stride: 2}, {block: crop}, {block: basic, out: 24}]""",
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, BlockInfo]:
    return blocks.infos(Rooms(tmp_path_factory.mktemp("lab")))


def small(name: str, kinds: Mapping[str, BlockInfo], head: str = "") -> ArchSpec:
    text = f"name: {name}\ninput: [3, 48, 40]\nstages:{SMALL[name]}\n{head}"
    return spec.parse(text, kinds, file=f"{name}.yaml", name=name)


def named(reference: str, kinds: Mapping[str, BlockInfo]) -> ArchSpec:
    return spec.resolve(reference, Rooms(Path("nowhere")), kinds)


def by_reason(row: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    return {e["what"]: (e["count"], e["macs"], e["params"]) for e in row["explained"]}


def check(one: ArchSpec, kinds: Mapping[str, BlockInfo], *, drops_params: bool = False) -> None:
    """All three witnesses, both forms: nothing unexplained, and torch agrees to the last MAC and parameter."""
    for form in ("train", "deploy"):
        for name in witness.NAMES:
            row = witness.compare(one, kinds, form, name)
            assert (row["unexplained"], row["unexplained_params"]) == (0, 0), row
            assert row["difference"] == row["macs"] - row["ours"]["macs"]
            if name == "torch":
                assert (row["macs"], row["explained"]) == (row["ours"]["macs"], []), row
            if name != "thop" or not drops_params:
                assert row["params"] == row["ours"]["params"], row


# ---------------------------------------------------------------------------------------------- agreement


def test_a_block_of_no_small_spec_is_tested_where_a_built_in_net_uses_it(kinds: Mapping[str, BlockInfo]) -> None:
    """A new block is tested because it exists: the shortest beginning of a built-in net that holds it, made small."""
    open_kinds = {k for k, info in kinds.items() if info.origin == "built-in" and not info.is_head}
    open_kinds -= {row.kind for name in SMALL for stage in small(name, kinds).stages for row in stage.rows}
    rooms = Rooms(Path("nowhere"))
    beginnings: dict[str, ArchSpec] = {}
    for name in sorted(rooms.files("arch_specs", ".yaml")):
        try:
            one = spec.resolve(name, rooms, kinds)
        except SpecError:  # a broken spec fails in tests of its own
            continue
        for number, stage in enumerate(one.stages):
            for position, row in enumerate(stage.rows):
                if row.kind in open_kinds:
                    last = Stage(stage.name, stage.rows[: position + 1])
                    cut = replace(one, stages=(*one.stages[:number], last), taps=(stage.name,), head=None)
                    known = beginnings.setdefault(row.kind, cut)
                    beginnings[row.kind] = min(known, cut, key=lambda s: sum(len(stage.rows) for stage in s.stages))
    assert open_kinds == set(beginnings), "no built-in spec uses these blocks: add them to SMALL"
    for one in {id(cut): cut for cut in beginnings.values()}.values():
        try:
            tiny = replace(one, input=(one.input[0], 63, 63))
            Analyst(kinds).cost(tiny, "train")
        except SpecError:  # unpadded nets need more
            tiny = replace(one, input=(one.input[0], 127, 127))
        check(tiny, kinds, drops_params=True)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_difference_is_explained_for_every_built_in_block(name: str, kinds: Mapping[str, BlockInfo]) -> None:
    head = "head: {block: classifier, out: 10, hidden: [20, 12], hidden_act: relu6}"
    # thop overlooks the subclass of Conv2d that pads as TensorFlow does
    check(small(name, kinds, head), kinds, drops_params=name == "mbconv")


@pytest.mark.parametrize("name", ["mobilenetv3_small", "mobileone_s0", "nanotrack"])
def test_every_difference_is_explained_for_nets_at_their_own_size(name: str, kinds: Mapping[str, BlockInfo]) -> None:
    check(named(name, kinds), kinds)


def test_a_net_without_a_head_is_counted_to_its_last_stage(kinds: Mapping[str, BlockInfo]) -> None:
    check(small("repvgg", kinds, "taps: [stem]"), kinds)


def test_a_wrong_mac_rule_is_not_explained_away(
    kinds: Mapping[str, BlockInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ungrouped(op: Any, graph: Any) -> int:
        in_ch = graph.tensors[op.inputs[0]][1]
        kernel = op.attrs["weight_shape"][2:]
        return cost.numel(graph.tensors[op.outputs[0]]) * in_ch * kernel[0] * kernel[1]

    monkeypatch.setitem(cost.MAC_RULES, "conv2d", ungrouped)
    # The second layer: 12 x 24 x 20 outputs x 3 x 5 taps would read 24 channels instead of 6, and so on.
    for name in witness.NAMES:
        row = witness.compare(small("grouped", kinds), kinds, "deploy", name)
        assert row["unexplained"] < 0, row


def test_what_each_witness_adds_is_worked_out_from_its_rules(kinds: Mapping[str, BlockInfo]) -> None:
    one = small("repvgg", kinds, "head: {block: classifier, out: 10}")
    # Stem, at stride 2: norms of the 3x3 and the 1x1; two bodies at stride 1: those and the identity's.
    # 8 norms of 16 channels on 24x20; the head pools one such map.
    elements = 16 * 24 * 20
    reasons = by_reason(witness.compare(one, kinds, "train", "fvcore"))
    assert reasons == {
        "batch norm counted, 2 an element": (8, 8 * 2 * elements, 0),
        "adaptive pooling counted, 1 an input element": (1, elements, 0),
    }
    reasons = by_reason(witness.compare(one, kinds, "train", "thop"))
    assert reasons == {
        "batch norm counted, 4 an element": (8, 8 * 4 * elements, 0),
        "adaptive pooling counted, 481 an output element": (1, 16 * (24 * 20 + 1), 0),
    }


ODD = """
import torch, torch.nn.functional as F
from torch import nn

class Odd(nn.Module):
    def __init__(self, in_ch, out_ch):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_ch, out_ch, 2, 2, groups=2)
        self.down = nn.AvgPool2d(2)
        self.weight = nn.Parameter(torch.randn(out_ch, 4, 3, 3))
        self.norms = nn.Sequential(nn.GroupNorm(2, out_ch), nn.InstanceNorm2d(out_ch, affine=True),
                                   nn.BatchNorm2d(out_ch, affine=False), nn.PReLU(out_ch), nn.Softmax(dim=1))
        self.last = nn.LayerNorm(out_ch)
        self.small = nn.Sequential(nn.AdaptiveAvgPool2d((4, 3)), nn.Upsample(size=(24, 20), mode="bilinear"))

    def forward(self, x):
        x = F.conv2d(self.down(self.up(x)), self.weight, padding=1, groups=self.weight.shape[0] // 4)
        x = self.norms(x)
        x = x + self.small(x) + F.interpolate(x[:, :, ::2, ::2], scale_factor=2)
        q = x.flatten(2).transpose(1, 2)[:, None]
        q = F.scaled_dot_product_attention(q, q, q)[:, 0]
        return self.last(q @ q.transpose(1, 2) @ q).transpose(1, 2).reshape(x.shape)
"""


def test_rare_layers_of_a_users_block_are_explained_too(tmp_path: Path) -> None:
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "odd.py").write_text(ODD)
    own = blocks.infos(Rooms(tmp_path))
    text = "name: odd\ninput: [3, 48, 40]\nstages: {stem: {block: conv, out: 8, stride: 2}, odd: {block: odd.Odd}}"
    check(spec.parse(text, own, file="odd.yaml", name="odd"), own, drops_params=True)


# ---------------------------------------------------------------------------------------------- other libraries


def test_fvcore_misses_fused_attention(kinds: Mapping[str, BlockInfo]) -> None:
    pytest.importorskip("timm")
    one = named("timm:mobilevit_xxs", kinds)
    row = witness.compare(one, kinds, "train", "fvcore")
    assert (row["unexplained"], row["unexplained_params"]) == (0, 0)
    # Transformers on maps of 28x28, 14x14 and 7x7 (resized to 8x8): 2, 4, 3 layers of 64, 80, 96 channels. Patches of
    # 2x2 make four sequences of 14x14, 7x7, 4x4 tokens; two products of tokens^2 x channels a layer and sequence.
    macs = sum(n * 4 * 2 * t**2 * c for n, t, c in ((2, 196, 64), (4, 49, 80), (3, 16, 96)))
    assert by_reason(row)["fused attention not known to fvcore"] == (9, -macs, 0)
    assert witness.compare(one, kinds, "deploy", "torch")["difference"] == 0


def test_thop_drops_the_layers_that_timm_subclasses(kinds: Mapping[str, BlockInfo]) -> None:
    pytest.importorskip("timm")
    one = named("timm:mobilenetv3_small_100", kinds)
    row = witness.compare(one, kinds, "train", "thop")
    assert (row["unexplained"], row["unexplained_params"]) == (0, 0)
    reasons = by_reason(row)
    assert reasons["timm's Linear overlooked: no exact torch.nn type"] == (1, -1024 * 1000, -1024 * 1000 - 1000)
    # 34 norms with 6,056 channels together, a gain and a shift each: 41 % of the net with the classifier's.
    assert reasons["timm's BatchNormAct2d overlooked: no exact torch.nn type"] == (34, 0, -2 * 6056)
    assert row["difference_params"] / row["ours"]["params"] == pytest.approx(-0.41, abs=0.005)


def test_a_cut_library_net_is_counted_whole_and_says_so(kinds: Mapping[str, BlockInfo]) -> None:
    pytest.importorskip("timm")
    row = witness.compare(named("timm:mobilenetv3_small_100@s16", kinds), kinds, "deploy", "torch")
    assert row["difference"] == 0
    assert any("s16" in note for note in row["notes"])


# ---------------------------------------------------------------------------------------------- mistakes, the table


def test_an_unknown_witness_is_refused_with_the_choice(kinds: Mapping[str, BlockInfo]) -> None:
    assert witnesses.names(" fvcore, thop,fvcore") == ["fvcore", "thop"]
    for wrong in ("fvcor", "fvcore,ptflops", ""):
        with pytest.raises(BblabError) as caught:
            witnesses.names(wrong)
        assert "torch" in str(caught.value)
    with pytest.raises(BblabError, match="no witness 'x'"):
        witness.compare(small("repvgg", kinds), kinds, "train", "x")


def test_a_missing_witness_gets_the_command_of_its_extra(
    kinds: Mapping[str, BlockInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fvcore", None)
    with pytest.raises(BblabError, match=re.escape(how_to_install("thop"))):
        witness.compare(small("repvgg", kinds), kinds, "train", "fvcore")


def test_a_witness_that_breaks_on_a_net_is_told_not_hidden(
    kinds: Mapping[str, BlockInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(net: Any, x: Any) -> Any:
        raise TypeError("cannot trace this")

    monkeypatch.setattr(witness, "_fvcore", broken)
    row = witness.compare(small("repvgg", kinds), kinds, "train", "fvcore")
    assert row["macs"] is None and row["unexplained"] is None
    assert "cannot trace this" in row["notes"][0]
    assert "failed" in drawn([row])


def test_the_counters_print_nothing(kinds: Mapping[str, BlockInfo], capfd: pytest.CaptureFixture[str]) -> None:
    one = small("mbconv", kinds)
    capfd.readouterr()
    for name in witness.NAMES:
        witness.compare(one, kinds, "train", name)
    assert capfd.readouterr() == ("", "")


def drawn(rows: list[dict[str, Any]]) -> str:
    out = Console(width=110, record=True, file=io.StringIO())
    out.print(witnesses.table({"name": "some_net", "witnesses": rows}))
    return out.export_text()


def test_the_table_shows_every_figure_and_every_reason(kinds: Mapping[str, BlockInfo]) -> None:
    one = small("repvgg", kinds)
    rows = [witness.compare(one, kinds, form, name) for form in ("train", "deploy") for name in ("thop", "torch")]
    text = drawn(rows)
    for row in rows:
        assert f"{row['macs']:,}" in text and f"{row['ours']['params']:,}" in text
        for e in row["explained"]:
            assert f"{e['count']} × {e['what']}" in text and f"{e['macs']:+,}" in text
    assert "not explained" not in text
    wrong = {**rows[0], "unexplained": 7}
    assert "not explained" in drawn([wrong]) and "+7" in drawn([wrong])
