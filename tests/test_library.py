"""Other libraries' nets as peers: analysed whole, cut after a stage's end, fused; clear words for what cannot be."""

from collections.abc import Mapping
from dataclasses import replace
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


# Parameters up to the last map, MACs at 224 px, the maps' strides. vit_tiny: 5,717,416 less the classifier's 193,000.
TOKENS = {
    "timm:vit_tiny_patch16_224@s16": (5_524_416, [16]),
    "timm:deit_tiny_distilled_patch16_224": (5_910_800 - 2 * 193_000, [16]),  # two classifiers behind two tokens
    "timm:mixer_s16_224": (18_528_264 - 513_000, [16]),
    "timm:swin_tiny_patch4_window7_224": (28_288_354 - 769_000, [4, 8, 16, 32]),
    "torchvision:swin_t": (28_288_354 - 769_000, [4, 8, 16, 32]),
    "timm:convit_tiny": (5_710_512 - 193_000, [16]),
}


@pytest.mark.parametrize("name", TOKENS)
def test_a_net_of_tokens_is_cut_at_its_end_and_counted_as_torch_counts(name: str, analyst: Analyst) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    params, strides = TOKENS[name]
    one = spec.resolve(name, ROOMS, analyst.kinds)
    cost = analyst.cost(one, "train")
    assert (cost.params_backbone, cost.uncounted) == (params, ())
    last = cost.maps[-1]
    assert [224 // m.height for m in cost.maps] == strides
    cut = build.Library(one, device="meta").eval()
    x = torch.zeros(1, 3, 224, 224, device="meta")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        (out,) = cut(x)
    assert out.shape == (1, last.channels, last.height, last.width)
    assert cost.macs_backbone * 2 == counter.get_total_flops()
    # attention sees all, or what it sees is not known; never a plain window
    assert last.is_global or (cost.unknown and last.receptive_field is None)


def test_vit_tiny_has_its_published_figures(analyst: Analyst) -> None:
    # arXiv:2106.10270 and timm's table: 5.7 M parameters, 1.3 GMACs at 224 px
    cost = analyst.cost(spec.resolve("timm:vit_tiny_patch16_224", ROOMS, analyst.kinds), "train")
    # per block and token 192 x (3 + 1 + 4 + 4) x 192; 12 blocks of 197 tokens, scores and sums of 197 x 197 x 192
    blocks_macs = 12 * (197 * 12 * 192 * 192 + 2 * 197 * 197 * 192)
    assert cost.macs == blocks_macs + 196 * 192 * 768 + 192 * 1000
    assert cost.params == 5_717_416


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224@s16", "timm:swin_tiny_patch4_window7_224@s16"])
def test_nets_that_take_an_image_size_run_at_a_trackers(name: str, analyst: Analyst) -> None:
    one = spec.resolve(name, ROOMS, analyst.kinds)
    cost = analyst.cost(one, "deploy", (127, 127))
    module = build.build(replace(one, input=(3, 127, 127)), analyst.kinds)
    (out,) = module(torch.zeros(1, 3, 127, 127))
    assert out.shape[1:] == (cost.taps[-1].channels, cost.taps[-1].height, cost.taps[-1].width)
    assert cost.taps[-1].height == (7 if "vit" in name else 8)  # swin merges an odd map with a row of zeros


def test_the_tokens_of_a_map_come_back_in_their_places() -> None:
    tokens = torch.arange(1 + 6.0).reshape(1, 7, 1)
    grid = library.Grid("tokens", 2, 3, prefix=1)
    assert library.as_map(tokens, grid).tolist() == [[[[1, 2, 3], [4, 5, 6]]]]
    last = torch.arange(6.0).reshape(1, 2, 3, 1)
    assert library.as_map(last, library.Grid("last", 2, 3)).tolist() == [[[[0, 1, 2], [3, 4, 5]]]]


def test_a_tag_chooses_weights_and_leaves_the_net(analyst: Analyst) -> None:
    tagged = spec.resolve("timm:mobilenetv3_small_100.lamb_in1k@s16", ROOMS, analyst.kinds)
    assert (tagged.library, tagged.cut) == ("timm:mobilenetv3_small_100.lamb_in1k", "s16")
    plain = spec.resolve("timm:mobilenetv3_small_100@s16", ROOMS, analyst.kinds)
    assert analyst.cost(tagged, "train") == analyst.cost(plain, "train")


def test_an_unknown_tag_lists_the_nets_tags(analyst: Analyst) -> None:
    with pytest.raises(BblabError) as caught:
        analyst.cost(spec.resolve("timm:mobilenetv3_small_100.lamb", ROOMS, analyst.kinds), "train")
    assert "no weights 'lamb' of mobilenetv3_small_100" in caught.value.message
    assert "lamb_in1k" in caught.value.hint


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
    with pytest.raises(BblabError, match="does not run at 127x127") as caught:
        analyst.cost(spec.resolve("timm:levit_128s", ROOMS, analyst.kinds), "train", (127, 127))
    assert "fixed image size" in caught.value.hint
    with pytest.raises(BblabError, match="cannot be built at 127x127: AssertionError: Input shape indivisible"):
        analyst.cost(spec.resolve("torchvision:vit_b_16", ROOMS, analyst.kinds), "train", (127, 127))


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
