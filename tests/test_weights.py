"""Weights from elsewhere: equal outputs or a loud no; what an edited spec keeps; files that are not what they seem."""

import dataclasses
import errno
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bblab import blocks, build, cli, weights
from bblab import spec as language
from bblab.errors import BblabError, RunError
from bblab.lab import Lab
from bblab.rooms import Rooms
from bblab.spec import ArchSpec
from bblab.weights import NoMatch, files, inheriting, matching, sources

KINDS = blocks.infos(Rooms(Path("/nonexistent")))

# A new net of the zoo is one line: spec, peer, the peer's epsilon where it is another.
PEERS: list[tuple[str, str, float | None]] = [
    ("alexnet", "torchvision:alexnet", None),
    ("efficientnet_b0", "timm:efficientnet_b0", None),
    ("googlenet", "torchvision:googlenet", None),
    ("hrnet_w18_small", "timm:hrnet_w18_small", None),
    ("mobilenetv2", "timm:mobilenetv2_100", None),
    ("mobilenetv2", "torchvision:mobilenet_v2", None),
    ("mobilenetv3_large", "timm:mobilenetv3_large_100", 1e-5),
    ("mobilenetv3_large", "torchvision:mobilenet_v3_large", None),
    ("mobilenetv3_small", "timm:mobilenetv3_small_100", 1e-5),
    ("mobilenetv3_small", "torchvision:mobilenet_v3_small", None),
    ("mobileone_s0", "timm:mobileone_s0", None),
    ("mobileone_s1", "timm:mobileone_s1", None),
    ("mobileone_s4", "timm:mobileone_s4", None),
    ("mobilevit_xxs", "timm:mobilevit_xxs", None),
    ("repvgg_a0", "timm:repvgg_a0", None),
    ("repvit_m0_9", "timm:repvit_m0_9", None),
    ("resnet18", "timm:resnet18", None),
    ("resnet18", "torchvision:resnet18", None),
    ("resnet50", "torchvision:resnet50", None),
    ("shufflenetv2_x0_5", "torchvision:shufflenet_v2_x0_5", None),
    ("shufflenetv2_x1_0", "torchvision:shufflenet_v2_x1_0", None),
]
FAST = {
    "timm:mobilenetv3_small_100", "torchvision:mobilenet_v3_small", "timm:repvgg_a0",
    "torchvision:shufflenet_v2_x1_0", "torchvision:resnet18",
}  # fmt: skip
MMPRETRAIN: list[tuple[str, str, float | None]] = [
    ("mobilenetv2", "mmpretrain:mobilenet-v2_8xb32_in1k", None),
    ("mobilenetv3_small", "mmpretrain:mobilenet-v3-small_8xb128_in1k", None),
    ("mobileone_s0", "mmpretrain:mobileone-s0_8xb32_in1k", None),
    ("repvgg_a0", "mmpretrain:repvgg-A0_8xb32_in1k", None),
    ("resnet18", "mmpretrain:resnet18_8xb32_in1k", None),
    ("shufflenetv2_x1_0", "mmpretrain:shufflenet-v2-1x_16xb64_in1k", None),
]

SMALL = """
name: small
input: [3, 64, 64]
stages:
  stem: {block: conv, out: 16, stride: 2}
  s4: {block: mobileone, out: 24, stride: 2, repeat: 3, branches: 2, se: {ratio: 0.25}}
  s8:
    - {block: shuffle_down, out: 48, stride: 2, shortcut: avgpool}
    - {block: shuffle, repeat: 2}
    - {block: mbconv, expand: 4}
  s16: {block: repvgg, out: 64, stride: 2, repeat: 2}
head: {block: classifier, out: 10}
"""


def small(*edits: str) -> ArchSpec:
    return language.parse(SMALL, KINDS, name="small", edits=edits)


def trained(spec: ArchSpec, *, deploy: bool = False, seed: int = 0) -> weights.Net:
    """A net whose norms have statistics, scales and shifts of their own, as training leaves them."""
    net = weights.net_of(spec, KINDS, seed=seed)
    with matching.running(net) as module:
        build.calibrate(module, spec, seed=seed, perturb=0.5)
    return dataclasses.replace(net, module=build.to_deploy(net.module, spec, KINDS).eval()) if deploy else net


def inherited(new: ArchSpec, old: ArchSpec, *, deploy: bool = False) -> inheriting.Inheritance:
    before = trained(old)
    given = trained(old, deploy=True) if deploy else before
    return inheriting.inherit(weights.net_of(new, KINDS, seed=5), given, before.module)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("BBLAB_LAB", str(tmp_path / "lab"))
    return Lab(tmp_path / "lab")


@pytest.fixture
def written(lab: Lab, tmp_path: Path) -> Path:
    """A file of the small spec."""
    spec = small()
    path = tmp_path / "small.safetensors"
    about = {"name": "small", "spec_id": spec.spec_id, "spec": spec.canonical}
    return weights.save(trained(spec).module, path, about)


# ---- other libraries' nets


def check_peer(lab: Lab, name: str, peer: str, eps: float | None) -> None:
    found = weights.bring(lab.spec(name), lab.kinds, peer, random=True)
    assert found.has_head
    if eps is None:
        assert found.verdict == "equal" and found.max_rel_diff is not None and found.max_rel_diff < 1e-12
        assert found.weights_rel_diff is not None and found.weights_rel_diff < 1e-12
    else:
        assert found.verdict == "equal_but_eps" and found.max_rel_diff is not None and found.max_rel_diff > 1e-4
        assert found.max_rel_diff_equal_eps is not None and found.max_rel_diff_equal_eps < 1e-12
        assert [there for _, there, _ in found.eps] == [eps]
    built = build.build(lab.spec(name), lab.kinds)
    assert weights.fill(built, found.state) == ()


@pytest.mark.parametrize(
    ("name", "peer", "eps"),
    [pytest.param(*p, marks=[] if p[1] in FAST else pytest.mark.slow, id=f"{p[0]}={p[1]}") for p in PEERS],
)
def test_a_peers_weights_give_equal_outputs(lab: Lab, name: str, peer: str, eps: float | None) -> None:
    pytest.importorskip(peer.partition(":")[0])
    check_peer(lab, name, peer, eps)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "peer", "eps"), MMPRETRAIN)
def test_mmpretrains_weights_give_equal_outputs(lab: Lab, name: str, peer: str, eps: float | None) -> None:
    """Runs where mmpretrain is installed (the extra `pretrain`), which a checkout's environment has."""
    pytest.importorskip("mmpretrain")
    check_peer(lab, name, peer, eps)


def test_a_cut_spec_takes_the_weights_before_the_cut(lab: Lab) -> None:
    pytest.importorskip("torchvision")
    found = weights.bring(lab.spec("mobilenetv3_small@s16"), lab.kinds, "torchvision:mobilenet_v3_small", random=True)
    assert found.verdict == "equal" and not found.has_head
    assert [here for here, _ in found.compared_at][-1] == "stage3"


def test_another_head_is_left_out_and_said(lab: Lab) -> None:
    pytest.importorskip("torchvision")
    spec = lab.spec("resnet18", ["head.out=10"])
    found = weights.bring(spec, lab.kinds, "torchvision:resnet18", random=True)
    assert found.verdict == "equal" and not found.has_head
    assert not [k for k in found.state if k.startswith("head.")]
    assert any("head" in note for note in found.notes)
    assert weights.fill(build.build(spec, lab.kinds), found.state) == ("head.last.weight", "head.last.bias")


def test_another_librarys_net_takes_weights_too(lab: Lab) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    spec = lab.spec("timm:resnet18@s16")
    found = lab.import_weights(spec, "torchvision:resnet18", random=True)
    assert found.verdict == "equal" and "net.conv1.weight" in found.state
    assert weights.fill(build.build(spec, lab.kinds), found.state) == ()
    again = lab.import_weights("resnet18", str(found.path))
    assert again.verdict == "equal"
    assert torch.equal(again.state["stages.stem.0.conv.weight"], found.state["net.conv1.weight"])


def test_layers_that_do_not_fit_are_listed_with_shapes_and_places(lab: Lab) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(NoMatch) as caught:
        weights.bring(lab.spec("resnet18", ["layer3.out=128"]), lab.kinds, "torchvision:resnet18", random=True)
    said = str(caught.value)
    assert "stages.layer3.0.main.0.conv: 3x3 128->128 stride 2" in said
    assert "layer3.0.conv1: 3x3 128->256 stride 2" in said
    assert "layer2" not in said
    assert {m.side for m in caught.value.misfits} == {"spec", "source"} and caught.value.exit_code == 1


def test_equal_layers_with_another_activation_are_no_match() -> None:
    with pytest.raises(NoMatch, match="outputs differ") as caught:
        weights.match(trained(small()), trained(small("s4.act=leaky_relu")))
    assert "first apart at stages.s4.0.point.convs.0.conv" in str(caught.value)
    assert "what stands before them: stages.s4.0.depth." in str(caught.value)


def test_another_padding_is_no_match_and_named() -> None:
    text = "stages: {a: [{block: conv, out: 8}, {block: conv, kernel: 5, stride: 2, pad: same}]}"
    one, two = language.parse(text, KINDS), language.parse(text.replace("same", "tf_same"), KINDS)
    with pytest.raises(NoMatch, match=r"first apart at stages\.a\.1\.conv .*: padding \[2, 2\] here, 0 there"):
        weights.match(trained(one), trained(two))


def test_maps_of_other_sizes_are_no_match() -> None:
    """ceil_mode keeps one more pixel: no map of theirs has our shape, and the convolutions behind the pool tell."""
    text = "stages: {a: [{block: conv, out: 8}, {block: maxpool, stride: 2}, {block: conv}]}"
    other = text.replace("maxpool,", "maxpool, ceil_mode: true,")
    with pytest.raises(NoMatch, match=r"first apart at stages\.a\.2\.conv"):
        weights.match(trained(language.parse(text, KINDS)), trained(language.parse(other, KINDS)))


class Reordered(nn.Module):
    """RepVGG's layer with other names, the branches made and run in another order, the identity norm first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.skip = nn.BatchNorm2d(channels)
        self.small = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.large = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.skip(x) + self.large(x) + self.small(x)).relu_()


def plain_net(module: nn.Module, spec: ArchSpec | None = None) -> weights.Net:
    return weights.Net("theirs", module.eval(), lambda m, x: type(m).forward(m, x), (3, 64, 64), spec=spec)


def test_names_and_branch_order_do_not_matter_and_the_identity_norm_finds_its_partner() -> None:
    text = "stages: {a: [{block: conv, out: 8, stride: 2}, {block: repvgg}, {block: repvgg}]}"
    stem = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    theirs = nn.Sequential(*stem, Reordered(8), Reordered(8))
    ours = weights.net_of(language.parse(text, KINDS), KINDS)
    found = weights.match(ours, plain_net(theirs))
    assert found.verdict == "equal" and found.max_rel_diff < 1e-12
    assert found.keys["stages.a.1.identity.weight"] == "3.skip.weight"
    assert found.keys["stages.a.2.scale.norm.running_var"] == "4.small.1.running_var"


def test_a_linear_layer_takes_a_1x1_convolutions_weights() -> None:
    text = "stages: {a: [{block: conv, out: 8, stride: 2}, {block: mbconv, se: {layers: %s}}]}"
    ours, theirs = (weights.net_of(language.parse(text % kind, KINDS), KINDS) for kind in ("conv", "linear"))
    found = weights.match(ours, theirs)
    assert found.verdict == "equal"
    assert found.take(theirs.module, ours.module)["stages.a.1.se.reduce.weight"].shape[2:] == (1, 1)


def test_equal_key_counts_are_no_match() -> None:
    """Two layers of equal shapes in another order: every key has a partner of its shape, the outputs differ."""
    one = language.parse("stages: {a: [{block: conv, out: 8}, {block: conv, kernel: 5}, {block: conv}]}", KINDS)
    two = language.parse("stages: {a: [{block: conv, out: 8}, {block: conv}, {block: conv, kernel: 5}]}", KINDS)
    assert sorted(sources.shapes(one, KINDS, "train").values()) == sorted(sources.shapes(two, KINDS, "train").values())
    with pytest.raises(NoMatch, match="5x5 8->8"):
        weights.match(trained(one), trained(two))


def test_without_a_network_the_remedy_is_one_line(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    real = torchvision.models.get_model
    monkeypatch.setattr(
        torchvision.models,
        "get_model",
        lambda name, weights=None, **more: refuse() if weights else real(name, weights=weights, **more),
    )
    with pytest.raises(RunError, match="could not be had: OSError: Name or service") as caught:
        weights.bring(lab.spec("resnet18"), lab.kinds, "torchvision:resnet18")
    assert "--random" in caught.value.hint and "--from FILE" in caught.value.hint


# ---- after an edit


def test_an_unedited_spec_inherits_everything_with_equal_output() -> None:
    found = inherited(small(), small())
    assert (found.params_inherited_ratio, found.macs_inherited_ratio, found.max_rel_diff) == (1, 1, 0)
    assert found.leftovers == ()


def test_a_kernel_grown_by_zeros_keeps_the_output_to_the_border() -> None:
    # `same` padding grows with the kernel, so the 5x5 window is the 3x3 one and a ring of zeros, at every pixel.
    found = inherited(small("s4.kernel=5"), small())
    assert found.max_rel_diff == 0 and found.leftovers == ()
    # Three depthwise layers of 16, 24, 24 channels and 2 branches: the ring is 25 - 9 = 16 numbers a channel.
    params = sum(p.numel() for p in weights.net_of(small("s4.kernel=5"), KINDS).module.parameters())
    assert found.params_set_ratio == pytest.approx(2 * 16 * (16 + 24 + 24) / params)
    assert found.params_inherited_ratio + found.params_set_ratio == pytest.approx(1)


def test_a_cropped_kernel_says_how_far_the_output_moved() -> None:
    found = inherited(small(), small("s4.kernel=5"))
    assert found.params_inherited_ratio == 1 and found.max_rel_diff is not None and 1e-3 < found.max_rel_diff < 2
    kernel = found.state["stages.s4.1.depth.convs.0.conv.weight"]
    before = trained(small("s4.kernel=5")).module.state_dict()["stages.s4.1.depth.convs.0.conv.weight"]
    assert torch.equal(kernel, before[:, :, 1:4, 1:4])


@pytest.mark.parametrize("edit", ["s4.out=32", "stem.out=24", "s8.2.expand=6", "s4.branches=4"])
def test_new_channels_and_branches_leave_the_old_ones_as_they_are(edit: str) -> None:
    plain = SMALL.replace("shuffle_down", "mbconv").replace(", shortcut: avgpool", "")
    plain = plain.replace("- {block: shuffle, repeat: 2}", "- {block: mbconv}")
    old, new = language.parse(plain, KINDS), language.parse(plain, KINDS, edits=[edit])
    found = inherited(new, old)
    assert found.max_rel_diff is not None and found.max_rel_diff < 1e-6
    assert 0.5 < found.params_inherited_ratio < 1 and found.leftovers


def test_channels_are_followed_through_concatenation_and_shuffling() -> None:
    """s8 is pooled input beside 24 new channels, interleaved: with 16 input channels the main branch begins at 16."""
    found = inherited(small("s4.out=16"), small("s8.0.shuffle=true"))
    old = trained(small()).module.state_dict()
    # The second half of the shuffled 48 channels is i = 12..23 of both groups. Old: pooled 12..23, main 12..23. New
    # (16 pooled, 32 main): group 0 has pooled 12..15, main 0..7; group 1 has main 20..31. Shared: pooled 12..15,
    # main 20..23; in the old net channel i of group g stands at 2 * (i - 12) + g.
    new_places, old_places = [0, 2, 4, 6, 1, 3, 5, 7], [0, 2, 4, 6, 17, 19, 21, 23]
    kernel, before = (s["stages.s8.1.main.0.conv.weight"] for s in (found.state, old))
    assert torch.equal(kernel[:, new_places], before[:, old_places])


def test_a_narrower_stage_keeps_the_first_channels_on_both_sides() -> None:
    text = "stages: {a: [{block: conv, out: 12}, {block: conv, out: 8}]}"
    old, new = language.parse(text, KINDS), language.parse(text.replace("12", "6"), KINDS)
    found = inherited(new, old)
    before = trained(old).module.state_dict()
    assert torch.equal(found.state["stages.a.0.conv.weight"], before["stages.a.0.conv.weight"][:6])
    assert torch.equal(found.state["stages.a.1.conv.weight"], before["stages.a.1.conv.weight"][:, :6])
    assert torch.equal(found.state["stages.a.0.norm.running_var"], before["stages.a.0.norm.running_var"][:6])
    assert found.params_inherited_ratio == 1


def test_more_rows_keep_the_old_ones_and_list_the_new_one() -> None:
    found = inherited(small("s4.repeat=4"), small())
    assert {item.name.rsplit(".", 1)[0].split(".")[2] for item in found.leftovers} == {"3"}
    assert inherited(small("s4.repeat=2"), small()).params_inherited_ratio == 1


def test_a_renamed_stage_is_found_by_its_place() -> None:
    renamed = language.parse(SMALL.replace("s8:", "middle:"), KINDS)
    found = inherited(renamed, small())
    assert found.params_inherited_ratio == 1 and found.max_rel_diff == 0


@pytest.mark.parametrize("edits", [[], ["s16.block=conv"], ["s4.kernel=5"]])
def test_a_fused_kernel_goes_into_one_branch_and_the_output_stays(edits: list[str]) -> None:
    found = inherited(small(*edits), small(), deploy=True)
    assert found.max_rel_diff is not None and found.max_rel_diff < 1e-6  # the norm's scale rounds in float32
    assert found.state["stages.s4.1.depth.convs.1.norm.weight"].abs().max() == 0
    assert found.state["stages.s4.1.depth.identity.weight"].abs().max() == 0
    assert found.state["stages.s4.1.depth.se.reduce.weight"].abs().max() > 0
    random = {item.name for item in found.leftovers}
    assert "stages.s4.0.depth.convs.0.conv.weight" not in random
    assert "stages.s4.0.depth.convs.1.conv.weight" in random


def test_fewer_branches_keep_the_sum_of_all() -> None:
    found = inherited(small("s4.branches=1"), small())
    assert found.max_rel_diff is not None and found.max_rel_diff < 1e-5


def test_a_file_of_another_net_is_told_apart_from_an_edit() -> None:
    with pytest.raises(NoMatch, match="nothing of"):
        inherited(language.parse("stages: {x: {block: dwsep, out: 8, stride: 4}}", KINDS), small())


# ---- files


def test_a_file_round_trips_with_its_spec(written: Path) -> None:
    state, metadata = weights.load(written)
    assert metadata["spec_id"] == small().spec_id and metadata["format"] == files.FORMAT
    assert sources.spec_from(metadata["spec"], "small", KINDS).spec_id == small().spec_id
    assert all(torch.equal(t, state[k]) for k, t in trained(small()).module.state_dict().items())
    found = weights.bring(small(), KINDS, str(written))
    assert found.verdict == "same_spec" and found.has_head


def test_a_file_of_another_spec_is_matched_by_structure(written: Path) -> None:
    other = language.parse(SMALL.replace("s8:", "middle:").replace("out: 10", "out: 7"), KINDS)
    found = weights.bring(other, KINDS, str(written))
    assert found.verdict == "equal" and not found.has_head
    assert "stages.middle.0.main.0.conv.weight" in found.state


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"model": {"module": s}, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
        lambda s: {"state_dict": {k: v * 0 for k, v in s.items()}, "state_dict_ema": s},
        lambda s: {"state_dict": {f"backbone.{k}": v for k, v in s.items()} | {"head.fc.weight": torch.zeros(3, 3)}},
    ],
)
def test_wrappers_and_prefixes_of_trainers_are_understood(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    state = trained(small()).module.state_dict()
    torch.save(wrap(dict(state)), tmp_path / "x.pth")
    found = weights.bring(small(), KINDS, str(tmp_path / "x.pth"))
    assert found.verdict == "same_spec"
    assert all(torch.equal(t, found.state[k]) for k, t in state.items())


def test_as_says_whose_keys_a_plain_file_has(lab: Lab, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    net = sources.peer("torchvision:resnet18", pretrained=False, seed=3).net.module
    torch.save({"model": net.half().state_dict()}, tmp_path / "r.pth")
    with pytest.raises(RunError, match="do not fit") as caught:
        lab.import_weights("resnet18", str(tmp_path / "r.pth"))
    assert "--as timm:NAME" in caught.value.hint
    found = lab.import_weights("resnet18", str(tmp_path / "r.pth"), keys_of="torchvision:resnet18")
    assert found.verdict == "equal" and any("float16" in note for note in found.notes)
    assert torch.equal(found.state["stages.stem.0.conv.weight"], net.conv1.weight.float())


def test_a_fused_file_needs_inherit(lab: Lab, tmp_path: Path) -> None:
    spec = small()
    torch.save(trained(spec, deploy=True).module.state_dict(), tmp_path / "fused.pth")
    with pytest.raises(BblabError, match="deploy form") as caught:
        lab.import_weights(spec, str(tmp_path / "fused.pth"))
    assert "--inherit" in caught.value.hint
    found = lab.import_weights(spec, str(tmp_path / "fused.pth"), inherit=True)
    assert found.verdict == "inherited" and found.max_rel_diff is not None and found.max_rel_diff < 1e-6


def test_a_file_without_a_head_leaves_the_head_out(lab: Lab, tmp_path: Path) -> None:
    (lab.folder / "arch_specs").mkdir(parents=True)
    (lab.folder / "arch_specs" / "small.yaml").write_text(SMALL, "utf-8")
    state = {k: v for k, v in trained(small()).module.state_dict().items() if not k.startswith("head.")}
    torch.save(state, tmp_path / "backbone.pth")
    found = lab.import_weights(small(), str(tmp_path / "backbone.pth"))
    assert not found.has_head and found.state.keys() == state.keys()
    edited = lab.import_weights(small("s4.kernel=5"), str(tmp_path / "backbone.pth"), keys_of="small", inherit=True)
    assert not edited.has_head and {"head.last.weight", "head.last.bias"} == {item.name for item in edited.leftovers}
    without = language.parse(SMALL.replace("head: {block: classifier, out: 10}", ""), KINDS)
    assert lab.import_weights(without, str(found.path)).verdict == "equal"


class Foreign:
    """Something that only a pickle could bring back."""


def broken(kind: str, folder: Path) -> Path:
    state = dict(trained(small()).module.state_dict())
    path = folder / f"{kind}.pth"
    key = "stages.stem.0.conv.weight"
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("<html>Not Found</html>")
    elif kind in ("cut safetensors", "cut checkpoint"):
        whole = folder / "whole"
        weights.save(state, whole, {}) if "safe" in kind else torch.save(state, whole)
        path.write_bytes(whole.read_bytes()[:5000])
    elif kind == "pickle":
        torch.save({"state_dict": state, "made by": Foreign()}, path)
    elif kind == "no tensors":
        torch.save({"epoch": 3}, path)
    elif kind == "shape":
        torch.save({**state, key: torch.zeros(16, 3, 5, 5)}, path)
    elif kind == "absent":
        torch.save({k: v for k, v in state.items() if k != key}, path)
    elif kind == "nan":
        torch.save({**state, key: state[key] * float("nan")}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "no file"),
        ("folder", "is a folder"),
        ("empty", "is empty"),
        ("text", "neither a safetensors file nor a torch checkpoint"),
        ("cut safetensors", "no whole safetensors file"),
        ("cut checkpoint", "no whole torch checkpoint"),
        ("pickle", "is refused"),
        ("no tensors", "holds no weights"),
        ("shape", "16x3x3x3 here, 16x3x5x5 in the file"),
        ("absent", "stages.stem.0.conv.weight 16x3x3x3: not in the file"),
        ("nan", "not finite: stages.stem.0.conv.weight"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_a_remedy(lab: Lab, tmp_path: Path, kind: str, said: str) -> None:
    with pytest.raises(BblabError) as caught:
        lab.import_weights(small(), str(broken(kind, tmp_path)))
    assert said in caught.value.message and caught.value.hint
    assert not (lab.folder / "weights").exists()


def test_a_plain_pickle_is_refused_without_torchs_own_warning(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    path.write_bytes(pickle.dumps({"state_dict": Foreign()}))  # protocol 4: torch.load warns of it before it refuses
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BblabError, match="is refused"):
            lab.import_weights(small(), str(path))


def test_nothing_half_written_is_left(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, metadata = weights.load(written)
    target = tmp_path / "full" / "x.safetensors"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left") as caught:
        weights.save(state, target, metadata)
    assert "make room" in caught.value.hint and list(target.parent.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        weights.save(state, tmp_path / "file" / "x.safetensors", metadata)
    other = {**state, "stages.stem.0.conv.weight": state["stages.stem.0.conv.weight"] + 1}
    with pytest.raises(BblabError, match="exists already"):
        weights.save(other, written, metadata)
    assert weights.save(state, written, metadata) == written


def test_a_spec_inside_a_hostile_file_is_refused(tmp_path: Path) -> None:
    state = trained(small()).module.state_dict()
    for text in (
        "{}",
        "[" * 2000,
        small().canonical.replace('"conv"', '"evil"'),
        small().canonical.replace("64", "9e9"),
    ):
        path = weights.save(state, tmp_path / f"{abs(hash(text))}.safetensors", {"spec": text, "name": "x"})
        with pytest.raises(BblabError):
            weights.bring(small(), KINDS, str(path))


# ---- the command


def test_the_command_writes_a_file_a_row_and_json(written: Path, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    spec = lab.folder.parent / "wider.yaml"
    spec.write_text(SMALL.replace("name: small", "name: wider").replace("expand: 4", "expand: 6"), "utf-8")
    assert cli.main(["import", str(spec), "--from", str(written), "--inherit", "--json", "-"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["verdict"] == "inherited" and 0.8 < row["params_inherited_ratio"] < 1 and row["random"]
    path = Path(row["path"])
    assert path.parent == lab.folder / "weights" and path.name == f"wider-{row['content_sha256'][:8]}.safetensors"
    with lab.notebook(read_only=True) as store:
        run = store.get(row["run_id"])
    assert run.kind == "import" and run.inputs["source_sha256"] == row["source_sha256"]
    assert cli.main(["import", str(spec), "--from", str(path)]) == 0
    assert "loaded by name" in capsys.readouterr().out
    misfit = lab.folder.parent / "misfit.json"
    assert cli.main(["import", str(spec), "--from", str(written), "--json", str(misfit)]) == 1
    assert json.loads(misfit.read_text())["misfits"][0]["place"] == "stages.s8.3.expand.conv"
    assert cli.main(["import", str(spec), "--from", "timm:resnet18", "--inherit"]) == 2
    assert cli.main(["import", str(spec), "--from", str(written), "--random"]) == 2
    assert len(list((lab.folder / "weights").iterdir())) == 1


def test_help_does_not_load_torch() -> None:
    code = "import sys; from bblab.cli import main; main(['import', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 0
