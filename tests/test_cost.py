"""What ops cost, worked out by hand on nets small enough to redo; and a net is the sum of its blocks."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bblab import blockkit, blocks, build, ops, spec
from bblab.analysis import cost
from bblab.analysis.net import SUMS, Analyst, NetCost, summarise
from bblab.ops import OpGraph
from bblab.rooms import Rooms
from bblab.spec import ArchSpec, BlockInfo

ROOMS = Rooms(Path("nowhere"))


class Run(nn.Module):
    """A forward in one line, with layers by name."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module | Tensor) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            elif isinstance(layer, Tensor):
                self.register_buffer(name, layer)
            else:
                self.add_module(name, layer)

    def forward(self, *x: Tensor) -> Tensor:
        return self.run(self, *x)


def recorded(module: nn.Module, *shape: int) -> OpGraph:
    return ops.record(module.eval(), [torch.zeros(shape)])


def of(module: nn.Module, *shape: int) -> cost.Totals:
    graph = recorded(module, *shape)
    return cost.totals(graph, cost.op_costs(graph))


def macs(module: nn.Module, *shape: int) -> int:
    return of(module, *shape).macs


def uncounted(module: nn.Module, *shape: int) -> list[str]:
    return [c.name for c in cost.op_costs(recorded(module, *shape)) if c.macs is None]


# ---------------------------------------------------------------------------------------------- one layer


def test_a_convolution_by_hand() -> None:
    # 3x3, 2 -> 4 channels, 8x8 map, stride 2, padding 1: 4x4 out.
    t = of(nn.Conv2d(2, 4, 3, 2, 1), 1, 2, 8, 8)
    assert t.params == 4 * 2 * 9 + 4  # 76
    assert t.weight_bytes == 4 * 76
    assert t.macs == 4 * 4 * 4 * 2 * 9  # output elements x inputs of each; the bias adds, it does not multiply
    assert t.activations == 4 * 4 * 4
    assert t.elementwise_ops == 0
    assert t.memory_traffic_bytes == 4 * (2 * 8 * 8 + 4 * 4 * 4 + 76)
    assert t.num_ops == 1


def test_conv_norm_act_by_hand() -> None:
    # 1x1, 3 -> 5 on 4x4: 16 units. Convolution, norm and ReLU write 80 elements each.
    t = of(blockkit.ConvNorm(3, 5, 1), 1, 3, 4, 4)
    assert t.params == 15 + 5 + 5
    # weights, scale, shift, mean, variance in float32; the counter of batches is no part of a deployed file
    assert t.weight_bytes == 4 * (15 + 4 * 5)
    assert (t.macs, t.activations, t.elementwise_ops) == (15 * 16, 80, 80 + 80)
    assert t.memory_traffic_bytes == 4 * ((48 + 80 + 15) + (80 + 80 + 20) + (80 + 80))
    assert t.num_ops == 3
    fused = of(blockkit.deploy(blockkit.ConvNorm(3, 5, 1)), 1, 3, 4, 4)
    assert (fused.params, fused.num_ops, fused.elementwise_ops) == (15 + 5, 2, 80)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(8, 12, 3, padding=1, groups=4), (1, 8, 5, 5), 12 * 25 * 2 * 9),  # each output reads 8/4 channels
        (nn.Conv2d(6, 6, 5, padding=2, groups=6), (1, 6, 4, 4), 6 * 16 * 25),
        (nn.Conv2d(2, 3, (1, 7), padding=(0, 3)), (1, 2, 4, 9), 3 * 36 * 2 * 7),
        (nn.Conv2d(2, 3, 3, dilation=2), (1, 2, 9, 9), 3 * 25 * 2 * 9),
        (nn.ConvTranspose2d(2, 3, 4, 2, 1), (1, 2, 5, 5), 25 * 2 * 3 * 16),  # every input element meets 3 x 4x4 weights
        (nn.ConvTranspose2d(4, 4, 2, 2, groups=2), (1, 4, 5, 5), 100 * 2 * 4),
        (nn.Conv1d(3, 4, 5), (1, 3, 20), 4 * 16 * 3 * 5),
        (nn.Conv3d(1, 2, 3), (1, 1, 4, 4, 4), 2 * 8 * 27),
        (nn.Linear(7, 3), (1, 7), 21),
        (nn.Linear(7, 3), (1, 5, 7), 5 * 21),
        (nn.Bilinear(2, 3, 4), None, None),
        (Run(lambda m, x: x @ x.transpose(1, 2)), (2, 4, 3), 2 * 4 * 4 * 3),
        (Run(lambda m, x: torch.matmul(m.w, x), w=nn.Parameter(torch.zeros(5, 4))), (1, 4, 3), 5 * 3 * 4),
        (Run(lambda m, x: m.w.__matmul__(x), w=torch.zeros(5, 4)), (1, 4, 3), 5 * 3 * 4),
        (Run(lambda m, x: torch.bmm(x, x)), (2, 3, 3), 2 * 27),
        (Run(lambda m, x: torch.mm(x, x)), (3, 3), 27),
        (Run(lambda m, x: torch.addmm(m.b, x, x), b=torch.zeros(3)), (3, 3), 27),
        (Run(lambda m, x: torch.baddbmm(m.b, x, x), b=torch.zeros(1, 3, 3)), (2, 3, 3), 2 * 27),
        (Run(lambda m, x: torch.einsum("bchw,dc->bdhw", x, m.w), w=torch.zeros(5, 4)), (1, 4, 3, 2), 5 * 4 * 6),
        (Run(lambda m, x: torch.einsum("nlhd, nmhd -> nhlm", x, x)), (2, 6, 2, 3), 2 * 2 * 6 * 6 * 3),
        (
            Run(lambda m, x: F.conv2d(x, m.w * 2, padding=1), w=nn.Parameter(torch.zeros(5, 4, 3, 3))),
            (1, 4, 6, 6),
            5 * 36 * 36,
        ),
        (Run(lambda m, x: F.conv2d(x, x[:, :, :2, :2])), (1, 4, 6, 6), 25 * 16),
        (Run(lambda m, x: F.scaled_dot_product_attention(x, x, x)), (2, 3, 5, 8), 2 * 3 * (5 * 5 * 8 * 2)),
        (
            Run(lambda m, x: F.scaled_dot_product_attention(query=x, key=x[:, :, :3], value=x[:, :, :3])),
            (1, 2, 5, 8),
            2 * (5 * 3 * 8 * 2),
        ),
        (nn.ReLU(), (1, 4, 4, 4), 0),
        (nn.AdaptiveAvgPool2d(1), (1, 4, 4, 4), 0),
        (nn.BatchNorm2d(4), (1, 4, 4, 4), 0),
    ],
)
def test_macs_by_hand(layer: nn.Module, shape: tuple[int, ...] | None, expected: int | None) -> None:
    if shape is None:  # two inputs, no rule: listed, not counted as nothing
        graph = ops.record(Run(lambda m, x: m.b(x, x[..., [0, 1, 1]]), b=layer), [torch.zeros(1, 2)])
        assert [c.macs for c in cost.op_costs(graph) if c.name == "bilinear"] == [None]
        return
    assert macs(layer, *shape) == expected
    assert uncounted(layer, *shape) == []


@pytest.mark.parametrize("batch_first", [False, True])
def test_multi_head_attention_by_hand(batch_first: bool) -> None:
    # 6 tokens of 8 channels, batch 1: four projections of 8x8, then 6x6 scores and their product with the values.
    mha = Run(lambda m, x: m.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(8, 2, batch_first=batch_first))
    shape = (1, 6, 8) if batch_first else (6, 1, 8)
    assert macs(mha, *shape) == 4 * 6 * 8 * 8 + 2 * 6 * 6 * 8


def test_cross_attention_by_hand() -> None:
    # 6 queries on 3 keys: queries and output are projected 6 times, keys and values 3 times.
    mha = Run(lambda m, x: m.a(x, x[:3], x[:3], need_weights=False)[0], a=nn.MultiheadAttention(8, 2))
    assert macs(mha, 6, 1, 8) == (2 * 6 + 2 * 3) * 64 + 2 * 6 * 3 * 8


def test_an_op_without_a_rule_is_listed_and_never_zero() -> None:
    assert uncounted(Run(lambda m, x: torch.fft.fft2(x).abs()), 3, 2, 4) == ["fft_fft2"]
    assert uncounted(Run(lambda m, x: torch.cdist(x, x)), 3, 2, 4) == ["cdist"]
    # the order of three factors is torch's choice
    assert uncounted(Run(lambda m, x: torch.einsum("ab,bc,cd->ad", x, x, x)), 3, 3) == ["einsum"]


# ---------------------------------------------------------------------------------------------- writing, views


def test_views_write_nothing() -> None:
    net = Run(lambda m, x: x.view(1, 4, -1).transpose(1, 2).unsqueeze(1).expand(1, 3, 16, 4)[:, :, ::2])
    assert of(net, 1, 4, 4, 4) == cost.Totals()


def test_a_reshape_that_must_copy_writes() -> None:
    t = of(Run(lambda m, x: x.transpose(1, 2).reshape(1, -1)), 1, 4, 4)
    assert (t.num_ops, t.elementwise_ops, t.memory_traffic_bytes) == (1, 16, 4 * 32)


def test_identities_cost_nothing() -> None:
    net = nn.Sequential(nn.Identity(), nn.Dropout(0.5), nn.ReLU())
    assert of(net, 1, 4, 4, 4).num_ops == 1


def test_an_op_in_place_writes_and_reads_its_input_once() -> None:
    t = of(nn.ReLU(inplace=True), 1, 4, 4, 4)
    assert (t.num_ops, t.elementwise_ops, t.memory_traffic_bytes) == (1, 64, 4 * 128)
    graph = recorded(Run(lambda m, x: x.add_(x * 2)), 1, 4, 4, 4)
    assert graph.ops[-1].is_in_place
    assert graph.outputs != graph.inputs and graph.roots[graph.outputs[0]] == graph.inputs[0]


def test_a_write_to_some_channels_writes_those() -> None:
    # clone 64; x[:, :1] = 16 of 64 elements, read from a sum of 16
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, :1] = x[:, :1] + 1
        return y

    t = of(Run(forward), 1, 4, 4, 4)
    assert (t.num_ops, t.elementwise_ops) == (3, 64 + 16 + 16)
    assert t.memory_traffic_bytes == 4 * ((64 + 64) + (16 + 16) + (16 + 16))


def test_a_shared_layer_is_stored_once_and_run_twice() -> None:
    net = Run(lambda m, x: m.a(m.a(x)), a=nn.Conv2d(4, 4, 1, bias=False))
    t = of(net, 1, 4, 2, 2)
    assert (t.params, t.macs) == (16, 2 * 16 * 4)


def test_an_input_read_twice_by_one_op_is_one_read() -> None:
    assert of(Run(lambda m, x: x * x), 1, 4).memory_traffic_bytes == 4 * (4 + 4)


def test_vectors_and_scalars() -> None:
    net = Run(lambda m, x: x.flatten().relu().sum() * 2)
    t = of(net, 1, 2, 3)
    assert (t.num_ops, t.elementwise_ops) == (3, 6 + 1 + 1)


# ---------------------------------------------------------------------------------------------- memory


def peak(net: nn.Module, *shape: int, keeps_input: bool = False) -> int:
    """In elements."""
    return cost.peak_bytes(recorded(net, *shape), keeps_input=keeps_input) // 4


def test_a_chain_holds_two_maps() -> None:
    # 2x4x4 = 32 in, 5x4x4 = 80, then 1x4x4 = 16: the largest pair is 80 + 32.
    net = nn.Sequential(nn.Conv2d(2, 5, 1), nn.Conv2d(5, 1, 1))
    assert peak(net, 1, 2, 4, 4) == 80 + 32
    assert peak(net, 1, 2, 4, 4, keeps_input=True) == 32 + 80 + 16


def test_a_shortcut_is_held() -> None:
    # the input 32 waits while 80 -> 96 is computed
    net = Run(lambda m, x: x + m.b(m.c(m.a(x))), a=nn.Conv2d(2, 5, 1), c=nn.Conv2d(5, 6, 1), b=nn.Conv2d(6, 2, 1))
    assert peak(net, 1, 2, 4, 4) == 32 + 80 + 96


def test_in_place_ops_and_views_hold_nothing_new() -> None:
    net = nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(inplace=True), nn.Flatten())
    assert peak(net, 1, 2, 4, 4) == 32 + 80
    assert peak(nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Flatten()), 1, 2, 4, 4) == 160


def test_a_view_keeps_its_whole_map_alive() -> None:
    # half of the 80 is looked at to the end; all of it is held
    net = Run(lambda m, x: torch.cat((m.b(m.a(x)), m.a(x)[:, :1]), 1), a=nn.Conv2d(2, 5, 1), b=nn.Conv2d(5, 3, 1))
    # at the cat: b's 48, the second a's 80, the result 64; while the second a runs: the input 32, 48, 80
    assert peak(net, 1, 2, 4, 4) == max(48 + 80 + 64, 32 + 48 + 80, 32 + 80, 32 + 80 + 48)


# ---------------------------------------------------------------------------------------------- sum of its blocks


@pytest.fixture(scope="module")
def analyst() -> Analyst:
    return Analyst(blocks.infos(ROOMS))


class Whole(nn.Module):
    """A built net as one module that also hands out its taps, so that they live to the end, as in the sums."""

    def __init__(self, net: build.Backbone) -> None:
        super().__init__()
        self.stages, self.head, self.spec = net.stages, net.head, net.spec

    def forward(self, x: Tensor) -> list[Tensor]:
        found, maps = [], x
        for name, stage in self.stages.items():
            maps = stage(maps)
            if name in self.spec.taps:
                found.extend([maps] if isinstance(maps, Tensor) else maps)
        found.append(self.head(maps) if self.head is not None else maps)
        return found


def whole(one: ArchSpec, kinds: Mapping[str, BlockInfo], form: ops.Form, size: tuple[int, int]) -> OpGraph:
    net = Whole(build.Backbone(one, kinds, device="meta").eval())
    if form == "deploy":
        net = blockkit.deploy(net)  # type: ignore[assignment]
    return ops.record(net, [torch.zeros((1, one.input[0], *size), device="meta")])


def assert_equals_whole(one: ArchSpec, analyst: Analyst, form: ops.Form, size: tuple[int, int]) -> NetCost:
    """The composed cost equals that of one recording of the whole net."""
    composed, graph = analyst.cost(one, form, size), whole(one, analyst.kinds, form, size)
    at_once = summarise(graph)
    assert dict(zip(SUMS, composed.sums, strict=True)) == dict(zip(SUMS, at_once.sums, strict=True))
    assert composed.peak_activation_bytes == at_once.peak_bytes
    assert bool(composed.uncounted) == bool(at_once.uncounted)
    for tap, shape, views, clean in zip(composed.taps, at_once.outputs, at_once.views, at_once.clean, strict=False):
        assert (tap.channels, tap.height, tap.width) == shape
        assert (tap.window_h, tap.window_w) == views[0]
        held = [(r[1] < r[0], r) for r in (tap.clean_h, tap.clean_w)]
        for (is_none, ours), theirs in zip(held, clean, strict=True):
            assert (theirs[1] < theirs[0]) if is_none else ours == theirs
    return composed


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize(
    "name",
    ["mobileone_s1", "mobilenetv3_small", "shufflenetv2_x1_0", "resnet18", "ciresnet22", "nanotrack",
     "mobileone_shuffle", "mobileone_k5_se", "lighttrack_mobile", "hrnet_w18_small"],
)  # fmt: skip
def test_a_net_costs_the_sum_of_its_blocks(name: str, form: ops.Form, analyst: Analyst) -> None:
    one = spec.resolve(name, ROOMS, analyst.kinds)
    assert_equals_whole(one, analyst, form, (127, 160))


SEVERAL = """
name: several
taps: [{taps}]
stages:
  a: {{block: conv, out: 8, stride: 2}}
  b: [{{block: mbconv, out: 16, stride: 2, se: {{ratio: 0.25}}}}, {{block: mbconv}}]
  c: [{{block: shuffle_down, out: 32, stride: 2}}, {{block: shuffle}}, {{block: mobileone, kernel: 5, branches: 2}}]
  d: [{{block: conv, out: 48, kernel: [1, 7]}}, {{block: conv, kernel: [7, 1], pad: valid}}]
head: {{block: classifier}}
"""


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("taps", ["d", "c", "a, c", "b, c, d", "a, b, c, d"])
def test_taps_are_held_until_the_end(taps: str, form: ops.Form, analyst: Analyst) -> None:
    one = spec.parse(SEVERAL.format(taps=taps), analyst.kinds)
    got = assert_equals_whole(one, analyst, form, (96, 80))
    # the backbone's part ends at the last tap
    last = one.backbone_stages[-1].name
    cut = spec.cut_at(one, last)
    alone = analyst.cost(cut, form, (96, 80))
    assert got.backbone_sums == alone.sums
    assert sum(m.params for m in got.maps[: len(alone.maps)]) == got.params_backbone
    # the classifier: 48 channels pooled, 1000 scores
    assert sum(m.macs for m in got.maps) + 48 * 1000 == got.macs


def test_a_large_early_tap_is_counted_in_later_peaks(analyst: Analyst) -> None:
    # 8x8 units. a: 64 channels, b: 64, c: 256. Computing c holds b and c, and a where it is a tap.
    stages = "{a: {block: conv, out: 64}, b: {block: conv}, c: {block: conv, out: 256, norm: false, act: none}}"
    text = f"name: t\ninput: [3, 8, 8]\nstages: {stages}\ntaps: "
    for taps, held in (("[c]", 64 + 256), ("[a, c]", 64 + 64 + 256), ("[a, b, c]", 64 + 64 + 256)):
        cost_ = assert_equals_whole(spec.parse(text + taps, analyst.kinds), analyst, "deploy", (8, 8))
        assert cost_.peak_activation_bytes == 4 * 64 * held


def test_a_foreign_net_costs_what_its_ops_cost() -> None:
    graph = recorded(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Hardswish(), nn.Conv2d(4, 4, 1)), 1, 3, 8, 8)
    by_op = cost.op_costs(graph)
    total = cost.totals(graph, by_op)
    assert [c.macs for c in by_op] == [4 * 36 * 27, 0, 4 * 36 * 4]
    assert total.params == sum(c.params for c in by_op) == 4 * 27 + 16 + 4
