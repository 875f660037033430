"""The tracker card against numbers read in the trainers' code and measured on their own nets."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from bblab.analysis.geometry import Geometry
from bblab.lab import Lab

PYSOT = """
name: pysot_like
about: pysot's dilated ResNet-50, stride 8 (STVIR/pysot d04028f, models/backbone/resnet_atrous.py)
tracker: {template: 127, search: 255, for: pysot}
defaults: {pad: same_unless_strided}
define: {unit: {block: bottleneck, projection: {kernel: 3}}}
stages:
  stem:
    - {block: conv, out: 64, kernel: 7, stride: 2}
    - {block: maxpool, kernel: 3, stride: 2, pad: 1}
  layer1: {block: bottleneck, out: 256, repeat: 3}
  layer2: {block: unit, out: 512, stride: 2, repeat: 4}
  layer3:
    - {block: unit, out: 1024}
    - {block: unit, out: 1024, dilation: 2, repeat: 5}
  layer4:
    - {block: unit, out: 2048, dilation: 2}
    - {block: unit, out: 2048, dilation: 4, repeat: 2}
taps: [layer2, layer3, layer4]
"""
# SiamFC's AlexNet without a pad: 11 s2, pool 3 s2, 5, pool 3 s2, 3, 3, 3.
ALEXNET = """
name: alexnet_like
tracker: {template: 127, search: 255}
defaults: {pad: valid}
stages:
  c1: [{block: conv, out: 96, kernel: 11, stride: 2}, {block: maxpool, stride: 2}]
  c2: [{block: conv, out: 256, kernel: 5, groups: 2}, {block: maxpool, stride: 2}]
  c3: {block: conv, out: 384}
  c4: {block: conv, out: 384, groups: 2}
  c5: {block: conv, out: 256, groups: 2, norm: false, act: none}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


def card(lab: Lab, what: str, tmp_path: Path, *edits: str) -> Geometry:
    if "\n" in what:
        path = tmp_path / "net.yaml"
        path.write_text(what)
        what = str(path)
    found = lab.check(what, edits).geometry
    assert found is not None
    return found


def test_pysots_own_net_fits_pysot(lab: Lab, tmp_path: Path) -> None:
    g = card(lab, PYSOT, tmp_path)
    # 127 -> 61 -> 31 -> 15 and 255 -> 125 -> 63 -> 31, three taps of one size
    assert [(t.channels, t.height, t.width, t.stride) for t in g.template.taps] == [
        (512, 15, 15, 8), (1024, 15, 15, 8), (2048, 15, 15, 8)]  # fmt: skip
    assert g.search.map == (2048, 31, 31)
    assert g.trainer is not None and (g.trainer.fits, g.trainer.problems) == (True, ())
    # the neck crops 15 to 7, a 3x3 without padding makes 5 on 29: 25 = (255 - 127) / 8 + 1 + 8
    assert g.trainer.keys == {
        "STRIDE": 8, "OUTPUT_SIZE": 25, "BASE_SIZE": 8, "EXEMPLAR_SIZE": 127, "SEARCH_SIZE": 255,
        "channels": [512, 1024, 2048]}  # fmt: skip
    assert (g.search.last.receptive_field, round(g.rf_over_template or 0, 2)) == (427, 3.36)
    assert g.search.last.offset_px == g.template.last.offset_px == 0  # odd maps have a unit at the centre
    assert g.is_padded  # the 3x3 convolutions at stride 1 are
    # counted on that repository: 10,445,646,528 and 44,578,687,680 MACs, 45,528,128 parameters
    assert (g.template.macs_backbone_train, g.search.macs_backbone_train) == (10445646528, 44578687680)


def test_the_same_net_padded_everywhere_does_not_fit_and_says_why(lab: Lab, tmp_path: Path) -> None:
    g = card(lab, PYSOT, tmp_path, "defaults.pad=same")
    assert (g.template.last.height, g.search.last.height) == (16, 32)
    assert g.trainer is not None and not g.trainer.fits
    (said,) = g.trainer.problems
    assert "26x26" in said and "25" in said
    assert "same_unless_strided" in said
    assert g.trainer.keys["OUTPUT_SIZE"] == 26


def test_nanotrack_fits_nanotrack_and_not_pysot(lab: Lab, tmp_path: Path) -> None:
    g = card(lab, "nanotrack", tmp_path)
    assert (g.template.map, g.search.map) == ((48, 8, 8), (48, 16, 16))
    assert g.trainer is not None and g.trainer.fits
    assert (g.trainer.keys["STRIDE"], g.trainer.keys["OUTPUT_SIZE"], g.trainer.keys["channels"]) == (16, 16, 48)
    assert g.trainer.notes == ()  # its head V2 is written for 48 channels
    assert g.pixelwise_channels == 64
    assert (g.search.last.receptive_field, round(g.rf_over_template or 0, 2)) == (319, 2.51)
    other = card(lab, "nanotrack", tmp_path, "tracker.for=pysot")
    assert other.trainer is not None and not other.trainer.fits
    assert "stride 16" in other.trainer.problems[0] and "8" in other.trainer.problems[0]


def test_nanotracks_sizes_need_its_padding(lab: Lab, tmp_path: Path) -> None:
    g = card(lab, "nanotrack", tmp_path, "defaults.pad=same_unless_strided")
    # 127 -> 63 -> 31 -> 15 -> 6: kernel 5 at the last step
    assert g.template.last.height == 6
    assert g.trainer is not None and not g.trainer.fits
    assert "8x8" in g.trainer.problems[0] and "pad: same" in g.trainer.problems[0]


def test_other_widths_are_told_which_head_takes_them(lab: Lab, tmp_path: Path) -> None:
    g = card(lab, "nanotrack", tmp_path, "stage3.2.out=96", "stage3.3.out=96")
    assert g.trainer is not None and g.trainer.fits
    assert "V1 or V3" in g.trainer.notes[0]


def test_an_unpadded_alexnet(lab: Lab, tmp_path: Path) -> None:
    g = card(lab, ALEXNET, tmp_path)
    assert (g.template.map, g.search.map, g.xcorr_map) == ((256, 6, 6), (256, 22, 22), (17, 17))
    assert (g.search.last.receptive_field, round(g.rf_over_template or 0, 2)) == (87, 0.69)
    assert not g.is_padded
    assert (g.search.last.padded_units, g.template.last.padded_units) == (0, 0)
    assert g.search.last.stride == 8
    # 6 units cover 87 + 5 * 8 = 127 px: centred without a middle unit
    assert g.template.last.offset_px == 0


def test_siamdws_crops_leave_no_padded_unit(lab: Lab, tmp_path: Path) -> None:
    g = card(lab, "ciresnet22", tmp_path)
    assert (g.template.map, g.search.map, g.xcorr_map) == ((512, 5, 5), (512, 21, 21), (17, 17))
    assert (g.search.last.receptive_field, round(g.rf_over_template or 0, 2)) == (93, 0.73)
    assert not g.is_padded


@pytest.mark.parametrize("name", ["lighttrack_mobile", "repvgg_a0@s16", "mobileone_k5"])
def test_stride_16_nets_give_8_and_16(name: str, lab: Lab, tmp_path: Path) -> None:
    g = card(lab, name, tmp_path)
    assert (g.template.last.height, g.search.last.height) == (8, 16)
    assert g.is_assumed == ("@" in name)


def test_stark_lightnings_receptive_field(lab: Lab, tmp_path: Path) -> None:
    text = """
name: stark_like
tracker: {template: 128, search: 320}
stages:
  s2: {block: repvgg, out: 48, stride: 2}
  s4: {block: repvgg, out: 48, stride: 2, repeat: 2}
  s8: {block: repvgg, out: 96, stride: 2, repeat: 4}
  s16: {block: repvgg, out: 192, stride: 2, repeat: 4}
"""
    g = card(lab, text, tmp_path)
    assert (g.template.map, g.search.map) == ((192, 8, 8), (192, 20, 20))
    assert (g.search.last.receptive_field, round(g.rf_over_template or 0, 2)) == (183, 1.43)


@pytest.mark.parametrize(
    ("size", "maps"),
    [
        (127, (64, 32, 16, 8)),
        (128, (64, 32, 16, 8)),
        (255, (128, 64, 32, 16)),
        (256, (128, 64, 32, 16)),
        (288, (144, 72, 36, 18)),
        (320, (160, 80, 40, 20)),
    ],
)
def test_padded_stride_two_halves_upwards(size: int, maps: tuple[int, ...], lab: Lab) -> None:
    cost = lab.analyst.cost(lab.spec("mobileone_s0"), "deploy", (size, size))
    assert tuple(m.height for m in cost.maps[:4]) == maps


@pytest.mark.parametrize(("size", "maps"), [(127, (63, 31, 15, 7)), (255, (127, 63, 31, 15))])
def test_unpadded_stride_two_stays_odd(size: int, maps: tuple[int, ...], lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    rows = ", ".join(f"s{i}: {{block: conv, out: 8, stride: 2, pad: 0}}" for i in range(4))
    path.write_text(f"name: t\nstages: {{{rows}}}\n")
    cost = lab.analyst.cost(lab.spec(str(path)), "deploy", (size, size))
    assert tuple(m.height for m in cost.maps) == maps


def test_an_even_map_of_a_padded_net_on_an_odd_image_is_centred_between_units(lab: Lab, tmp_path: Path) -> None:
    """127 -> 8 with 3x3 stride 2 padded by 1: unit i looks at pixel 16 i, units 3 and 4 at 48 and 64: no unit is at
    the image's centre 63, and the map's own centre is 7 px before it."""
    g = card(lab, "repvgg_a0@s16", tmp_path)
    assert g.template.last.offset_px == (3.5 * 16) - 63 == -7
    assert g.search.last.offset_px == (7.5 * 16) - 127 == -7


def test_the_card_as_json_holds_the_promised_keys(lab: Lab, tmp_path: Path) -> None:
    told: Mapping[str, object] = card(lab, "nanotrack", tmp_path).to_json()
    assert {"template", "search", "xcorr_map", "rf_over_template", "offset"} <= told.keys()
    assert told["xcorr_map"] == [9, 9]  # 16 - 8 + 1
    assert told["rf_over_template"] == round(319 / 127, 4)
