"""Other libraries' nets as peers: analysed whole, cut after a stage's end, fused; clear words for what cannot be."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from bblab import blocks, build, library, spec
from bblab.analysis.net import Analyst
from bblab.errors import BblabError
from bblab.installing import how_to_install
from bblab.rooms import Rooms
from bblab.spec import BlockInfo

pytest.importorskip("timm")
pytest.importorskip("torchvision")

ROOMS = Rooms(Path("nowhere"))


@pytest.fixture(scope="module")
def kinds() -> Mapping[str, BlockInfo]:
    return blocks.infos(ROOMS)


@pytest.fixture(scope="module")
def analyst(kinds: Mapping[str, BlockInfo]) -> Analyst:
    return Analyst(kinds)


# Counts of the whole nets as their own libraries have them: parameters and MACs (torch's counter, halved), 224 px.
WHOLE = {
    "timm:repvgg_a0": ("train", 9108968, 1512581120),
    "timm:mobilenetv3_small_100": ("train", 2542856, 56510400),
    "torchvision:resnet18": ("train", 11689512, 1814073344),
    "torchvision:shufflenet_v2_x1_0": ("train", 2278604, 144907992),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_nets_equal_the_built_in_specs_of_the_same_net(name: str, analyst: Analyst) -> None:
    form, params, macs = WHOLE[name]
    cost = analyst.cost(spec.resolve(name, ROOMS, analyst.kinds), form)  # type: ignore[arg-type]
    assert (cost.params, cost.macs, cost.uncounted) == (params, macs, ())


# (channels, side at 224 px, stride, receptive field) at the cut
CUTS = {
    "timm:repvgg_a0": (1280, 7, 32, 535),
    "timm:repvgg_a0@s16": (192, 14, 16, 503),  # 535 less the last unit's 2 * 16
    "timm:mobilenetv3_small_100@s16": (48, 14, 16, 319),  # NanoTrack's backbone ends here too
    "torchvision:resnet18@s8": (128, 28, 8, 99),
    "timm:starnet_s1@s16": None,
}


@pytest.mark.parametrize("name", CUTS)
def test_cuts_end_with_their_stage(name: str, analyst: Analyst) -> None:
    one = spec.resolve(name, ROOMS, analyst.kinds)
    train, deploy = analyst.cost(one, "train"), analyst.cost(one, "deploy")
    last = train.taps[-1]
    if CUTS[name] is not None:
        assert (last.channels, last.height, last.stride, last.receptive_field) == CUTS[name]
    assert (train.uncounted, train.unknown) == ((), "")
    assert deploy.params < train.params
    assert deploy.taps[-1].receptive_field == last.receptive_field
    module = build.build(one, analyst.kinds)
    (out,) = module(torch.zeros(1, 3, 64, 64))
    assert out.shape[1] == last.channels
    assert out.shape[2] * (last.stride or 0) == 64


def test_a_cut_costs_less_than_the_whole_and_as_much_as_the_same_spec(analyst: Analyst) -> None:
    foreign = analyst.cost(spec.resolve("torchvision:resnet18@s16", ROOMS, analyst.kinds), "train")
    own = analyst.cost(spec.resolve("resnet18@s16", ROOMS, analyst.kinds), "train")
    assert (foreign.params, foreign.macs, foreign.sum("elementwise_ops"), foreign.peak_activation_bytes) == (
        own.params, own.macs, own.sum("elementwise_ops"), own.peak_activation_bytes)  # fmt: skip
    assert sum(m.macs for m in foreign.maps) == foreign.macs
    assert foreign.taps[-1].window_h == own.taps[-1].window_h


def test_the_maps_of_a_foreign_net_have_the_receptive_fields_of_the_same_spec(analyst: Analyst) -> None:
    foreign = analyst.cost(spec.resolve("timm:mobilenetv3_small_100", ROOMS, analyst.kinds), "deploy")
    own = analyst.cost(spec.resolve("mobilenetv3_small", ROOMS, analyst.kinds), "deploy")
    theirs = {m.stride: m.receptive_field for m in foreign.maps}
    ours = {m.stride: m.receptive_field for m in own.maps}  # the last at each stride
    assert theirs == ours


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_100@s16", "torchvision:resnet18@s8"])
def test_the_forms_of_foreign_nets_agree(name: str, kinds: Mapping[str, BlockInfo]) -> None:
    assert build.deploy_difference(spec.resolve(name, ROOMS, kinds), kinds) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:repvgg_a0", "timm:starnet_s1@s16", "timm:mobileone_s0", "timm:repvit_m0_9@s16"])
def test_the_forms_of_more_foreign_nets_agree(name: str, kinds: Mapping[str, BlockInfo]) -> None:
    assert build.deploy_difference(spec.resolve(name, ROOMS, kinds), kinds) < 1e-5


def test_a_net_that_hands_on_its_image_is_not_cut_there(analyst: Analyst) -> None:
    """timm's EfficientViT has an identity at the input: a map at stride 1 that costs nothing is no stage."""
    cost = analyst.cost(spec.resolve("timm:efficientvit_b0", ROOMS, analyst.kinds), "train")
    assert [m.stage for m in cost.maps] == ["s2", "s4", "s8", "s16", "s32"]


def test_maps_with_the_channels_last_are_no_cuts(kinds: Mapping[str, BlockInfo]) -> None:
    """Swin hands on B, H, W, C after its patches: only the patch embedding is a map that a tracker could take."""
    one = spec.resolve("timm:swin_tiny_patch4_window7_224", ROOMS, kinds)
    assert [p.stride for p in library.stage_points(library.graph_of(one))] == [4]


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:mobilenetv3_smal_100", "mobilenetv3_small_100"),
        ("torchvision:resnet19", "resnet18"),
        ("timm:resnet18@s12", "s8"),
        ("timm:resnet18@layer3", "s16"),
        ("torchvision:resnet18@s64", "s32"),
    ],
)
def test_an_unknown_net_or_cut_is_told_with_the_choice(name: str, said: str, analyst: Analyst) -> None:
    with pytest.raises(BblabError) as caught:
        analyst.cost(spec.resolve(name, ROOMS, analyst.kinds), "train")
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_net_of_one_size_says_so(analyst: Analyst) -> None:
    one = spec.resolve("timm:vit_tiny_patch16_224", ROOMS, analyst.kinds)
    with pytest.raises(BblabError, match="does not run at 127x127") as caught:
        analyst.cost(one, "train", (127, 127))
    assert "fixed image size" in caught.value.hint


def test_an_error_without_words_is_still_named(analyst: Analyst) -> None:
    one = spec.resolve("timm:halonet26t", ROOMS, analyst.kinds)
    with pytest.raises(BblabError) as caught:
        analyst.cost(one, "train", (127, 127))
    assert "AssertionError: AssertionError" not in caught.value.message


def test_a_missing_library_gets_the_command_of_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BblabError) as caught:
        library.make_net("timm:resnet18")
    assert caught.value.hint == how_to_install("timm")
