"""Whatever the catalogue holds: builds, trains a step, keeps its stride, fuses, counts, exports.

A new block is tested because it exists: arguments come from its signature, and from TRIES where it has required ones
or branches worth a look.
"""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bblab import blockkit, blocks, ops
from bblab.analysis import cost
from bblab.analysis.net import summarise
from bblab.rooms import Rooms
from bblab.spec import BlockInfo, Row, freeze

KINDS = blocks.infos(Rooms(Path("nowhere")))
SE = {"ratio": 0.25, "gate": "hsigmoid"}

Try = tuple[Any, Any, int, dict[str, Any]]
"""Input channels, output channels, stride, arguments. Channels are lists for blocks of several maps."""

# Beside the defaults: arguments that change the block's structure.
MORE: dict[str, dict[str, Any]] = {
    "kernel": {"kernel": 5},
    "se": {"se": SE},
    "branches": {"branches": 3},
    "dilation": {"dilation": 2},
    "act": {"act": "hswish"},
    "groups": {"groups": 2},
    "pad": {"pad": "same_unless_strided"},
    "crop": {"crop": 1},
    "ceil_mode": {"ceil_mode": True},
    "bias": {"bias": True},
    "hidden": {"hidden": [24, 16], "hidden_act": "hswish"},
    "projection": {"projection": {"kernel": 3}},
    "shuffle": {"shuffle": False},
    "last_act": {"last_act": False},
    "identity": {"identity": False},
    "scale": {"scale": False},
    "norm": {"norm": False},
    "mid_act": {"mid_act": "none"},
}
# What a signature cannot tell: required arguments, several maps.
REQUIRED: dict[str, Try] = {
    "mobilevit": (16, 24, 1, {"width": 16}),
    "inception": (16, 36, 1, {"one": 8, "three": [4, 12], "five": [4, 8], "pool": 8}),
    "inception_a": (16, 256, 1, {}),
    "inception_b": (16, 384 + 96 + 16, 2, {}),
    "cir_inception": (16, 80, 1, {}),
}
FAST = {"kernel", "se", "branches", "pad", "projection"}
"""The other arguments are tried in the slow set."""
SEVERAL = {kind for kind in KINDS if kind.startswith("hr")}
"""Blocks of several maps, tested with their nets."""


def tries(info: BlockInfo) -> Iterator[Try]:
    """Argument sets to try; those that the block refuses with a ValueError are left out."""
    if info.kind in REQUIRED:
        yield REQUIRED[info.kind]
        return
    wider = 16 if info.keeps_channels else 32
    yield 16, 16, 1, {}
    yield 16, wider, 1, {}
    if info.has_stride:
        yield 16, wider, 2, {}
    for name, more in MORE.items():
        if info.param(name) is not None:
            yield 16, 16, 1, more
            if info.has_stride and name in ("pad", "kernel", "branches", "projection"):
                yield 16, wider, 2, more


def as_row(info: BlockInfo, one: Try) -> Row:
    _, out_ch, stride, args = one
    out = tuple(out_ch) if isinstance(out_ch, list) else out_ch
    return Row(info.kind, out, stride, tuple(sorted((k, freeze(v)) for k, v in args.items())))


def made(info: BlockInfo, one: Try, device: str | None = None) -> nn.Module:
    in_ch = tuple(one[0]) if isinstance(one[0], list) else one[0]
    return blocks.make(as_row(info, one), in_ch, info, device=device)


def accepted() -> list[Any]:
    found = []
    for kind, info in sorted(KINDS.items()):
        if kind not in REQUIRED and any(p.is_required for p in info.params):
            continue
        for one in tries(info):
            try:
                made(info, one, "meta")
            except (ValueError, TypeError, IndexError):
                continue
            label = "-".join([kind, f"{one[0]}-{one[1]}-s{one[2]}", *map(str, one[3])])
            marks = [] if not one[3] or set(one[3]) & FAST or kind in REQUIRED else [pytest.mark.slow]
            found.append(pytest.param(info, one, id=label, marks=marks))
    return found


CASES = accepted()
SIDE = 32


def given(info: BlockInfo, one: Try, batch: int = 2, device: str = "cpu", side: int = SIDE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    channels = one[0] if isinstance(one[0], (list, tuple)) else [one[0]]
    shapes = [(batch, c, side >> i, side >> i) for i, c in enumerate(channels)]
    if device == "meta":
        return [torch.zeros(s, device="meta") for s in shapes]
    return [torch.randn(s, generator=generator) for s in shapes]


def outputs(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def run(module: nn.Module, info: BlockInfo, one: Try, x: list[Tensor]) -> list[Tensor]:
    return outputs(module(x) if isinstance(one[0], (list, tuple)) else module(*x))


def test_every_block_is_tried() -> None:
    tried = {p.values[0].kind for p in CASES}
    missing = set(KINDS) - tried - SEVERAL
    assert not missing, "add its required arguments to REQUIRED"


@pytest.mark.parametrize(("info", "one"), CASES)
def test_it_keeps_its_stride_and_channels(info: BlockInfo, one: Try) -> None:
    module = made(info, one, "meta").eval()
    (out,) = run(module, info, one, given(info, one, device="meta"))
    assert out.is_meta and out.shape[0] == 2
    assert out.shape[1] == one[1]
    if info.is_head:
        assert out.shape == (2, one[1])
        return
    graph = ops.record(module, given(info, one, batch=1, device="meta"))
    summary = summarise(graph)
    assert (summary.unknown, summary.uncounted) == ("", ())
    view = summary.views[0][0]
    assert view is not None and view[0].jump == view[1].jump == one[2]
    # a step of `stride` pixels: the map is the input's size over the stride, give or take what is not padded
    assert abs(out.shape[2] - SIDE / one[2]) <= 5


@pytest.mark.parametrize(("info", "one"), CASES)
def test_it_trains_a_step(info: BlockInfo, one: Try) -> None:
    torch.manual_seed(0)
    module = made(info, one).train()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1) if before else None
    x = [t.requires_grad_() for t in given(info, one, batch=4)]
    # a random target: with batch norm the plain sum has no gradient
    loss = sum((o * torch.randn_like(o)).sum() for o in run(module, info, one, x))
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, p in module.named_parameters():
        assert p.grad is not None, f"{name} gets no gradient"
        assert p.grad.isfinite().all(), name
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in x)
    if optimizer:
        optimizer.step()
        assert any(not torch.equal(before[n], p) for n, p in module.named_parameters())


@torch.no_grad()
def trained(info: BlockInfo, one: Try) -> nn.Module:
    """With norms as training leaves them: statistics of real inputs, everything moved by half."""
    torch.manual_seed(0)
    module = made(info, one).train()
    for _ in range(2):
        run(module, info, one, given(info, one, batch=4))
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, 0.2, 0.8)
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.add_(torch.rand_like(m.running_mean) - 0.5)
            m.running_var.mul_(torch.rand_like(m.running_var) + 0.5)
    return module.eval()


@pytest.mark.parametrize(("info", "one"), CASES)
@torch.no_grad()
def test_the_deploy_form_gives_the_train_forms_output(info: BlockInfo, one: Try) -> None:
    module = trained(info, one)
    fused = blockkit.deploy(module)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)] or info.kind.startswith(("act", "series"))
    x = given(info, one)
    for a, b in zip(run(module, info, one, x), run(fused, info, one, x), strict=True):
        assert a.isfinite().all() and a.std() > 0
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()
    again = blockkit.deploy(fused)  # what is fused stays as it is
    assert [p.shape for p in again.parameters()] == [p.shape for p in fused.parameters()]


@pytest.mark.parametrize(("info", "one"), CASES)
def test_its_cost_is_recorded_alike_twice_and_agrees_with_torch(info: BlockInfo, one: Try) -> None:
    for form in ("train", "deploy"):
        module = made(info, one, "meta").eval()
        if form == "deploy":
            module = blockkit.deploy(module)
        x = given(info, one, batch=1, device="meta")
        graph = ops.record(module, x)
        assert ops.OpGraph.from_json(graph.to_json()) == graph == ops.record(module, x)
        total = cost.totals(graph, cost.op_costs(graph))
        assert total.params == sum(p.numel() for p in module.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*x)
        assert total.macs * 2 == counter.get_total_flops(), form
        # once more with both counters side by side, op by op, and with what runs below Python's calls
        beside = ops.record(module, x, counts=True)
        second = cost.second_count(beside, cost.op_costs(beside))
        assert second is not None and (second.unexplained, second.difference, second.omitted) == ((), 0, 0)
        assert [o.name for o in beside.ops] == [o.name for o in graph.ops], "something runs below Python's calls"


@pytest.mark.slow
@pytest.mark.parametrize(("info", "one"), CASES)
@torch.no_grad()
def test_both_forms_export_to_torchscript(info: BlockInfo, one: Try) -> None:
    module = trained(info, one)
    for net in (module, blockkit.deploy(module)):
        x = given(info, one)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(net, tuple(x))
            buffer = io.BytesIO()
            torch.jit.save(traced, buffer)
            buffer.seek(0)
            loaded = torch.jit.load(buffer)
        for a, b in zip(run(net, info, one, x), outputs(loaded(*x)), strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
