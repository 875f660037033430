"""Trained trackers come back: the backbone is found in the whole tracker and computes what the tracker's code does.

`tests/data/trackers.json` holds, for the backbone of each tracker, the names and shapes of its own tensors and some
values of its maps, computed once by its own code in float64 with the weights and the image of `filled` and `image`.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bblab import build, weights
from bblab.errors import BblabError
from bblab.lab import Lab
from bblab.weights import files, trackers

RECORDED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "trackers.json").read_text())
PUBLISHED = Path(__file__).parents[2] / "shared" / "reference" / "tracking" / "nanotrack"
PREFIXES = ("backbone.", "module.backbone.", "module.", "net.backbone.0.body.", "features.features.", "")
LARGE = {"pysot_resnet50", "siamban_resnet50", "siamfcpp_inception3", "stark_s50", "siamfc_alexnet_v3"}


def filled(key: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor whose every number follows from its name: waves, of a size that keeps activations near 1."""
    wave = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 1.7 + zlib.crc32(key.encode()) % 1000)
    wave = wave.reshape(shape)
    if key.endswith("running_var"):
        return 0.75 + 0.25 * wave
    if len(shape) > 1:
        return wave * (3 / math.prod(shape[1:])) ** 0.5
    return 1 + 0.25 * wave if key.endswith("weight") else 0.1 * wave


def image(px: int) -> Tensor:
    at = torch.arange(3 * px * px, dtype=torch.float64)
    return (torch.sin(at * 0.37) + torch.sin(at * 0.011)).reshape(1, 3, px, px) / 2


def backbone_of(case: str) -> dict[str, Tensor]:
    """The state dict of a tracker's own backbone, under its own names."""
    listed = RECORDED[case]["modules"]
    found = {}
    for line in RECORDED[listed]["modules"] if isinstance(listed, str) else listed:
        name, kind, *more = line.split(" ")
        if kind == "norm":
            shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (int(more[0]),))
        else:
            shapes = {"weight": tuple(map(int, kind.split("x")))}
            if more:
                shapes["bias"] = shapes["weight"][:1]
        found |= {f"{name}.{k}": filled(f"{name}.{k}", shape) for k, shape in shapes.items()}
        if kind == "norm":
            found[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return found


def tracker(case: str, prefix: str = "backbone.") -> dict[str, Any]:
    """A checkpoint as pysot's train.py saves it: the optimizer's learning rates are numpy's."""
    whole = {f"{prefix}{k}": v for k, v in backbone_of(case).items()}
    outer = "module." if prefix.startswith("module.") else ""
    whole |= {f"{outer}neck.downsample.0.weight": torch.ones(2, 2, 1, 1), f"{outer}rpn_head.cls.weight": torch.ones(3)}
    groups = [{"lr": np.float64(0.005), "momentum": 0.9, "params": [0]}, {"lr": np.float32(0.1), "params": [1]}]
    return {"epoch": 20, "state_dict": whole, "optimizer": {"state": {}, "param_groups": groups}}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab")


def maps_of(lab: Lab, name: str, state: dict[str, Tensor], px: int) -> tuple[Tensor, ...]:
    """What our net makes of the image with imported weights (float32 in the file: exact to 6e-8 a number)."""
    module = build.Backbone(lab.spec(name), lab.kinds)
    assert weights.fill(module, state) == ()
    with torch.no_grad():
        return module.double().eval()(image(px))


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] if c.partition("#")[0] in LARGE else []) for c in RECORDED]
)
def test_a_trackers_backbone_computes_what_its_own_code_does(lab: Lab, tmp_path: Path, case: str) -> None:
    name, number = case.partition("#")[0], list(RECORDED).index(case)
    torch.save(tracker(case, PREFIXES[number % len(PREFIXES)]), tmp_path / "checkpoint_e20.pth")
    found = lab.import_weights(name, str(tmp_path / "checkpoint_e20.pth"), keys_of=name)
    assert found.verdict == "same_spec" and found.tracker and found.images is not None
    assert any("neck (1), rpn_head (1)" in note for note in found.notes)
    maps = maps_of(lab, name, dict(found.state), RECORDED[case]["px"])
    assert len(maps) == len(RECORDED[case]["maps"])
    for ours, theirs in zip(maps, RECORDED[case]["maps"], strict=True):
        assert list(ours.shape[1:]) == theirs["shape"]
        apart = (ours.flatten()[theirs["at"]] - torch.tensor(theirs["values"], dtype=torch.float64)).abs().max()
        # float32 weights: 6e-8 of each, some tens of layers deep
        assert float(apart) < 3e-5 * theirs["largest"]
        assert float(ours.abs().max()) == pytest.approx(theirs["largest"], rel=3e-5)


def test_every_layout_gives_every_tensor_of_its_spec_a_name_of_its_own(lab: Lab) -> None:
    for name, layouts in trackers.LAYOUTS.items():
        spec = lab.spec(name)
        ours = build.Backbone(spec, lab.kinds, device="meta").state_dict()
        for layout in layouts:
            keys = layout.keys(spec, ours)
            missing = [k for k in ours if k not in keys]
            # siamfc_alexnet_v2 and v3 have a Sequential for each convolution in both repositories
            assert not missing and len(set(keys.values())) == len(keys), (name, layout.source)


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_numpys_numbers_are_read_under_both_names_that_numpy_gave_them(tmp_path: Path, module: str) -> None:
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)
    held = {"state_dict": {"a": torch.ones(2)}, "lr": [kind(1) for kind in kinds]}
    torch.save(held, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as old, zipfile.ZipFile(tmp_path / "x.pth", "w") as new:
        for name in old.namelist():  # as another version of numpy writes it
            new.writestr(name, old.read(name).replace(b"numpy._core.multiarray", module.encode()))
    assert files.unpickled(tmp_path / "x.pth")["lr"] == [1] * len(kinds)
    assert list(files.read(tmp_path / "x.pth").state) == ["a"]


class Foreign:
    """Something that only a pickle could bring back."""


@pytest.mark.parametrize(
    "value",
    [np.array([Foreign()], dtype=object), np.dtype("O"), Foreign(), np.random.default_rng, io.BytesIO],
    ids=["array of objects", "type of objects", "object", "function", "class"],
)
def test_nothing_but_numpys_numbers_is_let_in(tmp_path: Path, value: Any) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "more": value}, tmp_path / "x.pth")
    with pytest.raises(BblabError, match="is refused") as caught:
        files.read(tmp_path / "x.pth")
    assert "weights_only=False" in caught.value.hint


def test_reading_a_tracker_leaves_torchs_own_list_of_what_is_safe_as_it_was(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())  # torch keeps a set: its order is nobody's
    torch.save(tracker("nanotrack"), tmp_path / "x.pth")
    files.read(tmp_path / "x.pth")
    changed = before ^ set(torch.serialization.get_safe_globals())  # torch's own modules may add theirs when imported
    assert not changed & set(files.numpy_numbers())


def test_the_command_names_the_tracker_and_what_was_not_taken(bblab: Callable[..., Any], tmp_path: Path) -> None:
    torch.save(tracker("nanotrack"), tmp_path / "checkpoint_e20.pth")
    ran = bblab("import", "nanotrack", "--from", tmp_path / "checkpoint_e20.pth", "--as", "nanotrack")
    assert ran.code == 0, ran.err
    # The stem, 2 convolutions in the first unit, 3 in seven more: each with its norm 1 + 5 tensors. 6 units with SE: 4.
    pairs = 1 + 2 + 3 * 7
    assert "backbone of NanoTrack (github.com/HonglinChu/SiamTrackers 248663f, mobile_v3.py)" in ran.out
    assert f"{6 * pairs + 4 * 6} tensors" in ran.out
    assert "keys stood under 'backbone.'" in ran.out
    assert "2 tensors of the file not taken: neck (1), rpn_head (1)" in ran.out
    assert "trained on images as BGR, 0 to 255" in ran.out


def test_a_spec_of_another_name_takes_the_trackers_weights_by_structure(lab: Lab, tmp_path: Path) -> None:
    path = lab.new("mine", "nanotrack")
    torch.save(tracker("nanotrack"), tmp_path / "checkpoint_e20.pth")
    found = lab.import_weights("mine", str(tmp_path / "checkpoint_e20.pth"), keys_of="nanotrack")
    assert path.is_file() and found.tracker.startswith("NanoTrack")
    maps = maps_of(lab, "mine", dict(found.state), RECORDED["nanotrack"]["px"])
    assert float(maps[0].abs().max()) == pytest.approx(RECORDED["nanotrack"]["maps"][0]["largest"], rel=3e-5)


def test_a_backbone_that_goes_on_is_said_and_asked_about(lab: Lab, tmp_path: Path) -> None:
    torch.save(tracker("nanotrack_v3"), tmp_path / "v3.pth")
    found = lab.import_weights("nanotrack", str(tmp_path / "v3.pth"), keys_of="nanotrack")
    # three convolutions with norms of 5 tensors and a counter each, and SE's 4
    notes = [note for note in found.notes if "goes on" in note]
    assert notes == [
        f"its backbone goes on where nanotrack ends ({3 * 6 + 4} tensors, from features.9.conv.0.weight): "
        "is it nanotrack_v3?"
    ]


def test_a_tensor_that_does_not_fit_is_named_with_both_shapes(bblab: Callable[..., Any], tmp_path: Path) -> None:
    held = tracker("nanotrack")
    held["state_dict"]["backbone.features.3.conv.0.weight"] = torch.ones(80, 24, 1, 1)
    torch.save(held, tmp_path / "x.pth")
    ran = bblab("import", "nanotrack", "--from", tmp_path / "x.pth", "--as", "nanotrack")
    assert ran.code == 1 and "stages.stage2.1.expand.conv.weight: 88x24x1x1 here, 80x24x1x1 in the file" in ran.err
    assert "1 tensor does not fit" in ran.err


def test_imported_weights_go_on_to_the_exports_and_keep_their_images(bblab: Callable[..., Any], tmp_path: Path) -> None:
    """The handed-over module takes BGR from 0 to 255, as NanoTrack feeds it, and computes what NanoTrack's own does."""
    import importlib.util

    torch.save(tracker("nanotrack"), tmp_path / "x.pth")
    ran = bblab("import", "nanotrack", "--from", tmp_path / "x.pth", "--out", tmp_path / "w.safetensors")
    assert ran.code == 0, ran.err
    for given in (tmp_path / "w.safetensors", tmp_path / "x.pth"):
        out = tmp_path / given.suffix.strip(".")
        ran = bblab("export", "nanotrack", "--weights", given, "--for", "nanotrack", "--out", out)
        assert ran.code == 0 and "trained on images as BGR, 0 to 255" in ran.out
        found = importlib.util.spec_from_file_location("bb", out / "bb_nanotrack.py")
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        backbone = module.Backbone()
        backbone.load_state_dict(torch.load(out / "bb_nanotrack.pth", weights_only=True))
        with torch.no_grad():
            ours = backbone.double().eval()(image(64))
        theirs = RECORDED["nanotrack"]["maps"][0]
        assert float(ours.abs().max()) == pytest.approx(theirs["largest"], rel=3e-5)
        assert ours.flatten()[theirs["at"]].tolist() == pytest.approx(theirs["values"], abs=3e-5)
    # and once more, after a training that wrote into the hand-over's folder under the exported module's names
    state = {f"backbone.{k}": v for k, v in torch.load(out / "bb_nanotrack.pth", weights_only=True).items()}
    (out / "snapshot").mkdir()
    torch.save({"epoch": 1, "state_dict": state}, out / "snapshot" / "checkpoint_e1.pth")
    again = tmp_path / "again"
    trained = ["--weights", out / "snapshot" / "checkpoint_e1.pth"]
    assert bblab("export", "nanotrack", *trained, "--for", "nanotrack", "--out", again).code == 0
    assert (again / "bb_nanotrack.py").read_text() == (out / "bb_nanotrack.py").read_text()
    # a trainer that normalises itself feeds other numbers: said
    ran = bblab("export", "nanotrack", "--weights", given, "--for", "generic", "--out", tmp_path / "generic")
    assert ran.code == 0 and "other numbers than it learned" in ran.err


def test_a_tracker_trained_with_an_exported_module_comes_back(bblab: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "handover"
    assert bblab("export", "nanotrack", "--for", "nanotrack", "--out", out).code == 0
    state = torch.load(out / "bb_nanotrack.pth", weights_only=True)
    held = {f"module.backbone.{k}": v for k, v in state.items()} | {"module.ban_head.x.weight": torch.ones(2)}
    torch.save({"epoch": 3, "state_dict": held, "optimizer": {"lr": np.float64(0.1)}}, tmp_path / "checkpoint_e3.pth")
    ran = bblab("import", "nanotrack", "--from", tmp_path / "checkpoint_e3.pth", "--json", "-")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["verdict"] == "same_spec" and told["tracker"] is None
    back, _ = files.load(told["path"])
    assert all(torch.equal(state[k.replace("stages.", "features.")], t) for k, t in back.items())


@pytest.mark.parametrize(
    ("file", "name", "spare"),
    [
        ("nanotrackv1.pth", "nanotrack", "neck (6), ban_head (57)"),
        ("nanotrackv2.pth", "nanotrack", "neck (6), ban_head (124)"),
        ("nanotrackv3.pth", "nanotrack_v3", "neck (6), ban_head (242)"),
    ],
)
def test_the_published_nanotracks_come_back(lab: Lab, file: str, name: str, spare: str) -> None:
    path = PUBLISHED / file
    if not path.is_file():
        pytest.skip(f"no {file} here: it is 2 to 4 MB and is not shipped")
    found = lab.import_weights(name, str(path), keys_of=name)
    assert found.verdict == "same_spec" and any(spare in note for note in found.notes)
    whole = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
    taken = {k: v for k, v in whole.items() if k.startswith("backbone.")}
    assert len(found.state) == len(taken)
    first = "stages.stem.0.conv.weight"
    assert torch.equal(found.state[first], taken["backbone.features.0.0.weight"])
    assert weights.fill(build.Backbone(lab.spec(name), lab.kinds), found.state) == ()


def test_a_file_of_the_next_variant_is_asked_about_where_it_does_not_fit(lab: Lab) -> None:
    path = PUBLISHED / "nanotrackv3.pth"
    if not path.is_file():
        pytest.skip("no nanotrackv3.pth here: it is 3.5 MB and is not shipped")
    with pytest.raises(weights.NoMatch) as error:
        lab.import_weights("nanotrack_v3", str(path), keys_of="nanotrack")
    assert "is it nanotrack_v3?" in error.value.hint
