"""Folding norms and calling fuse methods in modules that bblab did not write: exact, or left alone and named."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bblab import blockkit, blocks, build, folding, ops, spec
from bblab.rooms import Rooms
from bblab.spec import ArchSpec, BlockInfo

BLOCKS = '''
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import parametrizations, prune


class Weighted(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Inner(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 2, bias)


class Own(nn.Conv2d):
    """Its own constructor, torch's forward."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, 1, 1, groups=channels, bias=False)


class Loud(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Quiet(nn.BatchNorm2d):
    """Another name, torch's forward."""


def pruned(conv):
    prune.l1_unstructured(conv, "weight", amount=0.3)
    return conv


def hooked(conv):
    conv.register_forward_hook(lambda module, given, out: out * 2)
    return conv


def instance(conv):
    conv.forward = lambda x: F.conv2d(x, conv.weight * 3, None, 1, 1)
    return conv


class One(nn.Module):
    """A layer and a norm, by name."""

    def __init__(self, in_ch, out_ch, stride=1, layer="plain", norm="plain"):
        super().__init__()
        i, o = in_ch, out_ch
        self.c = {
            "plain": lambda: nn.Conv2d(i, o, 3, 1, 1),
            "circular": lambda: nn.Conv2d(i, o, 3, 1, 1, padding_mode="circular"),
            "reflect": lambda: nn.Conv2d(i, o, 5, 1, 2, padding_mode="reflect", bias=False),
            "same": lambda: nn.Conv2d(i, o, 4, padding="same", dilation=2),
            "grouped": lambda: nn.Conv2d(i, o, 3, 1, 1, groups=4, bias=False),
            "own": lambda: Own(i),
            "transposed": lambda: nn.ConvTranspose2d(i, o, 3, 1, 1, groups=4),
            "transposed_bare": lambda: nn.ConvTranspose2d(i, o, 3, 1, 1, bias=False),
            "weighted": lambda: Weighted(i, o, 3, 1, 1),
            "inner": lambda: Inner(i, o, 3, 1, 1),
            "weight_norm": lambda: nn.utils.weight_norm(nn.Conv2d(i, o, 3, 1, 1)),
            "parametrized": lambda: parametrizations.weight_norm(nn.Conv2d(i, o, 3, 1, 1)),
            "spectral": lambda: parametrizations.spectral_norm(nn.Conv2d(i, o, 3, 1, 1)),
            "pruned": lambda: pruned(nn.Conv2d(i, o, 3, 1, 1)),
            "hooked": lambda: hooked(nn.Conv2d(i, o, 3, 1, 1)),
            "instance": lambda: instance(nn.Conv2d(i, o, 3, 1, 1, bias=False)),
        }[layer]()
        self.n = {
            "plain": lambda: nn.BatchNorm2d(o),
            "sync": lambda: nn.SyncBatchNorm(o),
            "bare": lambda: nn.BatchNorm2d(o, affine=False),
            "cumulative": lambda: nn.BatchNorm2d(o, momentum=None),
            "quiet": lambda: Quiet(o),
            "twice": lambda: nn.Sequential(nn.BatchNorm2d(o), nn.Dropout(), nn.BatchNorm2d(o, eps=1e-2)),
            "loud": lambda: Loud(o),
            "momentary": lambda: nn.BatchNorm2d(o, track_running_stats=False),
            "hooked": lambda: hooked(nn.BatchNorm2d(o)),
        }[norm]()

    def forward(self, x):
        return F.relu(self.n(self.c(x)))


class Two(nn.Module):
    """Shared layers and norms, by name."""

    def __init__(self, in_ch, out_ch, stride=1, how=""):
        super().__init__()
        self.how = how
        self.a = nn.Conv2d(in_ch, out_ch, 1, bias=False)
        self.c = nn.Conv2d(out_ch, out_ch, 3, 1, 1, bias=False)
        self.d = nn.Conv2d(out_ch, out_ch, 3, 1, 1, bias=False)
        self.n = nn.BatchNorm2d(out_ch)
        self.m = nn.BatchNorm2d(out_ch)
        self.line = nn.Linear(out_ch, out_ch)
        self.n1 = nn.BatchNorm1d(out_ch)
        self.again = self.c if how == "two_names" else None
        self.kept = [self.c, self.n]
        self.constant = torch.full((1,), 0.5)
        if how == "tied":
            self.d.weight = self.c.weight

    def forward(self, x):
        x = self.a(x)
        how, c, d, n, m = self.how, self.c, self.d, self.n, self.m
        if how == "same_pair_twice":
            return n(c(F.relu(n(c(x)))))
        if how == "conv_with_two_norms":
            return m(c(F.relu(n(c(x)))))
        if how == "norm_of_two_convs":
            return n(d(F.relu(n(c(x)))))
        if how == "norm_after_conv_and_pool":
            return n(F.avg_pool2d(F.relu(n(c(x))), 3, 1, 1))
        if how == "two_names":
            return n(self.again(F.relu(n(c(x)))))
        if how == "tied":
            return n(c(x)) + m(d(x))
        if how == "plain_list":
            return self.kept[1](self.kept[0](x))
        if how == "weight_read":
            return n(c(x)) + F.conv2d(x, c.weight, None, 1, 1)
        if how == "mean_read":
            return n(c(x)) + n.running_mean[None, :, None, None]
        if how == "output_read":
            y = c(x)
            return n(y) + 0.1 * y
        if how == "part_read":
            y = c(x)
            return n(y) + y[:, :1]
        if how == "changed_between":
            y = c(x)
            y += 1
            return n(y)
        if how == "scripted_reader":
            y = c(x)
            return n(y) + scripted(y)
        if how == "scripted_beside":
            return n(c(x)) + scripted(x)
        if how == "views":  # halves of a map that lies channels last, and back
            left, right = n(c(x)).permute(0, 2, 3, 1).chunk(2, 1)
            return torch.cat([left, right], 1).permute(0, 3, 1, 2)
        if how == "constant":  # a plain tensor that no op has made
            return n(c(x)) * self.constant.to(x.device)
        if how == "custom_reader":
            y = c(x)
            return n(y) + Swish.apply(y)
        if how == "functional_norm":
            return F.batch_norm(c(x), n.running_mean, n.running_var, n.weight, n.bias)
        if how == "norm_first":
            return c(n(x))
        if how == "looks_at_the_norm":
            return n(c(x)) * n.num_features
        if how == "linear":
            return x + self.n1(self.line(x.mean((2, 3))))[:, :, None, None]
        if how == "linear_tokens":  # the norm's channels are the tokens
            y = self.line(x.flatten(2)[:, :, : x.shape[1]].transpose(1, 2))
            return x + self.n1(y).mean(1)[:, :, None, None]
        raise ValueError(how)


@torch.jit.script
def scripted(x):
    return x * torch.sigmoid(x)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * torch.sigmoid(x)


class Rep(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.b = nn.Conv2d(c, c, 3, 1, 1), nn.Conv2d(c, c, 1)

    def forward(self, x):
        return self.a(x) + self.b(x)

    def fuse(self):
        m = nn.Conv2d(self.a.in_channels, self.a.out_channels, 3, 1, 1)
        m.weight = nn.Parameter(self.a.weight + F.pad(self.b.weight, [1, 1, 1, 1]))
        m.bias = nn.Parameter(self.a.bias + self.b.bias)
        return m


class Reps(nn.Module):
    def __init__(self, in_ch, out_ch, stride=1, how="two_names"):
        super().__init__()
        self.how = how
        self.d = nn.Conv2d(in_ch, out_ch, 1)
        r = Rep(out_ch)
        self.p, self.q = nn.Sequential(r, nn.ReLU()), nn.ModuleDict({"r": r})
        self.r = r

    def forward(self, x):
        x = self.d(x)
        return self.r(self.r(x)) if self.how == "twice" else self.q["r"](self.p(x))


class Residual(nn.Module):
    """As in LeViT and RepViT: its fuse() fuses a plain conv only, else returns itself, so that its parts are fused."""

    def __init__(self, in_ch, out_ch, stride=1, how="returns"):
        super().__init__()
        self.how = how
        self.m = nn.Sequential(Rep(out_ch), nn.ReLU())

    def forward(self, x):
        return x + self.m(x)

    def fuse(self):
        if self.how == "raises":
            raise KeyError("no such branch")
        return None if self.how == "nothing" else self


class Fuses(nn.Module):
    """A conv, a norm and a way to fuse them, by name."""

    def __init__(self, in_ch, out_ch, stride=1, how=""):
        super().__init__()
        self.how = how
        self.c = nn.Conv2d(in_ch, out_ch, 3, 1, 1)
        self.n = nn.BatchNorm2d(out_ch)
        self.is_fused = False

    def forward(self, x):
        if self.is_fused and self.how == "does_not_run":
            return self.c(x) + self.gone
        return F.relu(self.c(x) if self.is_fused else self.n(self.c(x)))

    def folded(self):
        s = self.n.weight / torch.sqrt(self.n.running_var + self.n.eps)
        return self.c.weight * s[:, None, None, None], (self.c.bias - self.n.running_mean) * s + self.n.bias

    def deploy(self):
        how = self.how
        weight, bias = self.folded()
        if how == "raises":
            raise KeyError("no such branch")
        if how == "raises_half_way":
            self.c.weight.data *= 2
            self.is_fused = True
            del self.n
            return self.nothing
        if how == "exits":
            raise SystemExit(3)
        if how == "pair":
            return weight, bias
        if how == "raises_on_values" and float(weight.abs().max()) > 0:
            raise ValueError("weights above 0")
        if how in ("in_place", "does_not_run"):
            self.c.weight, self.c.bias = nn.Parameter(weight), nn.Parameter(bias)
            self.is_fused = True
            del self.n
            return None
        out = weight.shape[0] + (how == "wider")
        m = nn.Conv2d(weight.shape[1], out, 3, 1, 1)
        if how != "wider":
            m.weight, m.bias = nn.Parameter(weight), nn.Parameter(bias)
        made = nn.Sequential(m, nn.ReLU(), nn.Dropout(0.5))  # a new module is in training mode
        if how == "double":
            return made.double()
        if how == "half_wrong":
            m.bias.data *= 1.0005
        return made


class Feature(nn.Module):
    """`fuse` joins two maps: no way to fuse the module. `deploy` is a flag."""

    def __init__(self, in_ch, out_ch, stride=1, deploy=False):
        super().__init__()
        self.deploy = deploy
        self.a, self.b = nn.Conv2d(in_ch, out_ch, 1), nn.Conv2d(in_ch, out_ch, 3, 1, 1)
        self.n = nn.BatchNorm2d(out_ch)

    def fuse(self, x, y):
        return x + y

    def forward(self, x):
        return self.fuse(self.a(x), self.n(self.b(x)))


class Large(nn.Module):
    """A train form that is smaller than what it fuses to: 1x3 and 3x1 beside each other become 3x3."""

    def __init__(self, in_ch, out_ch, stride=1):
        super().__init__()
        self.a, self.b = nn.Conv2d(in_ch, out_ch, (1, 3), 1, (0, 1)), nn.Conv2d(in_ch, out_ch, (3, 1), 1, (1, 0))

    def forward(self, x):
        return self.a(x) + self.b(x)

    def fuse(self):
        m = nn.Conv2d(self.a.in_channels, self.a.out_channels, 3, 1, 1)
        m.weight = nn.Parameter(F.pad(self.a.weight, [0, 0, 1, 1]) + F.pad(self.b.weight, [1, 1, 0, 0]))
        m.bias = nn.Parameter(self.a.bias + self.b.bias)
        return m


class Delicate(nn.Module):
    """Large numbers that cancel: what is left is of the size of their rounding."""

    def __init__(self, in_ch, out_ch, stride=1):
        super().__init__()
        self.c = nn.Conv2d(in_ch, out_ch, 1)
        self.n = nn.BatchNorm2d(out_ch)
        nn.init.constant_(self.c.bias, 3e4)

    def forward(self, x):
        y = self.n(self.c(x))
        return y - y.mean((2, 3), keepdim=True)
'''


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Rooms:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "blocks").mkdir()
    (folder / "blocks" / "odd.py").write_text(BLOCKS)
    return Rooms(folder)


Tried = tuple[build.Difference, int, int, dict[str, str]]
Try = Callable[[str], Tried]


def spec_of(row: str, kinds: Mapping[str, BlockInfo]) -> ArchSpec:
    stages = f"{{stem: {{block: conv, out: 16, stride: 2}}, s4: {{block: {row}, out: 16}}}}"
    return spec.parse(f"name: t\ninput: [3, 32, 32]\nstages: {stages}\n", kinds)


@pytest.fixture
def tried(rooms: Rooms) -> Try:
    """Of one row: the measured difference, norms counted in the train and in the deploy form, and what is named."""

    def run(row: str) -> Tried:
        kinds = blocks.infos(rooms)
        one = spec_of(row, kinds)
        second = one.stages[1].rows[0]
        graphs = [ops.block_graph(second, kinds[second.kind], ((16, 16, 16),), form) for form in ("train", "deploy")]
        train, deploy = (sum(op.name == "batch_norm" for op in g.ops) for g in graphs)
        apart = build.compared(one, kinds)
        named = {layer: why for layer, why, _ in graphs[1].unfused}
        # What is counted and what is made are one form.
        assert {f"s4.{layer}".rstrip("."): why for layer, why in named.items()} == {w: y for w, y, _ in apart.unfused}
        return apart, train, deploy, named

    return run


EXACT = 1e-5


# ---------------------------------------------------------------------------------------------- one layer, one norm


@pytest.mark.parametrize("norm", ["plain", "sync", "bare", "cumulative", "quiet", "twice"])
@pytest.mark.parametrize(
    "layer", ["plain", "circular", "reflect", "same", "grouped", "own", "transposed", "transposed_bare"]
)
def test_a_norm_behind_a_layer_that_multiplies_by_its_weights_is_folded(layer: str, norm: str, tried: Try) -> None:
    apart, train, deploy, named = tried(f"odd.One, layer: {layer}, norm: {norm}")
    assert (train, deploy, named) == (2 if norm == "twice" else 1, 0, {})
    assert apart.in_float32 < EXACT


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        ("weighted", "forward of its own"),
        ("inner", "_conv_forward of its own"),
        ("weight_norm", "hook"),
        ("parametrized", "computed"),
        ("spectral", "computed"),
        ("pruned", "hook"),
        ("hooked", "follows mul"),
        ("instance", "forward of its own"),
    ],
)
def test_a_norm_behind_a_layer_that_does_something_else_stays_and_is_named(layer: str, why: str, tried: Try) -> None:
    apart, train, deploy, named = tried(f"odd.One, layer: {layer}")
    assert (train, deploy) == (1, 1) and list(named) == ["n"] and why in named["n"]
    assert apart.in_float32 < EXACT


@pytest.mark.parametrize(
    ("norm", "why"), [("loud", "forward of its own"), ("momentary", "no running statistics"), ("hooked", "hook")]
)
def test_a_norm_that_is_no_fixed_scale_and_shift_stays_and_is_named(norm: str, why: str, tried: Try) -> None:
    apart, _, deploy, named = tried(f"odd.One, norm: {norm}")
    assert deploy == 1 and list(named) == ["n"] and why in named["n"]
    assert apart.in_float32 < EXACT


def test_a_transposed_convolution_is_scaled_along_its_output_channels() -> None:
    """Weight (in 4, out a group 3, 1, 1), 2 groups: input channels 0, 1 make outputs 0..2, inputs 2, 3 outputs 3..5."""
    layer = nn.ConvTranspose2d(4, 6, 1, groups=2)
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    weight, bias = blockkit.scaled(layer, scale, torch.ones(6, dtype=torch.float64))
    was = layer.weight.detach().double()
    for channel, row in enumerate((scale[:3], scale[:3], scale[3:], scale[3:])):
        assert torch.allclose(weight[channel, :, 0, 0], was[channel, :, 0, 0] * row)
    assert torch.allclose(bias, layer.bias.detach().double() * scale + 1)


# ---------------------------------------------------------------------------------------------- who else reads


@pytest.mark.parametrize(
    ("how", "runs"),
    [
        ("same_pair_twice", 2),
        ("norm_of_two_convs", 2),
        ("two_names", 2),
        ("tied", 2),
        ("plain_list", 1),
        ("scripted_beside", 1),
        ("views", 1),
        ("constant", 1),
        ("norm_first", 1),  # a(x), then the norm, then c: folded into a
        ("linear", 1),
    ],
)
def test_shared_layers_are_folded_where_every_use_agrees(how: str, runs: int, tried: Try) -> None:
    apart, train, deploy, named = tried(f"odd.Two, how: {how}")
    assert (train, deploy, named) == (runs, 0, {})
    assert apart.in_float32 < EXACT


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("conv_with_two_norms", "also runs where this norm does not follow"),
        ("norm_after_conv_and_pool", "follows avg_pool2d"),
        ("weight_read", "weights of c are read elsewhere"),
        ("mean_read", "weights of n are read elsewhere"),
        ("output_read", "output of c is read elsewhere"),
        ("part_read", "output of c is read elsewhere"),
        ("changed_between", "follows add"),
        ("scripted_reader", "output of c is read elsewhere"),
        ("custom_reader", "output of c is read elsewhere"),
        ("functional_norm", "called by the forward itself"),
        ("looks_at_the_norm", "does not run"),
        ("linear_tokens", "another axis"),
    ],
)
def test_a_norm_stays_where_something_else_reads_or_changes(how: str, why: str, tried: Try) -> None:
    apart, _, deploy, named = tried(f"odd.Two, how: {how}")
    assert deploy >= 1 and any(why in said for said in named.values()), named
    assert apart.in_float32 < EXACT


# ---------------------------------------------------------------------------------------------- fuse methods


@pytest.mark.parametrize("how", ["two_names", "twice"])
def test_a_module_of_several_names_is_fused_once_and_all_uses_see_it(how: str, rooms: Rooms) -> None:
    kinds = blocks.infos(rooms)
    one = spec_of(f"odd.Reps, how: {how}", kinds)
    row = one.stages[1].rows[0]
    graph = ops.block_graph(row, kinds[row.kind], ((16, 16, 16),), "deploy")
    # a 1x1 with bias, one 3x3 with bias
    assert sum(w.numel for w in graph.params if w.is_learnable) == (256 + 16) + (2304 + 16)
    assert sum(op.name == "conv2d" for op in graph.ops) == 3
    apart = build.compared(one, kinds)
    assert apart.in_float32 < EXACT and apart.unfused == ()


@pytest.mark.parametrize(("how", "convs"), [("returns", 1), ("nothing", 1), ("raises", 2)])
def test_the_parts_are_fused_of_a_module_whose_fuse_does_nothing(how: str, convs: int, rooms: Rooms) -> None:
    kinds = blocks.infos(rooms)
    one = spec_of(f"odd.Residual, how: {how}", kinds)
    row = one.stages[1].rows[0]
    graph = ops.block_graph(row, kinds[row.kind], ((16, 16, 16),), "deploy")
    assert sum(op.name == "conv2d" for op in graph.ops) == convs  # a 3x3 and a 1x1, or one 3x3
    apart = build.compared(one, kinds)
    assert apart.in_float32 < EXACT and len(apart.unfused) == (how == "raises")


@pytest.mark.parametrize("how", ["returns", "in_place", "double"])
def test_a_fuse_method_may_return_a_module_or_nothing_of_any_type(how: str, tried: Try, rooms: Rooms) -> None:
    apart, train, deploy, named = tried(f"odd.Fuses, how: {how}")
    assert (train, deploy, named) == (1, 0, {}) and apart.in_float32 < EXACT
    kinds = blocks.infos(rooms)
    one = spec_of(f"odd.Fuses, how: {how}", kinds)
    fused = build.build(one, kinds, form="deploy")
    assert not any(m.training for m in fused.modules()) and {p.dtype for p in fused.parameters()} == {torch.float32}


FAILING = {
    "raises": "deploy() failed: KeyError",
    "raises_half_way": "deploy() failed: AttributeError",
    "exits": "deploy() failed: SystemExit",
    "pair": "returned a tuple",
    "raises_on_values": "deploy() failed: ValueError: weights above 0",
    "wider": "gives 1x17x16x16, the train form 1x16x16x16",
    "does_not_run": "does not run: AttributeError",
}


@pytest.mark.parametrize("how", FAILING)
def test_a_fuse_method_that_fails_leaves_the_train_form_and_is_named(how: str, tried: Try) -> None:
    apart, train, deploy, named = tried(f"odd.Fuses, how: {how}")
    assert (train, deploy) == (1, 1) and list(named) == [""] and FAILING[how] in named[""]
    assert apart.in_float32 < EXACT


def test_a_snapshot_puts_back_attributes_values_and_classes() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).eval()
    net.steps = [1]
    before, x = copy.deepcopy(net), torch.rand(1, 2, 3, 3)
    held = folding.Snapshot(net)
    net.steps.append(2)
    net[0].weight.data *= 2
    net[1].__class__ = nn.Identity
    net[1].running_mean += 1
    net[0].bias = None
    del net[1]
    held.restore()
    assert net.steps == [1] and type(net[1]) is nn.BatchNorm2d and torch.equal(net(x), before(x))


def test_a_method_that_joins_maps_is_no_fuse_method(tried: Try) -> None:
    apart, train, deploy, named = tried("odd.Feature")
    assert (train, deploy, named) == (1, 0, {}) and apart.in_float32 < EXACT


def test_a_lab_block_of_several_maps_is_folded_too(rooms: Rooms) -> None:
    (rooms.lab / "blocks" / "many.py").write_text(
        "from torch import nn\nfrom bblab.blockkit import block\n\n\n@block('many')\nclass Many(nn.Module):\n"
        "    def __init__(self, in_ch: list, out_ch: list, stride: int = 1):\n        super().__init__()\n"
        "        self.c = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in zip(in_ch, out_ch))\n"
        "        self.n = nn.ModuleList(nn.BatchNorm2d(o) for o in out_ch)\n\n"
        "    def forward(self, maps):\n        return [n(c(x)) for x, c, n in zip(maps, self.c, self.n)]\n"
    )
    kinds = blocks.infos(rooms)
    stages = (
        "{s2: {block: conv, out: 16, stride: 2}, a: {block: hr, out: [8, 16], units: 1}, b: {block: many, out: [8, 8]}}"
    )
    one = spec.parse(f"name: t\ninput: [3, 64, 64]\nstages: {stages}\n", kinds)
    fused = build.deployed(build.build(one, kinds), one, kinds)
    assert fused.unfused == () and not any(isinstance(m, nn.BatchNorm2d) for m in fused.module.stages["b"].modules())
    assert build.compared(one, kinds).in_float32 < EXACT


# ---------------------------------------------------------------------------------------------- the blockkit's fold


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.SyncBatchNorm(8), nn.BatchNorm2d(8, affine=False)])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, 2, 1, padding_mode="circular"),
        nn.Conv2d(4, 8, 3, padding="same", bias=False),
        nn.ConvTranspose2d(4, 8, 2, 2, groups=2),
    ],
)
@torch.no_grad()
def test_fold_keeps_the_layers_own_padding(layer: nn.Module, norm: nn.Module) -> None:
    norm = copy.deepcopy(norm).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.rand(2, 4, 9, 9)
    assert torch.allclose(blockkit.fold(layer, norm)(x), norm(layer(x)), atol=1e-5)


def test_fold_refuses_what_it_could_not_fold_exactly() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    norm = nn.BatchNorm2d(4).eval()
    with pytest.raises(ValueError, match="Doubled has a forward of its own"):
        blockkit.fold(Doubled(4, 4, 1), norm)
    with pytest.raises(ValueError, match="no running statistics"):
        blockkit.fold(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False).eval())
    with pytest.raises(ValueError, match="training mode"):
        blockkit.fold(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def test_a_conv_norm_whose_convolution_was_changed_keeps_its_norm() -> None:
    layer = blockkit.ConvNorm(4, 4).eval()
    nn.utils.parametrizations.weight_norm(layer.conv)
    x: Any = torch.rand(1, 4, 5, 5)
    with torch.no_grad():
        layer.norm.running_mean.normal_()
        assert torch.allclose(blockkit.deploy(layer)(x), layer(x), atol=1e-6)


# ---------------------------------------------------------------------------------------------- rounding or not


def test_rounding_goes_away_in_float64_and_another_function_does_not(rooms: Rooms) -> None:
    kinds = blocks.infos(rooms)
    delicate = build.compared(spec_of("odd.Delicate", kinds), kinds)
    assert delicate.in_float32 > 1e-3 and delicate.is_rounding and not delicate.is_another_function
    slight = build.compared(spec_of("odd.Fuses, how: half_wrong", kinds), kinds)
    assert slight.in_float32 < 1e-3 and not slight.is_rounding and not slight.is_another_function
    assert slight.in_float64 is not None and slight.in_float64 > 1e-5 and slight.where == ("s4",)
