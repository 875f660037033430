"""What each block promises: the fused form equals the trained one, strides, branches, counts, refused arguments."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bblab.blockkit import RepConv, deploy
from bblab.blocks.classifier import Classifier
from bblab.blocks.conv import Conv
from bblab.blocks.dwsep import DepthSeparable
from bblab.blocks.mbconv import MBConv
from bblab.blocks.mobileone import MobileOne, MobileOneDense
from bblab.blocks.pool import AvgPool, Crop, MaxPool
from bblab.blocks.repvgg import RepVGG
from bblab.blocks.resnet import Basic, Bottleneck
from bblab.blocks.shuffle import Shuffle, ShuffleDown

SE = {"ratio": 0.25, "gate": "hsigmoid"}


def trained(module: nn.Module) -> nn.Module:
    """In eval mode, with batch norms as training leaves them: gains and variances ±50 %, shifts and means ±0.5."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 1.5)
    return module.eval()


@torch.no_grad()
def run(module: nn.Module, channels: int, side: int = 33) -> Tensor:
    torch.manual_seed(1)
    return module(torch.randn(2, channels, side, side))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def layers(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(m, kind) for m in module.modules())


# ---------------------------------------------------------------------------------------------- both forms

RE_PARAMETERISED: list[tuple[Callable[..., nn.Module], int, int, dict[str, Any]]] = [
    (MobileOne, 16, 16, {}),
    (MobileOne, 16, 24, {"branches": 4, "stride": 2}),
    (MobileOne, 16, 16, {"kernel": 5, "branches": 4, "se": SE}),
    (MobileOne, 16, 16, {"kernel": 7, "dilation": 2}),
    (MobileOne, 16, 16, {"scale": False, "identity": False}),
    (MobileOne, 16, 24, {"kernel": 5, "stride": 2, "pad": "same_unless_strided"}),
    (MobileOneDense, 16, 16, {"branches": 4}),
    (MobileOneDense, 16, 16, {"groups": 4, "act": "hswish"}),
    (MobileOneDense, 16, 16, {"kernel": 5, "pad": "valid"}),
    (MobileOneDense, 16, 16, {"kernel": 1, "branches": 2}),
    (MobileOneDense, 3, 16, {"stride": 2}),
    (RepVGG, 16, 16, {}),
    (RepVGG, 16, 16, {"groups": 2, "se": SE}),
    (RepVGG, 16, 24, {"stride": 2, "act": None}),
    (ShuffleDown, 16, 40, {"branches": 4, "stride": 2}),
    (ShuffleDown, 16, 40, {"branches": 2, "shortcut": "avgpool", "kernel": 5}),
    (ShuffleDown, 16, 40, {"branches": 1, "shortcut": "maxpool", "stride": 2}),
]
FOLDED: list[tuple[Callable[..., nn.Module], int, int, dict[str, Any]]] = [
    (Conv, 16, 24, {"kernel": [1, 7], "stride": 2, "pad": "tf_same"}),
    (Conv, 16, 24, {"bias": True}),
    (DepthSeparable, 16, 24, {"kernel": 5, "dilation": 2}),
    (MBConv, 16, 16, {"kernel": 5, "se": SE, "act": "hswish"}),
    (MBConv, 16, 24, {"se": SE, "se_position": "before_act", "stride": 2}),
    (Shuffle, 16, 16, {}),
    (Shuffle, 16, 32, {"stride": 2}),
    (Basic, 16, 24, {"stride": 2}),
    (Bottleneck, 16, 32, {"projection": {"kernel": 3}, "dilation": 2, "crop": 1, "last_act": False}),
]


@pytest.mark.parametrize(("make", "in_ch", "out_ch", "arguments"), RE_PARAMETERISED + FOLDED)
def test_the_fused_form_gives_the_trained_forms_output(
    make: Callable[..., nn.Module], in_ch: int, out_ch: int, arguments: dict[str, Any]
) -> None:
    block = trained(make(in_ch, out_ch, **arguments))
    expected = run(block, in_ch)
    fused = deploy(block)
    assert expected.abs().max() > 0.1
    difference = (run(fused, in_ch) - expected).abs().max() / expected.abs().max()
    assert difference < 1e-5
    assert layers(fused, nn.BatchNorm2d) == 0
    assert not any(m.training for m in fused.modules())
    assert torch.equal(run(block, in_ch), expected), "fusing must leave the trained block as it was"


@pytest.mark.parametrize(("make", "in_ch", "out_ch", "arguments"), RE_PARAMETERISED)
def test_each_re_parameterised_layer_becomes_one_convolution(
    make: Callable[..., nn.Module], in_ch: int, out_ch: int, arguments: dict[str, Any]
) -> None:
    block = make(in_ch, out_ch, **{**arguments, "se": None} if "se" in arguments else arguments)
    assert layers(deploy(block), nn.Conv2d) == layers(block, RepConv)


def test_every_branch_gets_a_gradient() -> None:
    block = MobileOne(8, 8, kernel=5, branches=2, se=SE)
    block(torch.randn(2, 8, 9, 9)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in block.depth.parameters())


def test_blocks_cost_nothing_on_the_meta_device() -> None:
    block = MobileOne(8, 16, 2, branches=2, se=SE, device="meta")
    assert all(p.is_meta for p in block.parameters())
    assert deploy(block)(torch.zeros(1, 8, 9, 9, device="meta")).shape == (1, 16, 5, 5)


# ---------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("make", [Conv, DepthSeparable, MBConv, MobileOne, MobileOneDense, RepVGG, Shuffle, ShuffleDown,
                                  Basic, Bottleneck])  # fmt: skip
def test_stride_two_halves_the_map(make: Callable[..., nn.Module]) -> None:
    assert run(make(8, 16, 2).eval(), 8, 33).shape == (2, 16, 17, 17)
    assert run(make(8, 16, 2).eval(), 8, 32).shape == (2, 16, 16, 16)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (Conv, {"kernel": 7}),
        (MBConv, {"kernel": 5}),
        (MobileOne, {"kernel": 5}),
        (RepVGG, {}),
        (ShuffleDown, {"shortcut": "avgpool", "branches": 1}),
        (Basic, {"projection": {"kernel": 3}}),
        (Bottleneck, {"projection": {"kernel": 3}}),
    ],
)
def test_unpadded_strides_keep_maps_odd(make: Callable[..., nn.Module], arguments: dict[str, Any]) -> None:
    # pysot: (127 - k) // 2 + 1, so 127 -> 63 with 3x3, 62 with 5x5, 61 with 7x7
    kernel = arguments.get("kernel", 3)
    block = make(4, 8, 2, pad="same_unless_strided", **arguments).eval()
    assert run(block, 4, 127).shape[2:] == ((127 - kernel) // 2 + 1,) * 2


def test_dilation_follows_into_the_projection() -> None:
    block = Bottleneck(8, 16, dilation=2, projection={"kernel": 3})
    dilations = [m.dilation for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert dilations == [(2, 2), (2, 2)]


def test_crop_takes_from_all_sides() -> None:
    x = torch.arange(25.0).view(1, 1, 5, 5)
    assert Crop(1, 1, crop=1)(x).tolist() == [[[[6, 7, 8], [11, 12, 13], [16, 17, 18]]]]
    assert run(Bottleneck(8, 8, crop=1).eval(), 8, 9).shape == (2, 8, 7, 7)


def test_pools_keep_channels_and_take_the_rows_stride() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert MaxPool(1, 1, 2, kernel=2)(x).tolist() == [[[[5, 7], [13, 15]]]]
    assert AvgPool(1, 1, 2, kernel=2)(x).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert MaxPool(1, 1, 2, kernel=3)(x).shape[2:] == (1, 1)
    assert MaxPool(1, 1, 2, kernel=3, ceil_mode=True)(x).shape[2:] == (2, 2)


# ---------------------------------------------------------------------------------------------- structure


def test_scale_stands_only_beside_a_larger_kernel() -> None:
    block = MobileOne(8, 8)
    assert block.depth.scale is not None and block.point.scale is None
    assert MobileOne(8, 8, scale=False).depth.scale is None


@pytest.mark.parametrize(("out_ch", "stride", "has_identity"), [(8, 1, True), (16, 1, False), (8, 2, False)])
def test_identity_stands_only_where_channels_and_stride_allow_it(out_ch: int, stride: int, has_identity: bool) -> None:
    assert (RepVGG(8, out_ch, stride).identity is not None) is has_identity
    assert RepVGG(8, out_ch, stride, identity=False).identity is None


def test_se_gates_the_sum_before_the_activation() -> None:
    block = trained(MobileOneDense(8, 8, se=SE, act="relu"))
    assert isinstance(block, MobileOneDense)
    x = torch.randn(1, 8, 9, 9)
    plain = block.convs[0](x) + block.scale(x) + block.identity(x)
    assert torch.allclose(block(x), F.relu(block.se(plain)))


def test_mbconv_widens_only_where_it_widens() -> None:
    assert isinstance(MBConv(16, 16, expand=1).expand, nn.Identity)
    assert isinstance(MBConv(16, 16, width=16).expand, nn.Identity)
    assert not isinstance(MBConv(16, 16, expand=1, expand_conv=True).expand, nn.Identity)
    assert MBConv(24, 24, expand=3.67).depth.conv.groups == 88  # 88.08, to a multiple of 8
    assert MBConv(22, 24, expand=3.5, round_width=False).depth.conv.groups == 77
    assert MBConv(20, 24, expand=1).depth.conv.groups == 20


def test_mbconv_adds_its_input_only_where_it_can() -> None:
    def keeps_input(block: MBConv) -> bool:
        nn.init.zeros_(block.project.norm.weight)
        x = torch.randn(1, 8, 9, 9)
        return torch.equal(block.eval()(x), x)

    assert keeps_input(MBConv(8, 8))
    assert not keeps_input(MBConv(8, 8, residual=False))
    assert not MBConv(8, 8, 2).has_residual and not MBConv(8, 16).has_residual


def test_mbconv_gates_before_or_after_the_activation() -> None:
    after, before = (MBConv(8, 8, se=SE, act="hswish", se_position=p) for p in ("after_act", "before_act"))
    before.load_state_dict(after.state_dict())
    x = torch.randn(1, 8, 9, 9)
    wide = before.eval().depth(before.expand(x))
    assert torch.allclose(before(x), x + before.project(F.hardswish(before.se(wide))), atol=1e-6)
    wide = after.eval().depth.norm(after.depth.conv(after.expand(x)))
    assert torch.allclose(after(x), x + after.project(after.se(F.hardswish(wide))), atol=1e-6)


def test_shuffle_passes_half_of_its_channels_untouched() -> None:
    x = torch.randn(1, 8, 9, 9)
    assert torch.equal(Shuffle(8, 8).eval()(x)[:, 0::2], x[:, :4])


def test_an_average_pool_shortcut_keeps_the_input_channels() -> None:
    x = torch.randn(1, 8, 9, 9)
    down = ShuffleDown(8, 20, 2, shortcut="avgpool", shuffle=False).eval()
    out = down(x)
    assert torch.equal(out[:, :8], F.avg_pool2d(x, 3, 2, 1)) and out.shape == (1, 20, 5, 5)
    shuffled = ShuffleDown(8, 20, 2, shortcut="avgpool").eval()
    shuffled.load_state_dict(down.state_dict())
    # 20 channels as 2 rows of 10, read by columns: 0, 10, 1, 11, ...
    assert torch.equal(shuffled(x), out[:, [c for pair in zip(range(10), range(10, 20), strict=True) for c in pair]])


def test_a_residual_without_its_last_activation_goes_below_zero() -> None:
    assert run(Bottleneck(8, 8).eval(), 8).min() == 0
    assert run(Bottleneck(8, 8, last_act=False).eval(), 8).min() < 0


def test_a_projection_stands_only_where_channels_or_stride_change() -> None:
    assert isinstance(Basic(8, 8, projection={"kernel": 3}).shortcut, nn.Identity)
    for block in (Basic(8, 16), Basic(8, 8, 2), Bottleneck(8, 16)):
        assert not isinstance(block.shortcut, nn.Identity)


def test_middle_activation_of_dwsep() -> None:
    assert isinstance(DepthSeparable(8, 8, act="hswish").depth.act, nn.Hardswish)
    assert isinstance(DepthSeparable(8, 8, mid_act=None).depth.act, nn.Identity)


def test_epsilon_reaches_every_norm() -> None:
    makes: list[Callable[..., nn.Module]] = [Conv, DepthSeparable, MBConv, MobileOne, MobileOneDense, RepVGG, Shuffle,
                                             ShuffleDown, Basic, Bottleneck]  # fmt: skip
    for make in makes:
        norms = [m for m in make(8, 16, 2, eps=1e-3).modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and all(n.eps == 1e-3 for n in norms), make


# ---------------------------------------------------------------------------------------------- counts


def test_mobileone_parameters() -> None:
    # Depthwise: 4 x (9 * 8 + norm 16), scale 8 + 16, identity 16. Point: 4 x (8 * 16 + norm 32), no identity.
    block = MobileOne(8, 16, branches=4)
    assert count(block) == 4 * (72 + 16) + 24 + 16 + 4 * (128 + 32)
    # Fused: 9 * 8 + 8 biases, 8 * 16 + 16 biases.
    assert count(deploy(block)) == 80 + 144


def test_repvgg_parameters() -> None:
    # 3x3 9 * 16 * 16 + 32, 1x1 256 + 32, identity 32; fused 9 * 256 + 16.
    assert count(RepVGG(16, 16)) == 2304 + 32 + 256 + 32 + 32
    assert count(deploy(RepVGG(16, 16))) == 2304 + 16


def test_mbconv_parameters() -> None:
    # 8 -> 32: 256 + 64; depthwise 25 * 32 + 64; SE 32 -> 8 -> 32: 256 + 8 + 256 + 32; project 32 * 16 + 32.
    assert count(MBConv(8, 16, kernel=5, expand=4, se=SE)) == 320 + 864 + 552 + 544


def test_shuffle_parameters() -> None:
    # On 8 of 16 channels: 1x1 64 + 16, depthwise 72 + 16, 1x1 64 + 16.
    assert count(Shuffle(16, 16)) == 80 + 88 + 80
    # Shortcut on 16: depthwise 144 + 32, 1x1 16 * 16 + 32. Main: 1x1 256 + 32, depthwise 144 + 32, 1x1 256 + 32.
    assert count(Shuffle(16, 32, 2)) == 176 + 288 + 288 + 176 + 288


def test_residual_parameters() -> None:
    # Bottleneck 16 -> 32, width 8: 128 + 16, 9 * 64 + 16, 256 + 64; 1x1 projection 512 + 64.
    assert count(Bottleneck(16, 32)) == 144 + 592 + 320 + 576
    # With a 3x3 projection: 9 * 512 + 64 instead.
    assert count(Bottleneck(16, 32, projection={"kernel": 3})) == 144 + 592 + 320 + 4672
    # ResNeXt: width 16 in 4 groups: 256 + 32, 9 * 16 * 4 + 32, 512 + 64; projection.
    assert count(Bottleneck(16, 32, width=16, groups=4)) == 288 + 608 + 576 + 576
    # Basic 8 -> 8: two 3x3 with norms, no projection.
    assert count(Basic(8, 8)) == 2 * (576 + 16)


def test_classifier_parameters() -> None:
    # 16 -> 32 -> 10 with biases.
    head = Classifier(16, 10, hidden=32, hidden_act="hswish", dropout=0.2)
    assert count(head) == 16 * 32 + 32 + 32 * 10 + 10
    assert head(torch.randn(2, 16, 7, 7)).shape == (2, 10)
    # AlexNet's form: a 6x6 map, flattened, two hidden layers.
    assert count(Classifier(4, 10, side=6, hidden=[8, 8])) == 4 * 36 * 8 + 8 + 72 + 90


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "out_ch", "arguments", "said"),
    [
        (Conv, 8, {"groups": 3}, "groups 3"),
        (Conv, 8, {"pad": "sam"}, "same"),
        (Conv, 8, {"act": "rleu"}, "relu"),
        (Conv, 8, {"kernel": 0}, "kernel"),
        (Conv, 8, {"dilation": 0}, "dilation"),
        (MobileOne, 8, {"branches": 0}, "branches"),
        (MobileOne, 8, {"kernel": 4}, "kernel must be odd"),
        (MobileOne, 8, {"pad": "tf_same"}, "pad"),
        (MobileOne, 8, {"pad": 2}, "pad"),
        (MobileOne, 8, {"se": {"ratoi": 0.5}}, "ratio"),
        (MobileOneDense, 8, {"groups": 5}, "groups"),
        (MBConv, 8, {"expand": 0}, "expand"),
        (MBConv, 8, {"width": 0}, "width"),
        (MBConv, 8, {"expand": 2, "expand_conv": False}, "expand_conv"),
        (MBConv, 8, {"pad": "valid"}, "residual: false"),
        (MBConv, 8, {"se": SE, "se_position": "middle"}, "se_position"),
        (Shuffle, 16, {}, "out"),
        (Shuffle, 9, {"stride": 2}, "out must be even"),
        (Shuffle, 8, {"pad": "valid"}, "pad"),
        (ShuffleDown, 8, {"shortcut": "avgpool"}, "out must be above"),
        (ShuffleDown, 16, {"shortcut": "sum"}, "shortcut"),
        (ShuffleDown, 16, {"branches": -1}, "branches"),
        (ShuffleDown, 16, {"shortcut": "avgpool", "kernel": 5, "stride": 2, "pad": "same_unless_strided"}, "pad"),
        (Basic, 8, {"pad": "valid"}, "pad"),
        (Basic, 8, {"crop": -1}, "crop"),
        (Bottleneck, 8, {"projection": {"kernal": 3}}, "kernel"),
        (Bottleneck, 16, {"projection": {"kernel": 5}}, "kernel must be 1 or 3"),
        (Bottleneck, 16, {"stride": 2, "pad": "same_unless_strided"}, "projection"),
        (Bottleneck, 3, {}, "width"),
        (MaxPool, 16, {}, "out"),
        (MaxPool, 8, {"kernel": 2, "pad": 2}, "pad"),
        (AvgPool, 8, {"pad": "tf_same"}, "pad"),
        (Crop, 8, {"crop": 0}, "crop"),
        (Classifier, 10, {"pool": "mean"}, "pool"),
        (Classifier, 10, {"dropout": 1.0}, "dropout"),
        (Classifier, 10, {"hidden": 0}, "hidden"),
    ],
)
def test_impossible_arguments_are_refused_by_their_name(
    make: Callable[..., nn.Module], out_ch: int, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        make(8, out_ch, **arguments)
