"""Weights of a net with another head: the head is left out and said, and a backbone tensor that differs is an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bblab import build, weights
from bblab.errors import BblabError, RunError
from bblab.export import carrying
from bblab.lab import Lab
from bblab.pretraining import nets
from bblab.spec import ArchSpec
from bblab.weights import files

BODY = """
name: NAME
input: [3, 64, 64]
stages:
  stem: {block: conv, out: 8, stride: 2}
  s4: {block: mobileone, out: 12, stride: 2, branches: 2}
  s8: {block: conv, out: 16, stride: 2}
taps: [s4]
"""
HR = """
name: NAME
input: [3, 64, 64]
stages:
  stem: {block: conv, out: 8, stride: 2}
  s4: {block: conv, out: 12, stride: 2}
  s8: {block: hr, out: [4, 8], units: 1}
taps: [s8]
"""
HEADS = {
    "classifier": "head: {block: classifier, out: CLASSES}",
    "hidden": "head: {block: classifier, out: CLASSES, hidden: 20}",
    "vanilla": "head: {block: vanilla_classifier, out: CLASSES}",
    "hr": "head: {block: hr_classifier, out: CLASSES}",
    "none": "",
}


@pytest.fixture
def net(lab: Path) -> Callable[..., ArchSpec]:
    """A small spec in the lab, with a head of this kind and size."""
    (lab / "arch_specs").mkdir()

    def make(head: str, classes: int = 1000) -> ArchSpec:
        name = f"{head}{classes}"
        text = (
            (HR if head == "hr" else BODY).replace("NAME", name) + HEADS[head].replace("CLASSES", str(classes)) + "\n"
        )
        (lab / "arch_specs" / f"{name}.yaml").write_text(text)
        return Lab(lab).spec(name)

    return make


def written(lab: Path, spec: ArchSpec, path: Path, *, bare: bool = False) -> Path:
    """Random weights of a spec as a training leaves them, or as a checkpoint that does not say of what."""
    module = build.build(spec, Lab(lab).kinds, seed=3)
    if bare:
        torch.save({"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}, path)
        return path
    about = {"name": spec.name, "spec_id": spec.spec_id, "spec": spec.canonical, "form": "train"}
    return weights.save(module, path, about)


KINDS = [head for head in HEADS if head != "none"]


@pytest.mark.parametrize("bare", [False, True], ids=["ours", "checkpoint"])
@pytest.mark.parametrize("head", KINDS)
def test_an_export_leaves_out_a_head_of_another_size_and_says_so(
    bblab: Callable[..., Any], lab: Path, net: Callable[..., ArchSpec], tmp_path: Path, head: str, bare: bool
) -> None:
    spec, old = net(head, 1000), net(head, 10)
    given = written(lab, old, tmp_path / ("w.pth" if bare else "w.safetensors"), bare=bare)
    for way in (["--for", "generic"], ["--to", "torchscript"]):
        out = tmp_path / way[1]
        ran = bblab("export", spec.name, "--weights", given, *way, "--out", out)
        assert ran.code == 0, ran.err
        assert "the file's head is left out (10 classes in the file, 1000 here)" in ran.out
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["provenance"]["head_left_out"] == "10 classes in the file, 1000 here"
    held = torch.load(tmp_path / "generic" / f"bb_{spec.name}.pth", weights_only=True)
    theirs = build.build(old, Lab(lab).kinds, seed=3).state_dict()
    assert held and all(torch.equal(theirs[f"stages.{k}"], t) for k, t in held.items())


def test_a_net_without_a_head_takes_weights_that_have_one(
    lab: Path, net: Callable[..., ArchSpec], tmp_path: Path
) -> None:
    given = written(lab, net("classifier", 10), tmp_path / "w.safetensors")
    carried = carrying.from_file(given, net("none"), Lab(lab).kinds)
    assert carried.provenance["head_left_out"] == "the spec has no head"
    same = carrying.from_file(given, net("classifier", 10), Lab(lab).kinds)
    assert same.provenance["head_left_out"] is None


def test_what_no_tap_needs_may_have_any_shape(lab: Path, net: Callable[..., ArchSpec], tmp_path: Path) -> None:
    """s8 comes after the last tap: an export does not hold it."""
    spec = net("classifier", 1000)
    old = Lab(lab).spec(spec.name, ["s8.out=24", "head.out=10"])
    carried = carrying.from_file(written(lab, old, tmp_path / "w.safetensors"), spec, Lab(lab).kinds)
    theirs = build.build(old, Lab(lab).kinds, seed=3).state_dict()
    mine = carried.module.state_dict()
    kept = [k for k in theirs if k.startswith(("stages.stem.", "stages.s4."))]
    assert kept and all(torch.equal(mine[k], theirs[k]) for k in kept)


@pytest.mark.parametrize("way", [["--for", "generic"], ["--to", "torchscript"]], ids=["for", "to"])
def test_a_backbone_tensor_that_does_not_fit_is_named_with_both_shapes(
    bblab: Callable[..., Any], lab: Path, net: Callable[..., ArchSpec], tmp_path: Path, way: list[str]
) -> None:
    spec = net("classifier", 1000)
    old = Lab(lab).spec(spec.name, ["stem.out=10", "head.out=10"])
    given = written(lab, old, tmp_path / "w.safetensors")
    ran = bblab("export", spec.name, "--weights", given, *way, "--out", tmp_path / "out")
    assert ran.code == 2 and not (tmp_path / "out").exists()
    assert "stages.stem.0.conv.weight: 8x3x3x3 here, 10x3x3x3 in the file" in ran.err
    assert "head." not in ran.err


@pytest.mark.parametrize("head", KINDS)
def test_an_import_of_a_plain_file_leaves_out_a_head_of_another_size(
    bblab: Callable[..., Any], lab: Path, net: Callable[..., ArchSpec], tmp_path: Path, head: str
) -> None:
    spec = net(head, 1000)
    given = written(lab, net(head, 10), tmp_path / "w.pth", bare=True)
    for more in ([], ["--as", spec.name]):
        ran = bblab("import", spec.name, "--from", given, *more, "--json", "-")
        assert ran.code == 0, ran.err
        told = json.loads(ran.out)
        assert told["has_head"] is False
        assert "the file's head is left out: 10 classes in the file, 1000 here" in told["notes"]
        assert not [k for k in files.load(told["path"])[0] if k.startswith("head.")]


def test_inheriting_does_not_take_ten_classes_for_the_first_of_a_thousand(
    bblab: Callable[..., Any], lab: Path, net: Callable[..., ArchSpec], tmp_path: Path
) -> None:
    spec = net("classifier", 1000)
    given = written(lab, net("classifier", 10), tmp_path / "w.safetensors")
    ran = bblab("import", spec.name, "--from", given, "--inherit", "--set", "s4.kernel=5", "--json", "-")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["has_head"] is False
    assert "the file's head is left out: 10 classes in the file, 1000 here" in told["notes"]
    # 16 channels after s8: all of the new head stays random
    assert {r["name"]: r["random"] for r in told["random"]} == {"head.last.weight": 16 * 1000, "head.last.bias": 1000}


def test_filling_a_net_leaves_out_another_head_and_names_what_stays_random(
    lab: Path, net: Callable[..., ArchSpec], tmp_path: Path
) -> None:
    kinds = Lab(lab).kinds
    state, _ = weights.load(written(lab, net("classifier", 10), tmp_path / "w.safetensors"))
    module = build.build(net("classifier", 1000), kinds)
    assert weights.fill(module, state) == ("head.last.weight", "head.last.bias")
    assert torch.equal(module.state_dict()["stages.stem.0.conv.weight"], state["stages.stem.0.conv.weight"])
    state["stages.stem.0.conv.weight"] = torch.zeros(8, 3, 5, 5)
    with pytest.raises(RunError, match=r"stages\.stem\.0\.conv\.weight: 8x3x3x3 here, 8x3x5x5 in the file"):
        weights.fill(module, state)


def test_a_training_from_weights_with_another_head_says_that_its_head_begins_anew(
    lab: Path, net: Callable[..., ArchSpec], tmp_path: Path
) -> None:
    given = written(lab, net("classifier", 1000), tmp_path / "w.safetensors")
    spec, kinds = net("classifier", 10), Lab(lab).kinds
    assert nets.beginnings(given, spec, kinds) == [
        "the head of w.safetensors is left out (1000 classes in the file, 10 here): the new one begins anew"
    ]
    module, _ = nets.make(spec, kinds, 10, weights=str(given))
    state, _ = weights.load(given)
    assert torch.equal(module.state_dict()["stages.s8.0.conv.weight"], state["stages.s8.0.conv.weight"])
    assert nets.beginnings(written(lab, spec, tmp_path / "same.safetensors"), spec, kinds) == []


def test_another_librarys_net_trained_on_ten_classes_comes_back_without_its_classifier(
    lab: Path, tmp_path: Path
) -> None:
    torchvision = pytest.importorskip("torchvision")
    opened = Lab(lab)
    theirs = torchvision.models.resnet18(num_classes=10)
    torch.save(theirs.state_dict(), tmp_path / "r10.pth")
    for name in ("resnet18", "torchvision:resnet18@s16"):
        found = opened.import_weights(name, str(tmp_path / "r10.pth"), keys_of="torchvision:resnet18")
        assert found.verdict == "equal" and not found.has_head
        assert "the classifier fc is left out: 10 classes in the file, 1000 here" in found.notes
    wrong = {**theirs.state_dict(), "layer1.0.conv1.weight": torch.zeros(64, 64, 5, 5)}
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(BblabError, match=r"layer1\.0\.conv1\.weight: 64x64x3x3 here, 64x64x5x5 in the file"):
        opened.import_weights("resnet18", str(tmp_path / "wrong.pth"), keys_of="torchvision:resnet18")


def test_a_librarys_net_begins_a_training_from_what_import_wrote_and_its_weights_come_back(
    lab: Path, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    opened = Lab(lab)
    spec = opened.spec("timm:resnet18@s16")
    first = opened.import_weights(spec, "timm:resnet18", random=True)
    module, _ = nets.make(spec, opened.kinds, 10, weights=str(first.path))
    state = module.state_dict()
    assert torch.equal(state["cut.net.conv1.weight"], first.state["net.conv1.weight"])
    about = {"name": spec.name, "spec_id": spec.spec_id, "spec": spec.canonical, "form": "train"}
    trained = weights.save(module, tmp_path / "w.safetensors", about)
    carried = carrying.from_file(trained, spec, opened.kinds)
    assert torch.equal(carried.module.state_dict()["net.conv1.weight"], first.state["net.conv1.weight"])
    assert opened.import_weights("resnet18", str(trained)).verdict == "equal"
    fewer, _ = nets.make(spec, opened.kinds, 5, weights=str(trained))
    assert fewer.state_dict()["head.weight"].shape[0] == 5
