"""Random specs, drawn from the catalogue as YAML text: what the analysis says of them is what torch does.

The draws are the same on every machine; a failure prints the spec's text.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bblab import blockkit, blocks, build, ops, spec
from bblab.analysis.net import SUMS, Analyst, summarise
from bblab.errors import BblabError, SpecError
from bblab.rooms import Rooms
from bblab.spec import ArchSpec

KINDS = blocks.infos(Rooms(Path("nowhere")))
ANALYST = Analyst(KINDS)
SE = st.sampled_from(["{ratio: 0.25}", "{ratio: 0.5, gate: sigmoid, layers: linear}", "{squeeze: 4, act: hswish}"])

# Values worth drawing, by argument. An argument of any block that stands here is tried on it.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "kernel": st.sampled_from([3, 3, 5, 7]),
    "branches": st.integers(1, 3),
    "se": SE,
    "act": st.sampled_from(["relu", "hswish", "silu", "none"]),
    "expand": st.sampled_from([1, 2, 4]),
    "identity": st.booleans(),
    "scale": st.booleans(),
    "residual": st.booleans(),
    "dilation": st.sampled_from([1, 2]),
    "groups": st.sampled_from([1, 2, 8]),
    "pad": st.sampled_from(["same", "valid", "same_unless_strided", "tf_same", "1"]),
    "se_position": st.sampled_from(["after_act", "before_act"]),
    "shortcut": st.sampled_from(["conv", "avgpool", "maxpool"]),
    "ceil_mode": st.booleans(),
    "crop": st.integers(1, 2),
    "last_act": st.booleans(),
    "projection": st.sampled_from(["{kernel: 1}", "{kernel: 3}"]),
    "bias": st.booleans(),
    "norm": st.booleans(),
}
WIDTHS = st.sampled_from([8, 16, 24, 32, 40])
USABLE = sorted(k for k, i in KINDS.items() if not i.is_head and not any(p.is_required for p in i.params))


@st.composite
def rows(draw: st.DrawFn, in_ch: int, strides: tuple[int, ...]) -> tuple[str, int]:
    """One row that its block accepts, as YAML, and its channels."""
    kind = draw(st.sampled_from(USABLE))
    info = KINDS[kind]
    stride = draw(st.sampled_from(strides)) if info.has_stride else 1
    out = in_ch if info.keeps_channels else draw(WIDTHS)
    names = sorted(p.name for p in info.params if p.name in VALUES)
    chosen = draw(st.lists(st.sampled_from(names), max_size=3, unique=True)) if names else []
    entries = [f"block: {kind}", f"out: {out}", f"stride: {stride}" if stride > 1 else ""]
    entries += [
        f"{name}: {str(draw(VALUES[name])).replace('True', 'true').replace('False', 'false')}" for name in chosen
    ]
    text = "{" + ", ".join(e for e in entries if e) + "}"
    try:  # a draw that the block refuses becomes a plain convolution
        one = spec.parse(f"name: t\ninput: [{in_ch}, 64, 64]\nstages: {{a: {text}}}", KINDS)
        ANALYST.cost(one, "train")
    except BblabError:
        text, out = f"{{block: conv, out: {out}, stride: {stride}}}", out
    return text, out


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A spec of 2 to 4 stages, 1 to 3 rows each, total stride at most 16."""
    lines = ["name: drawn", "input: [3, 72, 64]", "stages:", "  stem: {block: conv, out: 16, stride: 2}"]
    channels, total = 16, 2
    names = ["stem"]
    for number in range(draw(st.integers(1, 3))):
        found = []
        for _ in range(draw(st.integers(1, 3))):
            text, channels = draw(rows(channels, (1, 2) if total < 16 else (1,)))
            total *= 2 if "stride: 2" in text else 1
            found.append(text)
        names.append(f"n{number}")
        lines.append(f"  n{number}: [{', '.join(found)}]")
    if draw(st.booleans()):
        lines.append(f"taps: [{', '.join(draw(st.lists(st.sampled_from(names), min_size=1, unique=True)))}]")
    if draw(st.booleans()):
        lines.append("head: {block: classifier, out: 10}")
    return "\n".join(lines) + "\n"


class Whole(nn.Module):
    """Every stage's map and, last, what the head makes of it."""

    def __init__(self, net: build.Backbone) -> None:
        super().__init__()
        self.stages, self.head = net.stages, net.head

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for stage in self.stages.values():
            x = stage(x)
            found.append(x)
        return [*found, self.head(x)] if self.head is not None else found


def checked(text: str) -> None:
    try:
        one = spec.parse(text, KINDS, name="drawn")
        train, deploy = ANALYST.cost(one, "train"), ANALYST.cost(one, "deploy")
    except SpecError as error:
        # rows valid alone may shrink the map to nothing together; anything else is a bug
        assert all("map of" in c.message for c in error.complaints), error
        return
    same_net(one, spec.parse(text.replace("name: drawn", "name: other"), KINDS))
    net = build.Backbone(one, KINDS, device="meta").eval()
    for form, cost in (("train", train), ("deploy", deploy)):
        whole: nn.Module = Whole(net)
        if form == "deploy":
            whole = blockkit.deploy(whole)
        x = torch.zeros((1, *one.input), device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            outs = whole(x)
        assert cost.macs * 2 == counter.get_total_flops()
        assert cost.params == sum(p.numel() for p in whole.parameters())
        assert [(m.channels, m.height, m.width) for m in cost.maps] == [o.shape[1:] for o in outs[: len(cost.maps)]]
        at_once = summarise(ops.record(whole, [x]))
        for name, ours, theirs in zip(SUMS, cost.sums, at_once.sums, strict=True):
            assert ours == theirs, (form, name)
        assert (cost.uncounted, cost.unknown) == ((), "")
        for m, views in zip(cost.maps, at_once.views, strict=False):
            assert (m.window_h, m.window_w) == views[0]
    stride = 1
    for m, stage in zip(deploy.maps, one.stages, strict=True):
        stride *= stage.stride
        assert m.stride == stride
        cut = ANALYST.cost(spec.cut_at(one, stage.name), "deploy")
        upto = deploy.maps[: len(cut.maps)]
        assert cut.sums == tuple(map(sum, zip(*(u.sums for u in upto), strict=True)))
        if stage.name == one.backbone_stages[-1].name:
            assert cut.backbone_sums == deploy.backbone_sums
    for a, b in zip(train.maps, deploy.maps, strict=True):
        assert (a.channels, a.height, a.width, a.window_h, a.window_w, a.clean_h, a.clean_w) == (
            b.channels, b.height, b.width, b.window_h, b.window_w, b.clean_h, b.clean_w)  # fmt: skip
    assert build.deploy_difference(one, KINDS) < 1e-5


def same_net(one: ArchSpec, other: ArchSpec) -> None:
    assert one.spec_id == other.spec_id
    row = one.stages[0].rows[0]
    assert (row.kind, row.stride) == ("conv", 2)


SAME = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@settings(SAME, max_examples=8)
@given(texts())
def test_random_specs(text: str) -> None:
    checked(text)


@pytest.mark.slow
@settings(SAME, max_examples=150)
@given(texts())
def test_many_random_specs(text: str) -> None:
    checked(text)
