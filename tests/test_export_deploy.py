"""bblab export --to: the fused net in ONNX, ncnn and TorchScript, read back and compared; int8."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

NETS = {
    "plain": "[{block: conv, out: 16, stride: 2}, {block: conv}]",
    "reparam": "{block: mobileone, out: 16, stride: 2, branches: 2, repeat: 2}",
    "se_shuffle": "[{block: shuffle_down, out: 32, stride: 2, shortcut: avgpool, branches: 1}, "
    "{block: mobileone, kernel: 5, branches: 2, se: {ratio: 0.25, gate: hsigmoid}}]",
}


def spec_text(net: str) -> str:
    return (
        f"name: {net}\ninput: [3, 63, 63]\ntracker: {{template: 63, search: 127}}\n"
        f"stages:\n  s4: {{block: conv, out: 16, stride: 4}}\n  s8: {NETS[net]}\ntaps: [s4, s8]\n"
    )


@pytest.fixture
def export(bblab, tmp_path: Path, spec_file: Callable[..., Path]):
    def run(net: str, *given: str, code: int = 0) -> tuple[Path, dict, str]:
        out = tmp_path / "out"
        ran = bblab("export", spec_file(spec_text(net), net), "--out", out, *given)
        assert ran.code == code, ran.err
        return out, json.loads((out / "manifest.json").read_text()) if code == 0 else {}, ran.err + ran.out

    return run


def loaded(to: str, folder: Path, row: dict):
    from bblab.export import deploy

    return deploy._runner(to, folder / row["file"])


@pytest.mark.parametrize("net", NETS)
def test_onnx_has_named_taps_and_torchs_values(export, net: str):
    import onnx

    out, manifest, _ = export(net, "--to", "onnx")
    assert [r["for"] for r in manifest["models"]] == [
        [{"role": "template", "px": 63}],
        [{"role": "search", "px": 127}],
    ]
    for row, side in zip(manifest["models"], (63, 127), strict=True):
        content = (out / row["file"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(content).hexdigest() == manifest["files"][row["file"]]
        model = onnx.load(out / row["file"])
        assert [o.name for o in model.graph.output] == ["s4", "s8"]
        assert model.opset_import[0].version == manifest["opset"] == 17
        assert not [n for n in model.graph.node if n.op_type == "BatchNormalization"]  # folded
        got = loaded("onnx", out, row).run(np.zeros((1, 3, side, side), np.float32))
        assert [list(t.shape[1:]) for t in got] == list(next(iter(row["outputs"].values())).values())
        assert max(row["max_rel_error"].values()) < 1e-4
    assert manifest["geometry"]["stride"] == 8
    assert manifest["checked"]["are_photos"] is True


@pytest.mark.parametrize("net", NETS)
def test_ncnn_and_torchscript_agree_with_torch(export, net: str):
    pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    out, manifest, _ = export(net, "--to", "ncnn")
    assert sorted(p.suffix for p in out.iterdir()) == [".bin", ".bin", ".json", ".md", ".param", ".param"]
    assert max(e for r in manifest["models"] for e in r["max_rel_error"].values()) < 1e-4
    out, manifest, _ = export(net, "--to", "torchscript", "--dynamic", "--force")
    assert not list(out.glob("*.param"))  # the earlier export's, replaced
    (row,) = manifest["models"]
    assert row["dynamic"] and max(row["max_rel_error"].values()) < 1e-5


def test_open_sizes_take_both_and_others(export):
    out, manifest, _ = export("se_shuffle", "--to", "onnx", "--dynamic")
    (row,) = manifest["models"]
    assert [s["px"] for s in row["for"]] == [63, 127]
    runner = loaded("onnx", out, row)
    # stride 4 and kernel 3 padded by one: ceil(n / 4); then half
    assert [t.shape[2] for t in runner.run(np.zeros((1, 3, 95, 95), np.float32))] == [24, 12]


def test_a_norm_inside_takes_raw_bgr(export):
    out, manifest, _ = export("plain", "--to", "onnx", "--normalise", "inside")
    assert manifest["input"]["feeds"] == "BGR, 0 to 255" and manifest["input"]["normalised_in_module"]
    raw = np.random.default_rng(0).integers(0, 256, (1, 3, 63, 63)).astype(np.float32)
    inside = loaded("onnx", out, manifest["models"][0]).run(raw)
    out, manifest, _ = export("plain", "--to", "onnx", "--force")
    mean, std = (np.array(manifest["input"][k], np.float32).reshape(1, 3, 1, 1) for k in ("mean", "std"))
    outside = loaded("onnx", out, manifest["models"][0]).run((raw[:, ::-1] - mean) / std)
    for a, b in zip(inside, outside, strict=True):
        assert np.abs(a - b).max() < 1e-4 * np.abs(b).max()


def test_int8_shows_the_error_of_each_tap(export):
    out, manifest, _ = export("plain", "--to", "onnx", "--int8")
    small = [r for r in manifest["models"] if r.get("precision") == "int8"]
    assert [r["file"] for r in small] == ["plain_template_63_int8.onnx", "plain_search_127_int8.onnx"]
    for told in manifest["int8"]:
        assert set(told["taps"]) == {"s4", "s8"}
        for tap in told["taps"].values():
            assert 0 < tap["rel_rms_error"] < 0.4 and tap["cosine"] > 0.9
        assert told["calibration_images"] > 8
    assert all((out / r["file"]).is_file() for r in manifest["models"])


def test_a_collapse_is_warned_of_and_the_reason_given_for_branches():
    from bblab.export.int8 import COLLAPSED, WORTH_A_WARNING, _warning

    assert _warning("s8", WORTH_A_WARNING / 2, True) == ""
    assert "collapsed" not in _warning("s8", WORTH_A_WARNING, True)
    assert "collapsed" in _warning("s8", COLLAPSED, True) and "2212.01593" in _warning("s8", COLLAPSED, True)
    assert "2212.01593" not in _warning("s8", COLLAPSED, False)


def test_own_images_calibrate(export, tmp_path: Path):
    from PIL import Image

    folder = tmp_path / "mine"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (80, 100, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    _, manifest, _ = export("plain", "--to", "onnx", "--int8", "--calibrate", str(folder))
    assert manifest["int8"][0]["calibration"] == "3 crops of 3 photos"
    (folder / "broken.png").write_bytes(b"no image")
    _, _, said = export("plain", "--to", "onnx", "--int8", "--calibrate", str(folder), "--force", code=2)
    assert "broken.png is no image" in said


def test_without_photo_packages_images_are_made_up_and_said(export, monkeypatch):
    from bblab.export import photos

    monkeypatch.setattr(photos, "SHIPPED", {})
    _, manifest, said = export("plain", "--to", "onnx")
    assert manifest["checked"]["are_photos"] is False and "made-up images" in said


def test_a_conversion_that_changes_the_net_is_refused(export, monkeypatch):
    from bblab.export import deploy

    class Off:
        def __init__(self, inner):
            self.inner = inner

        def run(self, x):
            return [1.01 * t for t in self.inner.run(x)]

    real = deploy._runner
    monkeypatch.setattr(deploy, "_runner", lambda to, path: Off(real(to, path)))
    _, _, said = export("plain", "--to", "onnx", code=1)
    assert "taps are off torch's" in said and "nothing was written" in said


def test_a_stored_latency_travels(bblab, export, lab: Path):
    from bblab.lab import Lab

    out, manifest, _ = export("plain", "--to", "onnx")
    opened = Lab(lab)
    told = {"device": "phone", "runtime": "ort", "form": "deploy", "threads": 1, "input": [3, 127, 127]}
    with opened.notebook() as store:
        store.add(
            "timing",
            spec_id=manifest["spec"]["spec_id"],
            name="plain",
            code_version="",
            inputs=told,
            result={"cpu_p10_s": 0.0022, "ratio": 0.05, "ratio_low": 0.04, "ratio_high": 0.06},
        )
    _, manifest, said = export("plain", "--to", "onnx", "--force")
    assert manifest["latency"][0]["device"] == "phone" and manifest["latency"][0]["cpu_p10_s"] == 0.0022
    assert "latency 2.20 ms CPU p10 (phone" in said
    assert "2.2 ms CPU p10 on phone" in (out / "README.md").read_text()


# ---------------------------------------------------------------------------------------------- the net as trained

OWN = '''
import torch
import torch.nn as nn
import torch.nn.functional as F


class Forgets(nn.Module):
    """Its fuse() forgets to scale the convolution's bias."""

    def __init__(self, in_ch, out_ch, stride=1):
        super().__init__()
        self.c, self.n = nn.Conv2d(in_ch, out_ch, 3, stride, 1), nn.BatchNorm2d(out_ch)

    def forward(self, x):
        return F.relu(self.n(self.c(x)))

    def fuse(self):
        s = self.n.weight / torch.sqrt(self.n.running_var + self.n.eps)
        m = nn.Conv2d(self.c.in_channels, self.c.out_channels, 3, self.c.stride, 1)
        m.weight = nn.Parameter((self.c.weight * s[:, None, None, None]).detach())
        m.bias = nn.Parameter((self.c.bias + self.n.bias - self.n.running_mean * s).detach())
        return nn.Sequential(m, nn.ReLU())


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standard(nn.Module):
    def __init__(self, in_ch, out_ch, stride=1):
        super().__init__()
        self.c, self.n = Standardised(in_ch, out_ch, 3, stride, 1, bias=False), nn.BatchNorm2d(out_ch)

    def forward(self, x):
        return F.relu(self.n(self.c(x)))


class Raises(Forgets):
    def fuse(self):
        raise KeyError("no such branch")


class Delicate(nn.Module):
    """Large numbers that cancel: what is left is of the size of their rounding."""

    def __init__(self, in_ch, out_ch, stride=1):
        super().__init__()
        self.c, self.n = nn.Conv2d(in_ch, out_ch, 1, stride), nn.BatchNorm2d(out_ch)
        nn.init.constant_(self.c.bias, 3e3)

    def forward(self, x):
        y = self.n(self.c(x)) + 1e5
        return y - y.mean((2, 3), keepdim=True)
'''


@pytest.fixture
def own(lab: Path, export, monkeypatch: pytest.MonkeyPatch):
    (lab / "blocks").mkdir()
    (lab / "blocks" / "own.py").write_text(OWN)

    def run(name: str, *given: str, code: int = 0):
        monkeypatch.setitem(NETS, "mine", f"{{block: own.{name}, out: 16, stride: 2}}")
        return export("mine", *given, code=code)

    return run


FORMATS = ["onnx", "torchscript", "ncnn"]


@pytest.mark.parametrize("to", FORMATS)
def test_a_deploy_form_that_is_another_function_is_refused_and_nothing_is_written(own, to: str, tmp_path: Path):
    if to == "ncnn":
        pytest.importorskip("ncnn")
        pytest.importorskip("pnnx")
    out, _, said = own("Forgets", "--to", to, code=1)
    assert "computes another function than the train form" in said and "look at s8" in said
    assert not out.exists() and not [p for p in tmp_path.iterdir() if "partial" in p.name]


def test_a_trainers_folder_of_a_net_whose_deploy_form_is_another_function_is_refused(own, tmp_path: Path):
    out, _, said = own("Forgets", "--for", "generic", code=1)
    assert "computes another function than the train form" in said and not out.exists()


def test_files_are_compared_with_the_train_form_with_the_weights_in_hand(own, lab: Path, bblab, tmp_path: Path):
    """The forms agree with random weights, whose norms are of order one, and not with these: only they tell."""
    import torch
    from safetensors.torch import save_file

    from bblab import build
    from bblab.lab import Lab

    text = OWN.replace("self.c.bias + self.n.bias", "self.c.bias * s + self.n.bias * (self.n.bias.abs() < 50)")
    (lab / "blocks" / "own.py").write_text(text)
    _, manifest, _ = own("Forgets", "--to", "torchscript")
    assert "train form in eval mode, these weights" in manifest["checked"]["against"]
    spec = Lab(lab).spec(str(tmp_path / "mine.yaml")) if (tmp_path / "mine.yaml").is_file() else None
    spec = spec or Lab(lab).spec(str(next(tmp_path.rglob("mine.yaml"))))
    state = {k: v.clone() for k, v in build.build(spec, Lab(lab).kinds).state_dict().items()}
    state["stages.s8.0.n.bias"] += 100
    assert torch.is_tensor(state["stages.s8.0.n.bias"])
    save_file(state, tmp_path / "w.safetensors")
    _, _, said = own("Forgets", "--to", "torchscript", "--weights", str(tmp_path / "w.safetensors"), "--force", code=1)
    assert "computes another function than the train form" in said


def test_a_norm_that_cannot_be_folded_stays_in_the_file_and_is_named(own):
    _, manifest, said = own("Standard", "--to", "onnx", "--int8")
    assert "not fused: s8.n: Standardised has a forward of its own" in said
    for row in manifest["models"]:
        worst = max(row["max_rel_error"].values())
        assert worst < 0.4 if row.get("precision") == "int8" else worst < 1e-4


def test_a_fuse_method_that_raises_leaves_the_train_form_in_the_file(own):
    _, manifest, said = own("Raises", "--to", "torchscript")
    assert "its fuse() failed: KeyError" in said
    assert max(max(row["max_rel_error"].values()) for row in manifest["models"]) < 1e-5


def test_rounding_is_a_note_with_its_size_and_no_refusal(own):
    _, manifest, said = own("Delicate", "--to", "torchscript")
    assert "by rounding alone" in said and "in float64" in said
    for row in manifest["models"]:
        assert max(row["max_rel_error"].values()) > 1e-3 > max(row["conversion_rel_error"].values())


@pytest.mark.slow
def test_another_librarys_net_is_deployed_too(bblab, tmp_path: Path):
    pytest.importorskip("torchvision")
    ran = bblab("export", "torchvision:squeezenet1_1@s8", "--to", "torchscript", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
