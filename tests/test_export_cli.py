"""bblab export as a person calls it: what it refuses, what it keeps, what it says, what it stores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

PADDED = """
name: padded
input: [3, 127, 127]
stages:
  stem: {block: conv, out: 8, stride: 2}
  s4: {block: mobileone, out: 16, stride: 2, branches: 2}
  s8: {block: mobileone, out: 16, stride: 2, branches: 2}
  s16: {block: mobileone, out: 24, stride: 2, branches: 2}
"""


@pytest.fixture
def padded(spec_file: Callable[..., Path]) -> Path:
    return spec_file(PADDED, "padded")


def weights_of(path: Path, spec: Path, *, form: str = "train", edits: tuple[str, ...] = ()) -> Path:
    """A safetensors file of random weights, as bblab writes one."""
    from bblab import build, weights
    from bblab.lab import Lab

    lab = Lab(path.parent / "some-lab")
    found = lab.spec(str(spec), edits)
    module = build.build(found, lab.kinds, form="deploy" if form == "deploy" else "train", seed=3)
    about = {"name": found.name, "spec_id": found.spec_id, "spec": found.canonical, "form": form}
    return weights.save(module, path, about)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("nanotrak", "did you mean 'nanotrack'"),
        ("nanotrack:v9", "no variant 'v9'"),
        ("ostrack", "one-stream transformer"),
        ("lighttrack", "has no trainer"),
    ],
)
def test_trainers_that_cannot_be_are_told_why(bblab, padded: Path, tmp_path: Path, asked: str, words: str):
    ran = bblab("export", padded, "--for", asked, "--out", tmp_path / "out")
    assert ran.code == 2 and words in ran.err
    assert not (tmp_path / "out").exists()


def test_a_net_that_does_not_fit_is_refused_with_the_edit_that_mends_it(bblab, padded: Path, tmp_path: Path):
    out = tmp_path / "out"
    ran = bblab("export", padded, "--for", "pysot", "--out", out)
    assert ran.code == 2 and not out.exists()
    assert "total stride 16 at s16, pysot works at 8" in ran.err
    assert "127 px gives 8x8, 255 px gives 16x16; pysot wants 15x15 and 31x31" in ran.err
    assert "--set defaults.pad=same_unless_strided --set taps=[s8]" in ran.err
    ran = bblab("export", padded, "--for", "pysot", "--out", out, "--fit", "--json", "-")
    assert ran.code == 0
    told = json.loads(ran.out)
    assert told["fit"]["set"] == ["defaults.pad=same_unless_strided", "taps=[s8]"]
    assert told["fit"]["weights_load"] is True
    before, after = told["fit"]["before"], told["fit"]["after"]
    assert (before["stride"], after["stride"]) == (16, 8)
    assert after["search"]["taps"] == [{"stage": "s8", "map": [16, 31, 31]}]
    # unpadded 3x3 with stride 2, three times: 1 + 2 (1 + 2 + 4) = 15 px
    assert after["receptive_field"] == 15
    assert "pad: same_unless_strided" not in padded.read_text()  # the file is left alone


def test_fit_shows_its_cost_to_a_person(bblab, padded: Path, tmp_path: Path):
    ran = bblab("export", padded, "--for", "pysot", "--out", tmp_path / "out", "--fit")
    assert ran.code == 0
    assert "8×8 → 15×15" in ran.out and "weights of the old spec load" in ran.out


def test_taps_and_strides_that_are_wrong_are_said_at_once(bblab, padded: Path, tmp_path: Path):
    ran = bblab("export", padded, "--for", "nanotrack", "--out", tmp_path / "out", "--set", "taps=[s8, s16]")
    assert ran.code == 2
    assert "2 taps (s8, s16), nanotrack reads 1" in ran.err and "--set taps=[s16]" in ran.err
    ran = bblab("export", padded, "--for", "nanotrack", "--out", tmp_path / "out", "--set", "taps=[s32]")
    assert ran.code == 2 and "taps: no stage" in ran.err
    ran = bblab("export", padded, "--for", "nanotrack:v2", "--out", tmp_path / "out")
    assert ran.code == 2 and "24 channels at s16, nanotrack:v2 has 48 written in" in ran.err


def test_weights_of_another_spec_are_refused_with_keys_and_shapes(bblab, padded: Path, tmp_path: Path):
    other = weights_of(tmp_path / "w.safetensors", padded, edits=("s16.out=32",))
    ran = bblab("export", padded, "--for", "nanotrack", "--weights", other, "--out", tmp_path / "out")
    assert ran.code == 2 and not (tmp_path / "out").exists()
    assert "stages.s16.0.point.convs.0.conv.weight: 24x16x1x1 here, 32x16x1x1 in the file" in ran.err
    assert "--inherit" in ran.err


def test_weights_trained_with_other_arguments_load_with_a_warning(bblab, padded: Path, tmp_path: Path):
    other = weights_of(tmp_path / "w.safetensors", padded, edits=("defaults.act=relu6",))
    ran = bblab("export", padded, "--for", "generic", "--weights", other, "--out", tmp_path / "out")
    assert ran.code == 0
    assert "trained with other arguments" in ran.err and 'act "relu6" -> as usual' in ran.err


def test_fused_weights_are_refused_for_training(bblab, padded: Path, tmp_path: Path):
    fused = weights_of(tmp_path / "w.safetensors", padded, form="deploy")
    ran = bblab("export", padded, "--for", "nanotrack", "--weights", fused, "--out", tmp_path / "out")
    assert ran.code == 2 and "is fused: it has no batch norm" in ran.err


def test_a_run_without_weights_is_refused_and_those_with_are_named(bblab, padded: Path, tmp_path: Path, lab: Path):
    assert bblab("profile", padded, "--no-latency").code == 0
    ran = bblab("export", padded, "--for", "nanotrack", "--run", 1, "--out", tmp_path / "out")
    assert ran.code == 2 and "run 1 is a profile of padded: it has no weights" in ran.err
    ran = bblab("export", padded, "--for", "nanotrack", "--run", 99, "--out", tmp_path / "out")
    assert ran.code == 2 and "no run 99" in ran.err
    both = ["--run", 1, "--weights", tmp_path / "w.pth"]
    ran = bblab("export", padded, "--for", "nanotrack", *both, "--out", tmp_path / "out")
    assert ran.code == 2 and "give one of them" in ran.err


def test_provenance_of_a_training_run_travels(bblab, padded: Path, tmp_path: Path, lab: Path):
    from bblab.lab import Lab

    folder = lab / "runs" / "quick"
    folder.mkdir(parents=True)
    weights = weights_of(folder / "weights.safetensors", padded)
    opened = Lab(lab)
    spec = opened.spec(str(padded))
    with opened.notebook() as store:
        run = store.add(
            "pretrain",
            spec_id=spec.spec_id,
            name="padded",
            code_version="",
            inputs={"recipe": {"name": "quick"}, "data": {"root": "/data/imagenette", "hash": "ab12"}},
            result={
                "weights": {"file": weights.name},
                "folder": str(tmp_path / "where the lab was" / "quick"),  # moved since
                "folder_name": folder.name,
                "top1_percent": 71.5,
                "epochs_trained": 16,
            },
        )
    ran = bblab("export", padded, "--for", "nanotrack", "--run", run, "--out", tmp_path / "out", "--json", "-")
    assert ran.code == 0
    told = json.loads(ran.out)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for where in (told, manifest):
        got = where["provenance"]
        assert (got["run"], got["accuracy_top1"], got["recipe"], got["data"]) == (
            run,
            0.715,
            "quick, 16 epochs",
            "imagenette",
        )
    assert "run 1 of the lab's notebook" in (tmp_path / "out" / "README.md").read_text()
    with opened.notebook(read_only=True) as store:
        row = store.get(told["run_id"])
    assert row.kind == "export" and row.result["export_id"] == manifest["export_id"]
    from bblab.lab import exporting

    assert exporting.find_export(opened, manifest["export_id"]).id == row.id
    assert exporting.find_export(opened, str(row.id)).id == row.id
    weights.unlink()
    ran = bblab("export", padded, "--for", "nanotrack", "--run", run, "--out", tmp_path / "again")
    assert ran.code == 2 and "are gone" in ran.err


def test_the_exported_weights_are_the_files(bblab, padded: Path, tmp_path: Path):
    import torch
    from safetensors.torch import load_file

    given = weights_of(tmp_path / "w.safetensors", padded)
    assert bblab("export", padded, "--for", "nanotrack", "--weights", given, "--out", tmp_path / "out").code == 0
    old, new = load_file(given), torch.load(tmp_path / "out" / "bb_padded.pth", weights_only=True)
    assert {k.replace("stages.", "features.") for k in old} == set(new)
    assert all(torch.equal(old[k.replace("features.", "stages.")], v) for k, v in new.items())
    # and a tracker trained with the exported module comes back as weights of the spec
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in new.items()}}, tmp_path / "checkpoint_e50.pth")
    back = ["--weights", tmp_path / "checkpoint_e50.pth", "--out", tmp_path / "back"]
    assert bblab("export", padded, "--for", "nanotrack", *back).code == 0
    again = torch.load(tmp_path / "back" / "bb_padded.pth", weights_only=True)
    assert all(torch.equal(again[k], v) for k, v in new.items())


def test_a_folder_that_is_not_empty_is_kept(bblab, padded: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    ran = bblab("export", padded, "--for", "generic", "--out", out)
    assert ran.code == 2 and "is not empty (notes.txt): kept" in ran.err
    assert [p.name for p in out.iterdir()] == ["notes.txt"]


def test_force_replaces_only_what_bblab_wrote(bblab, padded: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert bblab("export", padded, "--for", "nanotrack", "--out", out).code == 0
    (out / "notes.txt").write_text("mine")
    ran = bblab("export", padded, "--for", "generic", "--out", out, "--force")
    assert ran.code == 0 and "left alone" in ran.err
    names = {p.name for p in out.iterdir()}
    assert "notes.txt" in names and not names & {"launch.py", "config.yaml"}  # generic has neither
    (out / "README.md").write_text("I changed this")
    ran = bblab("export", padded, "--for", "generic", "--out", out, "--force")
    assert ran.code == 2 and "changed since: README.md" in ran.err
    assert (out / "README.md").read_text() == "I changed this"
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".partial")]


def test_one_content_has_one_export_id(bblab, padded: Path, tmp_path: Path):
    def ids(name: str, *more: str) -> str:
        ran = bblab("export", padded, "--for", "generic", "--out", tmp_path / name, "--json", "-", *more)
        return json.loads(ran.out)["export_id"]

    assert ids("a") == ids("b") != ids("c", "--set", "s16.kernel=5")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "--for TRAINER"),
        (["--for", "generic"], "--out DIR"),
        (["--for", "generic", "--to", "onnx"], "give one of them"),
        (["--for", "generic", "--int8"], "--int8: for --to"),
        (["--to", "onnx", "--fit"], "--fit makes a spec fit a trainer"),
        (["--to", "onxx", "--out", "x"], "did you mean 'onnx'"),
        (["--to", "ncnn", "--int8", "--out", "x"], "--to onnx --int8"),
        (["--to", "onnx", "--calibrate", "x", "--out", "x"], "--calibrate is for --int8"),
        (["--to", "onnx", "--normalise", "maybe", "--out", "x"], "inside"),
        (["--to", "onnx", "--int8", "--calibrate", "nowhere", "--out", "x"], "no folder nowhere"),
        (["--for", "generic", "--weights", "nowhere.pth", "--out", "x"], "no file nowhere.pth"),
        (["--for", "generic", "--out", "no/such/folder"], "there is no folder"),
    ],
)
def test_wrong_usage_is_told(bblab, padded: Path, tmp_path: Path, monkeypatch, given: list[str], words: str):
    monkeypatch.chdir(tmp_path)
    ran = bblab("export", padded, *given)
    assert ran.code == 2 and words in ran.err


def test_another_librarys_net_has_no_source_to_write_out(bblab, tmp_path: Path):
    ran = bblab("export", "torchvision:resnet18@s16", "--for", "generic", "--out", tmp_path / "out")
    assert ran.code == 2 and "another library's net" in ran.err


def test_a_pasted_block_travels_with_its_helpers(bblab, lab: Path, tmp_path: Path, spec_file):
    (lab / "blocks").mkdir()
    (lab / "blocks" / "paper.py").write_text(
        "from torch import nn\nfrom .shared import double\n\n\nclass Wide(nn.Module):\n"
        "    def __init__(self, cin, cout, stride=1):\n        super().__init__()\n"
        "        self.a = nn.Conv2d(cin, double(cout), 3, stride, 1)\n"
        "        self.b = nn.Conv2d(double(cout), cout, 1)\n\n"
        "    def forward(self, x):\n        return self.b(self.a(x))\n"
    )
    (lab / "blocks" / "shared.py").write_text("def double(n):\n    return 2 * n\n")
    path = spec_file("name: pasted\nstages: {s2: {block: paper.Wide, out: 8, stride: 2}}\n", "pasted")
    ran = bblab("export", path, "--for", "generic", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    text = (tmp_path / "out" / "bb_pasted.py").read_text()
    assert "def double(n):" in text and "from .shared" not in text
    from bblab.export import codegen

    assert codegen.load(text).Backbone().s2[0].a.out_channels == 16


def test_what_cannot_be_copied_is_said(bblab, lab: Path, tmp_path: Path, spec_file):
    (lab / "blocks").mkdir()
    (lab / "blocks" / "odd.py").write_text(
        "from torch import nn\nif True:\n    def side():\n        return 3\n\n\nclass Odd(nn.Conv2d):\n"
        "    def __init__(self, cin, cout, stride=1):\n        super().__init__(cin, cout, side(), stride, 1)\n"
    )
    path = spec_file("name: odd\nstages: {s2: {block: odd.Odd, out: 8, stride: 2}}\n", "odd")
    ran = bblab("export", path, "--for", "generic", "--out", tmp_path / "out")
    assert ran.code == 2 and "where side comes from cannot be seen" in ran.err and "odd.py" in ran.err
