"""What no Python call announces is counted too, and torch's own counter agrees or the difference has a name."""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from bblab import ops
from bblab.analysis import cost
from bblab.analysis.net import BlockSummary, summarise
from tests.test_cost import Run

CASES = Path(__file__).parents[2] / "shared" / "cases"


def summary(module: nn.Module, *shape: int, device: str = "meta") -> BlockSummary:
    x = torch.zeros(shape, device=device)
    return summarise(ops.record(module.to(device).eval(), [x], counts=True))


def w(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


@torch.jit.script
def scripted(x: Tensor, weight: Tensor) -> Tensor:
    return torch.conv2d(x, weight, None, [1, 1], [1, 1])


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return torch.matmul(x, weight)


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.Conv2d(16, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)).eval()
        return torch.jit.trace(net, torch.zeros(1, 16, 8, 8))


def in_inference_mode(m: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return F.conv2d(x, m.w, padding=1)


# On a map of 16 x 8 x 8: 64 units, 16 channels. (module, MACs, receptive field or None where it is not followed).
CONV = 64 * 4 * 16 * 9
SEEN: dict[str, tuple[nn.Module, int, int | None]] = {
    "scripted module": (Run(lambda m, x: m.c(x), c=torch.jit.script(nn.Conv2d(16, 4, 3, padding=1))), CONV, 3),
    "scripted function": (Run(lambda m, x: scripted(x, m.w), w=w(4, 16, 3, 3)), CONV, 3),
    "traced module": (Run(lambda m, x: m.t(x), t=traced()), CONV, 4),
    "vmap": (
        Run(lambda m, x: torch.vmap(lambda y: F.conv2d(y[None], m.w, padding=1)[0])(x), w=w(4, 16, 3, 3)), CONV, 3,
    ),
    "vmap over channels": (
        # 16 times 8 rows of 8 by a matrix of 8 x 8: every row is mixed with weights
        Run(lambda m, x: torch.vmap(lambda y: y @ m.w, in_dims=1, out_dims=1)(x), w=w(8, 8)), 16 * 8 * 64, 1,
    ),
    "checkpoint": (
        Run(
            lambda m, x: torch.utils.checkpoint.checkpoint(m.c, x, use_reentrant=False),
            c=nn.Conv2d(16, 4, 3, padding=1),
        ), CONV, 3,
    ),
    "autograd function": (Run(lambda m, x: Product.apply(x, m.w), w=w(8, 8)), 16 * 8 * 8 * 8, 1),
    "aten.convolution": (
        Run(
            lambda m, x: torch.ops.aten.convolution(x, m.w, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
            w=w(4, 16, 3, 3),
        ), CONV // 4, 3,
    ),
    "aten.convolution.default, transposed": (
        Run(
            lambda m, x: torch.ops.aten.convolution.default(x, m.w, None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
            w=w(16, 4, 3, 3),
        ), CONV, 2,
    ),
    "aten.linear": (Run(lambda m, x: torch.ops.aten.linear(x, m.w), w=w(5, 8)), 16 * 8 * 8 * 5, 1),
    "inference mode": (Run(in_inference_mode, w=w(4, 16, 3, 3)), CONV, 3),
    "functional_call": (
        Run(
            lambda m, x: torch.func.functional_call(m.c, dict(m.c.named_parameters()), (x,)),
            c=nn.Conv2d(16, 4, 3, padding=1),
        ), CONV, 3,
    ),
    "tensordot": (Run(lambda m, x: torch.tensordot(x, m.w, ([1], [1])), w=w(5, 16)), 64 * 16 * 5, None),
    "tensordot, map's axes kept": (
        Run(lambda m, x: torch.tensordot(m.w, x, ([1], [1])).transpose(0, 1), w=w(5, 16)), 64 * 16 * 5, 1,
    ),
    "unfold and matmul": (Run(lambda m, x: m.w @ F.unfold(x, 3, padding=1), w=w(4, 144)), CONV, None),
    "einsum with an ellipsis": (
        Run(lambda m, x: torch.einsum("...c,cd->...d", x.permute(0, 2, 3, 1), m.w).permute(0, 3, 1, 2), w=w(16, 5)),
        64 * 16 * 5, 1,
    ),
    "einsum that permutes": (
        Run(lambda m, x: torch.einsum("bhwc,dc->bdhw", x.permute(0, 2, 3, 1), m.w), w=w(5, 16)), 64 * 16 * 5, 1,
    ),
    "einsum that swaps height and width": (
        Run(lambda m, x: torch.einsum("bchw,dc->bdwh", x, m.w), w=w(5, 16)), 64 * 16 * 5, None,
    ),
    "einsum that broadcasts an axis of 1": (
        # 16 heads of queries meet one head of keys: 16 x 8 x 8 scores of 8 products each
        Run(lambda m, x: torch.einsum("bhqd,bhkd->bhqk", x, x[:, :1])), 16 * 8 * 8 * 8, 1,
    ),
    "einsum that sums one factor before": (
        Run(lambda m, x: torch.einsum("bchw,cd->bd", x, m.w), w=w(16, 5)), 16 * 5, None,
    ),
    "einsum of three in torch's order": (
        # (x w) v: 64 units, 16 to 20, 20 to 3
        Run(lambda m, x: torch.einsum("bchw,cd,de->behw", x, m.w, m.v), w=w(16, 20), v=w(20, 3)),
        64 * (16 * 20 + 20 * 3), 1,
    ),
    "a gate by einsum multiplies elementwise": (
        Run(lambda m, x: torch.einsum("bchw,bc->bchw", x, x.mean((2, 3)))), 0, 1,
    ),
    "matmul that broadcasts": (Run(lambda m, x: m.w @ x, w=w(5, 1, 4, 8)), 5 * 16 * 4 * 8 * 8, None),
    "grouped-query attention": (
        # 16 heads of 8 queries of 8 channels, 4 heads of keys: every query meets 8 keys and 8 values
        Run(lambda m, x: F.scaled_dot_product_attention(x, x[:, :4], x[:, :4], enable_gqa=True)), 2 * 16 * 8 * 8 * 8, 1,
    ),
    "learned queries": (Run(lambda m, x: F.scaled_dot_product_attention(m.w, x, x), w=w(1, 16, 3, 8)),
                        2 * 16 * 3 * 8 * 8, None),
    "a kernel made of the map": (
        # 2 x 2 kernel of each channel, slid over 7 x 7 places
        Run(lambda m, x: F.conv2d(x, F.adaptive_avg_pool2d(x, 2).permute(1, 0, 2, 3), groups=16)), 16 * 49 * 4, 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_what_runs_is_counted_by_both_and_never_followed_wrongly(name: str) -> None:
    module, macs, rf = SEEN[name]
    device = "cpu" if name == "traced module" else "meta"
    s = summary(module, 1, 16, 8, 8, device=device)
    assert s.second is not None
    assert (s.sums[2], s.uncounted, s.second.unexplained, s.second.difference) == (macs, (), (), 0)
    if rf is None:
        assert s.unknown or s.is_global
    else:
        view = s.views[0][0]
        assert not s.unknown and view is not None and view[0].extent(3) == rf


ALONE: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "mv": (Run(lambda m, x: torch.mv(x, m.w), w=w(8)), (5, 8), 40),
    "matmul with a vector": (Run(lambda m, x: x @ m.w, w=w(8)), (1, 3, 5, 8), 120),
    "dot": (Run(lambda m, x: torch.dot(x, m.w), w=w(8)), (8,), 8),
    "addmv": (Run(lambda m, x: torch.addmv(m.b, x, m.w), w=w(8), b=w(5)), (5, 8), 40),
    "addbmm": (Run(lambda m, x: torch.addbmm(m.b, x, x), b=w(3, 3)), (2, 3, 3), 2 * 27),
    "addr": (Run(lambda m, x: torch.addr(x, m.w, m.w), w=w(8)), (8, 8), 64),
    "vecdot": (Run(lambda m, x: torch.linalg.vecdot(x, x)), (5, 8), 40),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_torchs_counter_has_no_formula_for_is_counted_and_explained(name: str) -> None:
    module, shape, macs = ALONE[name]
    graph = ops.record(module.to("meta"), [torch.zeros(shape, device="meta")], counts=True)
    second = cost.second_count(graph, cost.op_costs(graph))
    assert second == cost.SecondCount(macs, 0, macs, 0, ())


CHAINS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "inner": (Run(lambda m, x: torch.inner(x, m.w), w=w(3, 8)), (5, 8), 120),
    "ger sums nothing": (Run(lambda m, x: torch.ger(x, m.w), w=w(8)), (5,), 0),
    "addmm by keyword": (Run(lambda m, x: torch.addmm(input=m.b, mat1=x, mat2=m.w), w=w(8, 3), b=w(3)), (5, 8), 120),
    "baddbmm": (Run(lambda m, x: torch.baddbmm(m.b, x, x), b=w(1, 3, 3)), (2, 3, 3), 54),
    # (5x8 8x20) 20x3 = 800 + 300; 5x8 (8x20 20x3) = 480 + 120
    "chain_matmul": (Run(lambda m, x: torch.chain_matmul(x, m.w, m.v), w=w(8, 20), v=w(20, 3)), (5, 8), 600),
    "multi_dot": (Run(lambda m, x: torch.linalg.multi_dot([x, m.w, m.v]), w=w(8, 20), v=w(20, 3)), (5, 8), 600),
    "linalg.matmul": (Run(lambda m, x: torch.linalg.matmul(x, m.w), w=w(8, 3)), (2, 5, 8), 240),
    # 7 steps of a batch of 5, two layers of two directions of 6 units with 3 outputs: 4 gates
    "lstm with a projection": (
        Run(lambda m, x: m.l(x)[0], l=nn.LSTM(8, 6, 2, bidirectional=True, proj_size=3)), (7, 5, 8),
        35 * 2 * ((24 * 8 + 24 * 3 + 3 * 6) + (24 * 6 + 24 * 3 + 3 * 6)),
    ),
    "gru": (Run(lambda m, x: m.l(x)[0], l=nn.GRU(8, 6, batch_first=True)), (5, 7, 8), 35 * (18 * 8 + 18 * 6)),
    "rnn": (Run(lambda m, x: m.l(x)[0], l=nn.RNN(8, 6)), (7, 5, 8), 35 * (6 * 8 + 6 * 6)),
    "lstm cell": (Run(lambda m, x: m.l(x)[0], l=nn.LSTMCell(8, 6)), (5, 8), 5 * (24 * 8 + 24 * 6)),
    "embedding bag": (
        Run(lambda m, x: m.e(torch.zeros(1, 4, dtype=torch.long, device=x.device)) + x, e=nn.EmbeddingBag(5, 6)),
        (1, 6), 0,
    ),
    # batch 2, 5 queries of 8; keys and values from 3 tokens, one more by bias_kv, one of zeros: 5 keys
    "attention with more keys": (
        Run(lambda m, x: m.a(x, x[:, :3], x[:, :3])[0],
            a=nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True)),
        (2, 5, 8), 2 * (2 * 5 * 64 + 2 * 3 * 64 + 2 * 5 * 5 * 8),
    ),
    # keys of 6 and values of 4 channels, made 8 wide
    "attention with widths of its own": (
        Run(lambda m, x: m.a(x, x[..., :6], x[..., :4])[0],
            a=nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=4)),
        (1, 5, 8), 5 * (64 + 48 + 32 + 64) + 2 * 25 * 8,
    ),
    "unbatched attention": (Run(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(8, 2)), (5, 8),
                            5 * 4 * 64 + 2 * 25 * 8),
    # four projections, scores and their product, 8 to 16 and back
    "encoder layer": (
        Run(lambda m, x: m.t(x), t=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), (1, 5, 8),
        5 * (4 * 64 + 2 * 128) + 2 * 25 * 8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("name", CHAINS)
def test_products_and_layers_by_hand(name: str, device: str) -> None:
    module, shape, macs = CHAINS[name]
    module = copy.deepcopy(module).to(device).eval()  # each is tried on both
    graph = ops.record(module, [torch.zeros(shape, device=device)], counts=True)
    costs = cost.op_costs(graph)
    second = cost.second_count(graph, costs)
    assert [c.name for c in costs if c.macs is None] == []
    assert second is not None
    # on a CPU torch's counter does not see inside of an LSTM
    assert (second.macs, second.unexplained, second.torch_macs + second.omitted) == (macs, (), macs)


def test_deformable_convolution_counts_its_weights() -> None:
    torchvision = pytest.importorskip("torchvision")
    d = torchvision.ops.DeformConv2d(16, 4, 3, padding=1)
    s = summary(Run(lambda m, x: m.d(x, m.o(x)), d=d, o=nn.Conv2d(16, 18, 3, padding=1)), 1, 16, 8, 8)
    assert s.second is not None and s.unknown == "deform_conv2d (d)"
    assert (s.sums[2], s.second.omitted, s.second.unexplained) == (64 * 16 * 9 * (18 + 4), CONV, ())


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (lambda m, x: torch.fft.irfft2(torch.fft.rfft2(x)), "fft_rfft2"),
        (lambda m, x: x + torch.cdist(x[0], x[0])[None], "cdist"),
        (lambda m, x: x + torch.from_numpy(x.numpy() @ m.w.numpy()), "numpy"),
        (lambda m, x: x + torch.linalg.inv(x), "linalg_inv"),
    ],
)
def test_what_cannot_be_counted_or_followed_is_named(run: Callable[..., Tensor], named: str) -> None:
    device = "cpu" if named == "numpy" else "meta"
    s = summary(Run(run, w=torch.zeros(8, 8)), 1, 8, 8, 8, device=device)
    assert named in s.uncounted and s.unknown == named


def test_a_custom_op_is_named_with_its_namespace() -> None:
    from torch.library import custom_op

    @custom_op("bblab_tests::prod", mutates_args=())
    def prod(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight

    @prod.register_fake
    def _(x: Tensor, weight: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:-1], weight.shape[-1])

    s = summary(Run(lambda m, x: prod(x, m.w), w=w(8, 8)), 1, 16, 8, 8)
    assert s.uncounted == ("bblab_tests::prod",) and s.unknown == "bblab_tests::prod"


def test_a_norm_of_the_maps_own_statistics_sees_the_whole_map() -> None:
    own = summary(nn.BatchNorm2d(16, track_running_stats=False), 1, 16, 8, 8)
    stored = summary(nn.BatchNorm2d(16), 1, 16, 8, 8)
    assert own.is_global and not stored.is_global


def test_a_graph_with_both_counts_is_remembered_whole() -> None:
    graph = ops.record(SEEN["scripted module"][0].to("meta"), [torch.zeros(1, 16, 8, 8, device="meta")], counts=True)
    assert graph.torch_macs == CONV
    assert ops.OpGraph.from_json(graph.to_json()) == graph


# ---------------------------------------------------------------------------------------------- in a lab


STEM = 16 * 16 * 16 * 27  # conv 3x3, 3 to 16 channels, 32 px at stride 2
SPECS = {
    "o_scriptmod": STEM + 256 * 16 * 16 * (1 + 25),
    # queries and output 16 wide, keys and values 2; 8 heads of 256 x 256 scores of 2 products, and as many for values
    "o_mqa": STEM + 256 * 16 * (16 + 2 + 2 + 16) + 2 * 8 * 256 * 256 * 2,
    # reduction to 4; queries 16 to 16, keys and values 4 to 16, two products of 256 x 256 x 16, two projections of 16
    "o_kvmha": STEM + 256 * (64 + 256 + 64 + 64) + 2 * 256 * 256 * 16 + 256 * (256 + 256),
    "o_lin2": STEM + 256 * 256,
}


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
@pytest.mark.parametrize("name", SPECS)
def test_shared_cases(name: str, lab: Path, bblab: Callable[..., Any]) -> None:
    assert SPECS == {"o_scriptmod": 1_814_528, "o_mqa": 2_355_200, "o_kvmha": 2_453_504, "o_lin2": 176_128}
    (lab / "blocks").mkdir()
    (lab / "blocks" / "odd.py").write_text((CASES / "blocks" / "odd.py").read_text())
    ran = bblab("profile", CASES / f"{name}.yaml", "--no-latency", "--no-verify", "--json", "-")
    assert ran.code == 0, ran.err
    (row,) = json.loads(ran.out)
    form = row["forms"]["train"]
    assert form["macs"] == SPECS[name] and form["uncounted"] == []
    (block,) = form["second_count"]
    assert (block["where"], block["torch_macs"], block["differs_in"]) == ("s4", SPECS[name] - STEM, [])


@pytest.fixture(scope="module")
def odd() -> ModuleType:
    if not CASES.is_dir():
        pytest.skip("the shared cases are not here")
    spec = importlib.util.spec_from_file_location("odd_cases", CASES / "blocks" / "odd.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_counters_agree_on_every_shared_block(odd: ModuleType) -> None:
    parts = ("DWConv", "WSConv2d", "Rep")
    kinds = [k for n, k in vars(odd).items() if isinstance(k, type) and issubclass(k, nn.Module) and n not in parts]
    assert len(kinds) > 20
    for kind in kinds:
        s = summary(kind(16, 16), 1, 16, 16, 16)
        assert s.second is not None and s.second.unexplained == () and s.second.difference == 0, kind
        assert s.uncounted == (("bilinear (b)",) if kind.__name__ == "ConvND" else ())


def test_a_disagreement_is_on_the_card_in_json_and_in_check(
    lab: Path, bblab: Callable[..., Any], spec_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab / "blocks").mkdir()
    (lab / "blocks" / "own.py").write_text(
        "from torch import nn\nclass Own(nn.Conv2d):\n"
        "    def __init__(self, in_ch, out_ch):\n        super().__init__(in_ch, out_ch, 1)\n"
    )
    spec = spec_file("input: [3, 32, 32]\nstages: {a: {block: conv, out: 8}, b: {block: own.Own, out: 8}}")
    # 1x1, 8 to 8 channels, 1024 units
    said = f"torch's own counter agrees: {1024 * 64:,} MACs in 1 block of the lab"
    assert said in bblab("profile", spec, "--no-latency", "--no-verify").out
    right = cost.MAC_RULES["conv2d"]
    monkeypatch.setitem(cost.MAC_RULES, "conv2d", lambda op, graph: 3 * (right(op, graph) or 0))
    ran = bblab("profile", spec, "--no-latency", "--no-verify", "--json", "-")
    (row,) = json.loads(ran.out)
    (block,) = row["forms"]["train"]["second_count"]
    assert (block["macs"], block["torch_macs"], block["differs_in"]) == (3 * 65_536, 65_536, ["conv2d"])
    assert "torch's own counter disagrees" in bblab("profile", spec, "--no-latency", "--no-verify").out
    checked = bblab("check", spec).out
    assert "counters-disagree" in checked and "196,608" in checked and "65,536" in checked
