"""Every built-in architecture: it loads, analyses at every size, equals the published counts, and computes what the
net it is named after computes.
"""

# ruff: noqa: E501  (one row a net: the table of counts is read across)

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from bblab import blocks, build, ops, spec
from bblab.analysis.net import Analyst
from bblab.rooms import Rooms
from bblab.spec import BlockInfo

ROOMS = Rooms(Path("nowhere"))
ALL = sorted(ROOMS.files("arch_specs", ".yaml"))


@pytest.fixture(scope="module")
def kinds() -> Mapping[str, BlockInfo]:
    return blocks.infos(ROOMS)


@pytest.fixture(scope="module")
def analyst(kinds: Mapping[str, BlockInfo]) -> Analyst:
    return Analyst(kinds)


@pytest.mark.parametrize("name", ALL)
def test_every_spec_analyses_in_both_forms_at_every_size(name: str, analyst: Analyst) -> None:
    one = spec.resolve(name, ROOMS, analyst.kinds)
    assert one.name == name
    assert one.about
    if name == "lenet5":  # 32 px, and a head that takes one size only
        one = replace(one, head=None)
    for side in (one.input[1], one.sizes_px.template, one.sizes_px.search):
        train, deploy = (analyst.cost(one, form, (side, side)) for form in ("train", "deploy"))
        for cost in (train, deploy):
            assert cost.uncounted == ()
            assert cost.unknown == ""
            assert cost.taps[-1].receptive_field and cost.taps[-1].stride
        for a, b in zip(train.maps, deploy.maps, strict=True):
            assert (a.stage, a.channels, a.height, a.width, a.stride, a.receptive_field, a.clean_h, a.clean_w) == (
                b.stage, b.channels, b.height, b.width, b.stride, b.receptive_field, b.clean_h, b.clean_w)  # fmt: skip
        assert deploy.params <= train.params
        assert deploy.macs <= train.macs
        assert deploy.macs_backbone <= deploy.macs


# ---------------------------------------------------------------------------------------------- counts


class Truth(NamedTuple):
    """Measured on the implementation named beside it, built and run there; not with this package.

    MACs (of convolutions and linear layers) of the backbone and of all at the net's own size, and of the backbone at
    template and search size. The receptive field is the extent of the input gradient of a net with positive weights.
    """

    form: ops.Form
    params: int | None
    params_backbone: int
    macs_backbone: int
    macs: int | None
    macs_template: int
    macs_search: int
    stride: int
    channels: int
    sides: tuple[int, int, int]
    """Of the last map, at the net's own size, at template and at search size."""
    receptive_field: int
    sizes: tuple[int, int] = (127, 255)


_ROWS = [
    # timm 1.0 mobileone_s0 (equal to apple/ml-mobileone b7f4e6d and mmpretrain), and its reparameterize_model
    ("mobileone_s0", "train", 5293272, 4268272, 1050911232, 1051935232, 343154688, 1372618752, 32, 1024, (7, 4, 8), 471),
    ("mobileone_s0", "deploy", 2078504, 1053504, 274086400, 275110400, 89497600, 357990400, 32, 1024, (7, 4, 8), 471),
    # timm mobileone_s1
    ("mobileone_s1", "train", 4825192, 3544192, 828782080, 830062080, 270622720, 1082490880, 32, 1280, (7, 4, 8), 471),
    ("mobileone_s1", "deploy", 4764840, 3483840, 823777024, 825057024, 268988416, 1075953664, 32, 1280, (7, 4, 8), 471),
    # timm repvgg_a0, repvgg_a1; DingXiaoH/RepVGG eae7c52
    ("repvgg_a0", "train", 9108968, 7827968, 1511301120, 1512581120, 493486080, 1973944320, 32, 1280, (7, 4, 8), 535),
    ("repvgg_a0", "deploy", 8309384, 7028384, 1360171008, 1361451008, 444137472, 1776549888, 32, 1280, (7, 4, 8), 535),
    ("repvgg_a1", "train", 14092264, 12811264, 2625208320, 2626488320, 857210880, 3428843520, 32, 1280, (7, 4, 8), 535),
    ("repvgg_a1", "deploy", 12789864, 11508864, 2362687488, 2363967488, 771489792, 3085959168, 32, 1280, (7, 4, 8), 535),
    # torchvision 0.28
    ("mobilenetv3_small", "train", 2542856, 927008, 54896576, 56510400, 18234368, 71561216, 32, 576, (7, 4, 8), 639),
    ("mobilenetv2", "train", 3504872, 2223872, 299494272, 300774272, 97794048, 391176192, 32, 1280, (7, 4, 8), 491),
    ("shufflenetv2_x1_0", "train", 2278604, 1253604, 143883992, 144907992, 46982528, 187930112, 32, 1024, (7, 4, 8), 527),
    ("resnet18", "train", 11689512, 11176512, 1813561344, 1814073344, 592183296, 2368733184, 32, 512, (7, 4, 8), 435),
    ("resnet50", "train", 25557032, 23508032, 4087136256, 4089184256, 1334575104, 5338300416, 32, 2048, (7, 4, 8), 427),
    ("alexnet", "train", 61100840, 2469696, 655566528, 714188480, 196213440, 868502208, 32, 256, (6, 3, 7), 195),
    ("googlenet", "train", 6624904, 5599904, 1497352192, 1498376192, 488931328, 1955725312, 32, 1024, (7, 4, 8), 379),
    # timm repvit_m0_9 and repvit_m1_0 (the heads differ: THU-MIG/RepViT 298f420 trains two)
    ("repvit_m0_9", "train", None, 4717792, 816512832, None, 266757120, 1066401792, 32, 384, (7, 4, 8), 743),
    ("repvit_m0_9", "deploy", None, 4682056, 815233344, 815617344, 266339328, 1064730624, 32, 384, (7, 4, 8), 743),
    ("repvit_m1_0", "train", None, 6403004, 1107181600, None, 361720576, 1446027520, 32, 448, (7, 4, 8), 743),
    ("repvit_m1_0", "deploy", None, 6361312, 1105688864, 1106136864, 361233152, 1444077824, 32, 448, (7, 4, 8), 743),
    # huawei-noah/VanillaNet 6aaf731, and its switch_to_deploy
    ("vanillanet_5", "train", 22328800, 17228800, 8445423616, 8450519616, 2397773312, 10293747200, 32, 4096, (7, 3, 7), 392),
    ("vanillanet_5", "deploy", 15523304, 11426304, 5157089280, 5161185280, 1452482048, 6261448192, 32, 4096, (7, 3, 7), 392),
    # researchmm/SiamDW c82b059; HonglinChu/SiamTrackers 248663f, NanoTrack V1
    ("ciresnet22", "train", 1444928, 1444928, 1934311424, 1934311424, 493518848, 2628681728, 8, 512, (17, 5, 21), 93),
    ("nanotrack", "train", None, 190520, 35147552, None, 11534336, 45880832, 16, 48, (14, 8, 16), 319),
    # huanglianghua/siamfc-pytorch AlexNetV1; STVIR/pysot d04028f; MegviiDetection/video_analyst alexnet_bn.py
    ("siamfc_alexnet_v1", "train", None, 2336320, 1973522208, None, 460172064, 2719701792, 8, 256, (18, 6, 22), 87),
    ("pysot_alexnet", "train", None, 3749952, 3119857440, None, 710564640, 5703931680, 8, 256, (18, 6, 26), 87, (127, 287)),
    ("siamfcpp_alexnet", "train", None, 3749952, 3119857440, None, 710564640, 6472185120, 8, 256, (18, 6, 28), 87, (127, 303)),
    ("pysot_resnet50", "train", None, 45528128, 33820463808, None, 10445646528, 44578687680, 8, 2048, (27, 15, 31), 427),
    # torchvision resnet50 to layer3 (researchmm/Stark 162e1d3)
    ("stark_s50", "train", None, 8543296, 3277897728, None, 1070333952, 6689587200, 16, 1024, (14, 8, 20), 267, (128, 320)),
    # timm mobilevit_s, mobilevit_xxs; the body of timm hrnet_w18_small, its map at stride 32
    ("mobilevit_s", "train", 5578632, 4937632, 1520867328, 1521507328, 466741248, 2000191488, 32, 640, (7, 4, 8), 307, (128, 256)),
    ("mobilevit_xxs", "train", 1272024, 951024, 301175296, 301495296, 87101440, 407044096, 32, 320, (7, 4, 8), 307, (128, 256)),
    ("hrnet_w18_small", "train", 13187464, 1477920, 603968512, 1601508352, 197214208, 788856832, 32, 128, (7, 4, 8), 519),
]  # fmt: skip
TRUTHS = {(r[0], r[1]): Truth(*r[1:]) for r in _ROWS if r[0] in ALL}  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "form"), TRUTHS)
def test_counts_equal_the_reference_implementation(name: str, form: str, analyst: Analyst) -> None:
    truth = TRUTHS[name, form]
    one = spec.resolve(name, ROOMS, analyst.kinds)
    if truth.params is None:
        one = replace(one, head=None)
    own = analyst.cost(one, truth.form)
    template, search = (analyst.cost(one, truth.form, (side, side)) for side in truth.sizes)
    last = own.taps[-1]
    assert Truth(
        truth.form,
        truth.params and own.params,
        own.params_backbone,
        own.macs_backbone,
        truth.macs and own.macs if truth.params else truth.macs,
        template.macs_backbone,
        search.macs_backbone,
        int(search.taps[-1].stride or 0),
        last.channels,
        (last.height, template.taps[-1].height, search.taps[-1].height),
        search.taps[-1].receptive_field or 0,
        truth.sizes,
    ) == truth  # fmt: skip
    assert all(c.taps[-1].height == c.taps[-1].width for c in (own, template, search))


@pytest.mark.parametrize(("name", "form"), TRUTHS)
def test_params_are_those_of_the_built_module(name: str, form: ops.Form, analyst: Analyst) -> None:
    from bblab import blockkit

    one = spec.resolve(name, ROOMS, analyst.kinds)
    net: nn.Module = build.Backbone(one, analyst.kinds, device="meta").eval()
    if form == "deploy":
        net = blockkit.deploy(net)
    params = sum(p.numel() for p in net.parameters())
    assert params == analyst.cost(one, form).params
    assert TRUTHS[name, form].params in (None, params)


# ---------------------------------------------------------------------------------------------- outputs


class Twin(NamedTuple):
    """Another library's net with the same weights and the same output."""

    library: str
    name: str
    eps: float | None = None
    """The batch norms' epsilon to set on the other net, where the libraries differ."""
    is_slow: bool = True


TWINS: list[tuple[str, Twin]] = [
    ("mobileone_s0", Twin("timm", "mobileone_s0")),
    ("mobileone_s1", Twin("timm", "mobileone_s1")),
    ("repvgg_a0", Twin("timm", "repvgg_a0")),
    ("mobilenetv3_small", Twin("torchvision", "mobilenet_v3_small", is_slow=False)),
    ("mobilenetv3_small", Twin("timm", "mobilenetv3_small_100", eps=1e-3)),
    ("mobilenetv3_large", Twin("torchvision", "mobilenet_v3_large")),
    ("mobilenetv3_large", Twin("timm", "mobilenetv3_large_100", eps=1e-3)),
    ("mobilenetv2", Twin("torchvision", "mobilenet_v2")),
    ("mobilenetv2", Twin("timm", "mobilenetv2_100")),
    ("shufflenetv2_x1_0", Twin("torchvision", "shufflenet_v2_x1_0", is_slow=False)),
    ("resnet18", Twin("torchvision", "resnet18", is_slow=False)),
    ("resnet18", Twin("timm", "resnet18")),
    ("mobileone_s4", Twin("timm", "mobileone_s4")),
    ("repvgg_a1", Twin("timm", "repvgg_a1")),
    ("repvgg_b0", Twin("timm", "repvgg_b0")),
    ("efficientnet_b0", Twin("torchvision", "efficientnet_b0")),
    ("efficientnet_b0", Twin("timm", "efficientnet_b0")),
    ("resnet50", Twin("torchvision", "resnet50")),
    ("shufflenetv2_x0_5", Twin("torchvision", "shufflenet_v2_x0_5")),
    ("alexnet", Twin("torchvision", "alexnet")),
    ("googlenet", Twin("torchvision", "googlenet")),
]
LEAVES = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
# Ours runs the branches as convolutions, scale, identity; timm's MobileOne identity, scale, convolutions, RepVGG
# identity, 1x1, 3x3. Within one layer the branches are told apart by type and kernel instead.


def run_order(net: nn.Module, x: torch.Tensor) -> list[nn.Module]:
    """The layers with weights, in the order in which they run."""
    found: list[nn.Module] = []
    handles = [
        m.register_forward_pre_hook(lambda m, _: found.append(m)) for m in net.modules() if isinstance(m, LEAVES)
    ]
    net.eval()(x)
    for handle in handles:
        handle.remove()
    assert len(set(map(id, found))) == len(found)
    return found


def branch_sums(net: nn.Module) -> list[list[nn.Module]]:
    """Of every re-parameterised layer: its layers with weights, identity norm first, then by kernel, then in order."""
    found = []
    for module in net.modules():
        if hasattr(module, "identity") and (hasattr(module, "convs") or hasattr(module, "conv_kxk")):
            own = [m for n, m in module.named_modules() if not n.startswith(("se.", "attn."))]
            parts = [m for m in own if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
            convs = [p for p in parts if isinstance(p, nn.Conv2d)]
            assert convs
            ordered: list[nn.Module] = []
            units = []
            for i, part in enumerate(parts):
                if isinstance(part, nn.Conv2d):
                    units.append((part.kernel_size[0], part, parts[i + 1]))
            normed = {id(u[2]) for u in units}
            ordered += [p for p in parts if isinstance(p, nn.BatchNorm2d) and id(p) not in normed]
            for _, conv, norm in sorted(units, key=lambda u: u[0]):  # stable: equal kernels stay in order
                ordered += [conv, norm]
            found.append(ordered)
    return found


def share_weights(mine: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    """Give both nets the same random weights and norm statistics. Fails where their layers do not pair up."""
    a, b = run_order(mine, x), run_order(theirs, x)
    inner_a, inner_b = branch_sums(mine), branch_sums(theirs)
    if inner_a:  # branches by kind, the rest (heads) by order
        inside = {id(m) for group in (*inner_a, *inner_b) for m in group}
        a = [m for group in inner_a for m in group] + [m for m in a if id(m) not in inside]
        b = [m for group in inner_b for m in group] + [m for m in b if id(m) not in inside]
    assert len(a) == len(b)
    generator = torch.Generator().manual_seed(0)
    for one, other in zip(a, b, strict=True):
        state, wanted = one.state_dict(), other.state_dict()
        # A hidden layer of a head may be a 1x1 convolution in one library and linear in another.
        assert [(k, v.numel()) for k, v in state.items()] == [(k, v.numel()) for k, v in wanted.items()], (one, other)
        for key, value in state.items():
            if key.endswith("num_batches_tracked"):
                continue
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            if value.dim() > 1:  # of order 1/sqrt(fan-in), so that neither net overflows
                noise = (noise - 0.5) * (12 / value[0].numel()) ** 0.5
            elif key in ("weight", "running_var"):
                noise += 0.5
            else:
                noise -= 0.5
            value.copy_(noise)
            wanted[key].copy_(noise.reshape(wanted[key].shape))


@pytest.mark.parametrize(
    ("name", "twin"),
    [pytest.param(n, t, id=f"{n}-{t.library}", marks=[pytest.mark.slow] if t.is_slow else []) for n, t in TWINS],
)
@torch.no_grad()
def test_the_same_weights_give_the_same_output(name: str, twin: Twin, kinds: Mapping[str, BlockInfo]) -> None:
    from bblab import library

    one = spec.resolve(name, ROOMS, kinds)
    mine = build.Backbone(one, kinds).double().eval()
    mine.forward = mine.classify  # type: ignore[assignment, method-assign]
    theirs = library.make_net(f"{twin.library}:{twin.name}").double()
    if twin.eps:
        for m in theirs.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eps = twin.eps
    torch.manual_seed(1)
    x = torch.randn(2, 3, 75, 64, dtype=torch.float64)
    share_weights(mine, theirs, x)
    ours, wanted = mine(x), theirs(x)
    assert wanted.isfinite().all() and wanted.std() > 0
    assert (ours - wanted).abs().max() <= 1e-10 * wanted.abs().max()


def test_only_mobilenetv3_has_an_epsilon_of_its_own_among_the_classifiers(kinds: Mapping[str, BlockInfo]) -> None:
    """torchvision and mmpretrain build MobileNetV3 with 1e-3; the others have torch's 1e-5."""
    for name in {name for name, _ in TWINS} - {"googlenet", "alexnet"}:
        net = build.Backbone(spec.resolve(name, ROOMS, kinds), kinds, device="meta")
        wanted = 1e-3 if name.startswith("mobilenetv3") else 1e-5
        assert {m.eps for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {wanted}, name
