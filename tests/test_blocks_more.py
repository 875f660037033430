"""Blocks with branches, several maps or fading layers: counts worked out by hand, both forms, what each computes."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bblab import ops
from bblab.analysis import sight
from bblab.blockkit import RepConvNorm, deploy
from bblab.blocks.activation import Activation
from bblab.blocks.classifier import Classifier
from bblab.blocks.hr import HighResolution, HighResolutionClassifier
from bblab.blocks.inception import CirInception, Inception, InceptionA, InceptionB, InceptionC
from bblab.blocks.mbconv import MBConv
from bblab.blocks.mobilevit import MobileViT
from bblab.blocks.qarepvgg import QARepVGG
from bblab.blocks.repvit import RepViT, RepViTClassifier, RepViTDown
from bblab.blocks.resnet import Bottleneck
from bblab.blocks.vanillanet import LINEAR_AT, Vanilla, VanillaClassifier, VanillaStem

GOOGLENET = {"one": 8, "three": [4, 8], "five": [2, 4], "pool": 4}
SE = {"ratio": 0.25, "gate": "sigmoid"}


def trained(module: nn.Module) -> nn.Module:
    """In eval mode, with norms as training leaves them: gains and variances ±50 %, shifts and means ±0.5."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            assert norm.running_mean is not None and norm.running_var is not None
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 1.5)
    return module.eval()


def image(channels: int, side: int = 17) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, channels, side, side)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def convs(module: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in module.modules())


def norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


# ---------------------------------------------------------------------------------------------- both forms

# make, input channels, output channels, arguments, convolutions of the deploy form
FORMS: list[tuple[Callable[..., nn.Module], int, int, dict[str, Any], int]] = [
    (QARepVGG, 8, 8, {}, 1),
    (QARepVGG, 8, 12, {"stride": 2}, 1),
    (QARepVGG, 8, 8, {"groups": 4, "kernel": 5, "pad": "valid"}, 1),
    (QARepVGG, 8, 8, {"dilation": 2, "act": None}, 1),
    (RepViT, 8, 8, {"units": 3, "se": SE}, 3 * 3 + 2 * 2),
    (RepViTDown, 8, 16, {"stride": 2, "kernel": 5}, 3 + 2 + 2),
    (VanillaStem, 3, 8, {"stride": 4}, 2),
    (Vanilla, 8, 16, {"stride": 2}, 2),
    (Vanilla, 8, 16, {"series": 1}, 2),
    (Inception, 8, 24, GOOGLENET, 6),
    (InceptionA, 8, 256, {}, 7),
    (InceptionB, 8, 488, {"stride": 2}, 4),
    (InceptionC, 8, 32, {"width": 4}, 10),
    (CirInception, 8, 20, {"last_act": False}, 4),
    (MobileViT, 8, 8, {"width": 16, "depth": 1}, 4),
    (MBConv, 8, 16, {"bias": True}, 3),
    (Bottleneck, 8, 16, {"widen": 2}, 4),
]


@pytest.mark.parametrize(("make", "in_ch", "out_ch", "arguments", "num_convs"), FORMS)
@torch.no_grad()
def test_the_deploy_form_folds_every_norm_and_gives_the_same_output(
    make: Callable[..., nn.Module], in_ch: int, out_ch: int, arguments: dict[str, Any], num_convs: int
) -> None:
    block = trained(make(in_ch, out_ch, **arguments))
    expected = block(image(in_ch))
    fused = deploy(block)
    assert expected.shape[1] == out_ch and expected.abs().max() > 0.1
    assert (fused(image(in_ch)) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (convs(fused), norms(fused)) == (num_convs, 0)
    assert torch.equal(block(image(in_ch)), expected), "fusing must leave the trained block as it was"


@pytest.mark.parametrize("head", [RepViTClassifier(8, 5), RepViTClassifier(8, 5, heads=1), VanillaClassifier(8, 5)])
@torch.no_grad()
def test_heads_with_norms_fold_to_one_layer(head: nn.Module) -> None:
    trained(head)
    fused = deploy(head)
    assert torch.allclose(fused(image(8)), head(image(8)), atol=1e-5)
    assert count(fused) == 8 * 5 + 5


@torch.no_grad()
def test_several_maps_survive_the_deploy_form() -> None:
    block = trained(HighResolution([4, 8], [4, 8, 16], units=1))
    given = [image(4, 16), image(8, 8)]
    expected = block(given)
    fused = deploy(block)
    assert norms(fused) == 0
    for a, b in zip(expected, fused(given), strict=True):
        assert (a - b).abs().max() < 1e-5 * a.abs().max()


def test_a_layer_may_be_named_like_a_fuse_method() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fuse = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fuse(x)

    assert deploy(Named())(image(2)).shape == image(2).shape


# ---------------------------------------------------------------------------------------------- what they compute


@torch.no_grad()
def test_the_sum_of_three_branches_is_normed_once() -> None:
    block = trained(RepConvNorm(4, 4, act=None))
    assert isinstance(block, RepConvNorm)
    x = image(4)
    assert torch.allclose(block(x), block.norm(block.conv(x) + F.conv2d(x, block.scale.weight) + x))
    assert RepConvNorm(4, 4).scale.bias is None and RepConvNorm(4, 4, scale_bias=True).scale.bias is not None
    assert not RepConvNorm(4, 6).has_identity and not RepConvNorm(4, 4, 3, 2).has_identity


def test_repvit_gates_every_second_unit() -> None:
    units = list(RepViT(8, 8, units=4, se=SE).children())
    assert [isinstance(unit[1], nn.Identity) for unit in units] == [False, True, False, True]


@torch.no_grad()
def test_vanillanets_inner_activation_fades_to_linear() -> None:
    block = trained(Vanilla(4, 8))
    assert isinstance(block, Vanilla)
    x = image(4)
    whole = block(x)
    slopes = []
    for t in (0.0, LINEAR_AT / 2, LINEAR_AT, 1.0):
        block.set_progress(t)
        slopes.append(block.pair.slope)
        fused = deploy(block)
        assert (fused(x) - block(x)).abs().max() < 1e-5
        assert convs(fused) == (2 if t >= LINEAR_AT else 3)
    assert slopes == [0.0, 0.5, 1.0, 1.0]
    assert torch.equal(block(x), whole), "a new block is in the form that training ends with"
    block.set_progress(0.0)
    assert torch.allclose(block.pair(x), block.pair.second(F.relu(block.pair.first(x))))


def test_vanillanet_pools_before_it_activates() -> None:
    x = image(4, 16)
    block = trained(Vanilla(4, 8, 2))
    assert isinstance(block, Vanilla)
    assert torch.allclose(block(x), block.around(F.relu(F.max_pool2d(block.pair(x), 2))))
    assert VanillaStem(3, 8, 4)(image(3, 19)).shape == (2, 8, 4, 4)  # (19 - 4) // 4 + 1


def test_inception_concatenates_its_branches_in_order() -> None:
    block = trained(Inception(8, 24, **GOOGLENET))
    x = image(8)
    out = block(x)
    assert torch.equal(out[:, :8], block.branches[0](x))  # type: ignore[index, operator]
    assert torch.equal(out[:, 20:], block.branches[3](x))  # type: ignore[index, operator]


def test_inceptions_reduction_is_unpadded_and_keeps_the_input() -> None:
    x = image(8)  # 17 -> (17 - 3) // 2 + 1
    out = trained(InceptionB(8, 488, 2))(x)
    assert out.shape[2:] == (8, 8)
    assert torch.equal(out[:, 480:], F.max_pool2d(x, 3, 2))


def test_cir_inception_crops_and_may_end_without_activation() -> None:
    assert CirInception(8, 20)(image(8)).shape == (2, 20, 15, 15)
    assert trained(CirInception(8, 20))(image(8)).min() == 0
    open_ended = trained(CirInception(8, 20, last_act=False))(image(8))
    assert open_ended[:, :16].min() < 0 and open_ended[:, 16:].min() < 0


def test_a_norm_after_the_sum_replaces_the_projections() -> None:
    block = trained(Bottleneck(8, 16, norm_sum=True))
    assert isinstance(block, Bottleneck)
    x = image(8)
    assert torch.allclose(block(x), F.relu(block.norm(block.main(x) + F.conv2d(x, block.shortcut.conv.weight))))
    assert norms(block) == 4 and norms(Bottleneck(16, 16, norm_sum=True)) == 4 and norms(Bottleneck(16, 16)) == 3


def test_hr_hands_on_one_map_more_and_halves_its_side() -> None:
    first = HighResolution(8, [4, 6], units=1)
    maps = first(image(8, 16))
    assert [m.shape for m in maps] == [(2, 4, 16, 16), (2, 6, 8, 8)]
    second = HighResolution([4, 6], [4, 6, 10], units=1)
    assert [m.shape[1:] for m in second(maps)] == [(4, 16, 16), (6, 8, 8), (10, 4, 4)]
    assert HighResolutionClassifier([4, 6], 7, width=2, features=16)(maps).shape == (2, 7)


def test_hr_sums_what_the_other_maps_send() -> None:
    block = trained(HighResolution([4, 6], [4, 6], units=1))
    assert isinstance(block, HighResolution)
    fine, coarse = image(4, 16), image(6, 8)
    inner = [block.branches[0](fine), block.branches[1](coarse)]
    up, down = block.exchange[0][1], block.exchange[1][0]  # type: ignore[index]
    sent = F.interpolate(up.point(inner[1]), scale_factor=2)
    assert torch.allclose(block([fine, coarse])[0], F.relu(inner[0] + sent))
    assert torch.allclose(block([fine, coarse])[1], F.relu(down(inner[0]) + inner[1]))


def test_mobilevit_sees_far_only_through_units_at_the_same_place_of_a_patch() -> None:
    block = trained(MobileViT(4, 4, width=8, depth=1, kernel=1))
    x = image(4, 8)
    moved = x.clone()
    moved[:, :, 0, 0] += 1  # the upper left unit of the first patch
    changed = (block(moved) - block(x)).abs().amax((0, 1)) > 1e-6
    even = torch.zeros(8, 8, dtype=torch.bool)
    even[::2, ::2] = True
    assert torch.equal(changed, even)


def test_mobilevit_resizes_maps_that_patches_do_not_fill() -> None:
    block = MobileViT(4, 6, width=8, depth=1).eval()
    assert block(image(4, 7)).shape == (2, 6, 7, 7)
    assert MobileViT(4, 6, width=8, depth=1, patch=4).eval()(image(4, 8)).shape == (2, 6, 8, 8)


def test_an_activation_stands_alone() -> None:
    assert torch.equal(Activation(4, 4)(image(4)), image(4).relu())
    assert torch.equal(Activation(4, 4, act="tanh")(image(4)), image(4).tanh())


def test_alexnets_head_drops_before_its_hidden_layers() -> None:
    kinds = [type(m) for m in Classifier(4, 10, side=6, hidden=[8, 8], hidden_dropout=0.5).hidden]
    assert kinds == [nn.Dropout, nn.Linear, nn.ReLU] * 2


# ---------------------------------------------------------------------------------------------- counts


def test_qarepvgg_parameters() -> None:
    # 3x3 9 * 64 + norm 16, 1x1 64 without norm, one norm 16 after the sum; fused 9 * 64 + 8 biases.
    assert count(QARepVGG(8, 8)) == 576 + 16 + 64 + 16
    assert count(deploy(QARepVGG(8, 8))) == 576 + 8


def test_repvit_parameters() -> None:
    # Depthwise: 3x3 72 + norm 16, 1x1 with bias 8 + 8, norm 16. Mixer: 8 * 16 + 32, 16 * 8 + 16.
    mixer = 128 + 32 + 128 + 16
    assert count(RepViT(8, 8)) == 72 + 16 + 16 + 16 + mixer
    # SE 8 -> 8 -> 8 with biases (a quarter is 2, never below 8), in the first of two units.
    assert count(RepViT(8, 8, units=2, se=SE)) == 2 * count(RepViT(8, 8)) + 2 * (64 + 8)
    # A unit, depthwise 72 + 16, 1x1 8 * 16 + 32, mixer 16 -> 32 -> 16.
    assert count(RepViTDown(8, 16, 2)) == 120 + mixer + 88 + 160 + 512 + 64 + 512 + 32
    # Two heads of norm 16 and 8 * 5 + 5.
    assert count(RepViTClassifier(8, 5)) == 2 * (16 + 45)


def test_vanillanet_parameters() -> None:
    # 1x1 8 * 8 + 8 + norm 16, 1x1 8 * 16 + 16 + norm 32, depthwise 7x7 49 * 16 + norm 32.
    assert count(Vanilla(8, 16, 2)) == 88 + 176 + 784 + 32
    # Fused: 8 * 16 + 16, 49 * 16 + 16.
    assert count(deploy(Vanilla(8, 16, 2))) == 144 + 800
    # Stem: 4x4 48 * 8 + 8 + 16, 1x1 64 + 8 + 16, depthwise 392 + 16.
    assert count(VanillaStem(3, 8, 4)) == 408 + 88 + 408
    # Head: 8 * 5 + 5 + norm 10, 5 * 5 + 5.
    assert count(VanillaClassifier(8, 5)) == 55 + 30


def test_inception_parameters() -> None:
    # 8 -> 8: 64 + 16. 8 -> 4 -> 8: 32 + 8 + 288 + 16. 8 -> 2 -> 4, 5x5: 16 + 4 + 200 + 8. 8 -> 4: 32 + 8.
    assert count(Inception(8, 24, **GOOGLENET)) == 80 + 344 + 228 + 40
    # torchvision's 3x3 instead of 5x5: 9 * 8 instead of 25 * 8.
    assert count(Inception(8, 24, kernel=3, **GOOGLENET)) == 80 + 344 + 228 + 40 - 16 * 8
    # C, four branches of 8 of 32, width 4 inside: 64 + 16; 32 + 8, 7 * 16 + 8, 7 * 32 + 16;
    # 32 + 8, three times 7 * 16 + 8, 7 * 32 + 16; 64 + 16.
    assert count(InceptionC(8, 32, width=4)) == 80 + 40 + 120 + 240 + 40 + 3 * 120 + 240 + 80
    # CIR-Inception to 16 + 4: 32 + 8, 9 * 16 + 8, 64 + 32; 32 + 8.
    assert count(CirInception(8, 20)) == 40 + 152 + 96 + 40


def test_bottleneck_parameters_with_a_wide_3x3_and_a_norm_after_the_sum() -> None:
    # 8 -> 4 -> 8 -> 16: 32 + 8, 9 * 32 + 16, 128 + 32; projection 128 + 32.
    assert count(Bottleneck(8, 16, widen=2)) == 40 + 304 + 160 + 160
    # 8 -> 4 -> 4 -> 16: 32 + 8, 9 * 16 + 8, 64 + 32; projection 128; the sum's norm 32.
    assert count(Bottleneck(8, 16, norm_sum=True)) == 40 + 152 + 96 + 128 + 32


def test_a_bias_beside_the_norm_adds_one_number_a_channel() -> None:
    assert count(MBConv(8, 16, bias=True)) == count(MBConv(8, 16)) + 48 + 48 + 16
    assert count(deploy(MBConv(8, 16, bias=True))) == count(deploy(MBConv(8, 16)))


def test_hr_parameters() -> None:
    # New second map: 3x3 from 4 to 8: 288 + 16. Units: 2 * (9 * 16 + 8) and 2 * (9 * 64 + 16).
    # Exchange: up 1x1 8 -> 4: 32 + 8; down 3x3 4 -> 8: 288 + 16.
    assert count(HighResolution(4, [4, 8], units=1)) == 304 + 304 + 1184 + 40 + 304
    # A third map of 8 adds: entry 9 * 64 + 16, unit 1184, up 8 -> 4 and 8 -> 8: 40 + 80,
    # down from the first in two steps 4 -> 4 -> 8: 152 + 304, from the second 592.
    more = count(HighResolution([4, 8], [4, 8, 8], units=1)) - count(HighResolution([4, 8], [4, 8], units=1))
    assert more == 592 + 1184 + 40 + 80 + 152 + 304 + 592


def test_mobilevit_parameters() -> None:
    # Near 9 * 16 + 8, in 4 * 8. Transformer of 8: norms 2 * 16, qkv 8 * 24 + 24, out 72, 8 * 16 + 16, 16 * 8 + 8.
    # Norm 16, out 8 * 4 + 8, fusion 9 * 8 * 4 + 8.
    assert count(MobileViT(4, 4, width=8, depth=1)) == 152 + 32 + 32 + 216 + 72 + 144 + 136 + 16 + 40 + 296


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "out_ch", "arguments", "said"),
    [
        (QARepVGG, 8, {"kernel": 4}, "kernel must be odd"),
        (QARepVGG, 8, {"pad": "tf_same"}, "pad tf_same"),
        (RepViT, 16, {}, "repvit_down"),
        (RepViT, 8, {"units": 0}, "units"),
        (RepViTClassifier, 8, {"heads": 0}, "heads"),
        (Vanilla, 8, {"series": 0}, "series"),
        (VanillaClassifier, 8, {"dropout": 1}, "dropout"),
        (Inception, 25, GOOGLENET, "8 \\+ 8 \\+ 4 \\+ 4 = 24"),
        (Inception, 24, {**GOOGLENET, "three": [4]}, "three"),
        (InceptionA, 224, {}, "out must be above"),
        (InceptionB, 480, {}, "384 \\+ 96 \\+ 8"),
        (InceptionC, 30, {}, "multiple of 4"),
        (CirInception, 16, {}, "multiple of 5"),
        (CirInception, 20, {"crop": -1}, "crop"),
        (MobileViT, 8, {"width": 10}, "heads"),
        (MobileViT, 8, {"width": 8, "patch": 0}, "patch"),
        (HighResolution, [8], {"units": 0}, "units"),
        (Bottleneck, 8, {"widen": 0}, "widen"),
        (Classifier, 8, {"hidden_dropout": 1.0}, "hidden_dropout"),
        (Activation, 9, {}, "out"),
        (Activation, 8, {"act": "rleu"}, "relu"),
    ],
)
def test_impossible_arguments_are_refused_by_their_name(
    make: Callable[..., nn.Module], out_ch: Any, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        make(8, out_ch, **arguments)


def test_hr_cannot_drop_a_map() -> None:
    with pytest.raises(ValueError, match="at least the input's 2 maps"):
        HighResolution([8, 8], [8])


# ---------------------------------------------------------------------------------------------- receptive field


@pytest.mark.parametrize("side", [8, 7])
def test_a_map_resized_for_attention_and_back_keeps_its_window(side: int) -> None:
    block = MobileViT(4, 4, width=8, depth=1).eval()
    (seen,) = sight.follow(ops.record(block, [torch.zeros(1, 4, side, side)]))
    # Along convolutions: 3x3, 3x3. Attention sees the rest.
    assert (seen.unknown, seen.is_global, seen.grid) == ("", True, (side, side))
    assert [w.extent(side // 2) for w in seen.windows[0]] == [5, 5]


def test_a_map_resized_without_attention_sees_what_interpolation_mixes() -> None:
    class Resized(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(F.interpolate(x, (8, 8), mode="bilinear"), (7, 7), mode="bilinear")

    (seen,) = sight.follow(ops.record(Resized(), [torch.zeros(1, 4, 7, 7)]))
    assert not seen.is_global and seen.windows[0][0].extent(3) == 3
    assert seen.windows[0][0].jump == 1


def test_every_map_of_hr_has_its_own_window() -> None:
    block = HighResolution([4, 6], [4, 6], units=1).eval()
    fine, coarse = sight.follow(ops.record(block, [torch.zeros(1, 4, 16, 16), torch.zeros(1, 6, 8, 8)], as_list=True))
    # Fine: its own two 3x3 on the fine input; the coarse unit above it sees 5 of the coarse input.
    assert [fine.windows[i][0].extent(8) for i in (0, 1)] == [5, 5]
    # Coarse: 5x5 of the coarse input; a strided 3x3 over units that see 5: 7 of the fine input.
    assert [coarse.windows[i][0].extent(4) for i in (0, 1)] == [7, 5]
    assert (fine.windows[1][0].jump, coarse.windows[0][0].jump) == (Fraction(1, 2), 2)
