"""Building a net, fusing it, and the difference between the forms: small where the fold is right, large where not."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bblab import blockkit, blocks, build, spec
from bblab.errors import BblabError, RunError
from bblab.rooms import Rooms
from bblab.spec import ArchSpec, BlockInfo

ROOMS = Rooms(Path("nowhere"))


@pytest.fixture(scope="module")
def kinds() -> Mapping[str, BlockInfo]:
    return blocks.infos(ROOMS)


def drawn(kinds: Mapping[str, BlockInfo], stages: str, head: str = "") -> ArchSpec:
    return spec.parse(f"name: t\n{head}\nstages: {stages}\n", kinds)


SMALL = """{stem: {block: mobileone_dense, out: 16, stride: 2, branches: 2},
  a: [{block: mobileone, out: 24, stride: 2, branches: 3, kernel: 5}, {block: mobileone, se: {ratio: 0.25}}],
  b: [{block: repvgg, out: 32, stride: 2}, {block: repvgg}]}"""


@pytest.mark.parametrize("name", ["mobileone_k5_se@s4", "mobileone_shuffle@s8", "nanotrack", "repvgg_a0@s4"])
def test_the_forms_of_built_in_specs_agree(name: str, kinds: Mapping[str, BlockInfo]) -> None:
    assert build.deploy_difference(spec.resolve(name, ROOMS, kinds), kinds) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ROOMS.files("arch_specs", ".yaml")))
def test_the_forms_of_every_built_in_spec_agree(name: str, kinds: Mapping[str, BlockInfo]) -> None:
    assert build.deploy_difference(spec.resolve(name, ROOMS, kinds), kinds) < 1e-5


# ---------------------------------------------------------------------------------------------- planted mistakes


def test_a_fold_with_another_epsilon_is_caught(monkeypatch: pytest.MonkeyPatch, kinds: Mapping[str, BlockInfo]) -> None:
    right = blockkit.affine

    def wrong(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        keep, norm.eps = norm.eps, norm.eps * 100
        try:
            return right(norm)
        finally:
            norm.eps = keep

    assert build.deploy_difference(drawn(kinds, SMALL), kinds) < 1e-5
    monkeypatch.setattr(blockkit, "affine", wrong)
    assert build.deploy_difference(drawn(kinds, SMALL), kinds) > 1e-4


@pytest.mark.parametrize("branch", ["identity", "scale"])
def test_a_dropped_branch_is_caught(
    branch: str, monkeypatch: pytest.MonkeyPatch, kinds: Mapping[str, BlockInfo]
) -> None:
    right = blockkit.RepConv.deploy

    def wrong(self: blockkit.RepConv) -> nn.Module:
        setattr(self, branch, None)
        return right(self)

    monkeypatch.setattr(blockkit.RepConv, "deploy", wrong)
    assert build.deploy_difference(drawn(kinds, SMALL), kinds) > 1e-3


def test_a_forgotten_shift_or_mean_is_caught(monkeypatch: pytest.MonkeyPatch, kinds: Mapping[str, BlockInfo]) -> None:
    right = blockkit.affine
    monkeypatch.setattr(blockkit, "affine", lambda norm: (right(norm)[0], norm.bias.detach().double()))
    assert build.deploy_difference(drawn(kinds, SMALL), kinds) > 1e-3


def test_a_forgotten_gain_is_caught(monkeypatch: pytest.MonkeyPatch, kinds: Mapping[str, BlockInfo]) -> None:
    """A fresh norm's gain is 1: only a perturbed one tells."""

    def wrong(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        return scale, norm.bias.detach().double() - norm.running_mean.double() * scale

    monkeypatch.setattr(blockkit, "affine", wrong)
    assert build.deploy_difference(drawn(kinds, SMALL), kinds) > 1e-3


def test_a_kernel_padded_off_its_centre_is_caught(
    monkeypatch: pytest.MonkeyPatch, kinds: Mapping[str, BlockInfo]
) -> None:
    def wrong(kernel: Tensor, size: int) -> Tensor:
        extra = size - kernel.shape[2]
        return nn.functional.pad(kernel, [0, extra, 0, extra])

    monkeypatch.setattr(blockkit, "grow_kernel", wrong)
    assert build.deploy_difference(drawn(kinds, SMALL), kinds) > 1e-3


def test_a_wrong_padding_is_caught(monkeypatch: pytest.MonkeyPatch, kinds: Mapping[str, BlockInfo]) -> None:
    """The same map, moved by a pixel: only its values tell."""
    right = blockkit.RepConv.deploy

    def wrong(self: blockkit.RepConv) -> nn.Module:
        fused = right(self)
        conv = fused.conv
        assert isinstance(conv, nn.Conv2d) and isinstance(conv.padding, tuple)
        ph, pw = conv.padding
        conv.padding = (0, 0)
        return nn.Sequential(nn.ZeroPad2d((pw + min(pw, 1), pw - min(pw, 1), ph, ph)), fused)

    monkeypatch.setattr(blockkit.RepConv, "deploy", wrong)
    assert build.deploy_difference(drawn(kinds, SMALL), kinds) > 1e-3


def test_an_output_that_is_not_finite_is_no_agreement(
    monkeypatch: pytest.MonkeyPatch, kinds: Mapping[str, BlockInfo]
) -> None:
    right = blockkit.affine
    monkeypatch.setattr(blockkit, "affine", lambda norm: tuple(t * float("nan") for t in right(norm)))
    with pytest.raises(RunError, match="not finite"):
        build.deploy_difference(drawn(kinds, SMALL), kinds)


# ---------------------------------------------------------------------------------------------- building


def test_the_same_seed_gives_the_same_net_and_leaves_torchs_generator_alone(kinds: Mapping[str, BlockInfo]) -> None:
    one = drawn(kinds, SMALL)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, other = (build.build(one, kinds, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), other.parameters(), strict=True))


def test_a_backbone_gives_one_map_a_tap_and_stops_at_the_last(kinds: Mapping[str, BlockInfo]) -> None:
    one = drawn(kinds, SMALL, "taps: [stem, a]")
    net = build.Backbone(one, kinds).eval()
    net.stages["b"] = nn.Module()  # would fail if it ran
    assert [tuple(m.shape[1:]) for m in net(torch.zeros(1, 3, 64, 64))] == [(16, 32, 32), (24, 16, 16)]


def test_several_maps_of_one_stage_are_taps_each(kinds: Mapping[str, BlockInfo]) -> None:
    if "hr" not in kinds:
        pytest.skip("no block of several maps")
    one = drawn(kinds, "{stem: {block: conv, out: 16, stride: 2}, a: {block: hr, out: [8, 16], units: 1}}")
    for form in ("train", "deploy"):
        maps = build.build(one, kinds, form=form)(torch.zeros(1, 3, 64, 64))
        assert [tuple(m.shape[1:]) for m in maps] == [(8, 32, 32), (16, 16, 16)]


def test_class_scores_need_a_head(kinds: Mapping[str, BlockInfo]) -> None:
    net = build.Backbone(drawn(kinds, SMALL), kinds)
    with pytest.raises(BblabError, match="no head"):
        net.classify(torch.zeros(1, 3, 64, 64))
    with_head = build.Backbone(drawn(kinds, SMALL, "head: {block: classifier, out: 7}"), kinds).eval()
    assert with_head.classify(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_the_deploy_form_is_a_copy(kinds: Mapping[str, BlockInfo]) -> None:
    one = drawn(kinds, SMALL)
    net = build.build(one, kinds)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fused = build.to_deploy(net, one, kinds)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in before.items()}
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m.training for m in fused.modules())


def test_calibrated_norms_keep_activations_of_order_one(kinds: Mapping[str, BlockInfo]) -> None:
    one = spec.resolve("mobileone_k5@s8", ROOMS, kinds)
    for form in ("train", "deploy"):
        (out,) = build.build(one, kinds, form=form)(build.probe(one, 2))
        assert 0.05 < float(out.std()) < 20
