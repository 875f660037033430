"""Every runtime that is installed here: converts a small net, agrees with torch, is timed by a real worker."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bblab.errors import BblabError, RunError
from bblab.installing import how_to_install
from bblab.latency import Candidate, Plan, measure, models, runtimes

torch = pytest.importorskip("torch")

NEEDS = {"ort": ["onnxruntime"], "ncnn": ["ncnn", "pnnx"], "openvino": ["openvino"], "torch": [], "torch-compile": []}


def installed(name: str) -> Any:
    missing = [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]
    # Compiling takes 20 s and more on two cores.
    marks = [pytest.mark.slow] if name == "torch-compile" else []
    if missing:
        marks.append(pytest.mark.skip(reason=f"{', '.join(missing)} not installed: {how_to_install(*missing)}"))
    return pytest.param(name, marks=marks)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BBLAB_CACHE", str(tmp_path))
    return tmp_path


class TwoTaps(torch.nn.Module):
    """Convolutions, a norm, a gate of squeeze and excitation: two maps out."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3, 2, 1), torch.nn.BatchNorm2d(width))
        self.squeeze = torch.nn.Conv2d(width, width, 1)
        self.deep = torch.nn.Conv2d(width, 8, 3, 2, 1)

    def forward(self, x: Any) -> Any:
        a = torch.nn.functional.relu(self.stem(x))
        a = a * torch.nn.functional.hardsigmoid(self.squeeze(a.mean((2, 3), keepdim=True)))
        return a, self.deep(a)


def net(label: str, width: int) -> Candidate:
    def make() -> Any:
        torch.manual_seed(0)
        return TwoTaps(width).eval()

    return Candidate(label, label, "deploy", (3, 33, 33), label, make)


@pytest.mark.parametrize("name", [installed(name) for name in NEEDS])
def test_a_real_session_of_every_runtime(name: str) -> None:
    threads = torch.get_num_threads()
    small, large = measure(
        [net("small", 4)], net("large", 16), runtime=name, plan=Plan(processes=1, rounds=2, warmups=1)
    )
    assert (small.runtime, small.precision, small.processes, small.rounds) == (name, "float32", 1, 2)
    assert all(t > 0 for timing in (small, large) for t in timing.warm.cpu_s[0])
    # float32 throughout: half precision would be off by 1e-3 and more, TF32 by 1e-4
    assert max(small.conversion_rel_error, large.conversion_rel_error) < 2e-5
    assert small.model_sha256 != large.model_sha256
    assert torch.get_num_threads() == threads
    runtime = runtimes.find(name)
    assert models.is_remembered(net("small", 4), runtime)


@pytest.mark.parametrize("name", [installed(name) for name in ("ncnn", "torch")])
def test_the_same_net_gives_the_same_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = models.converted(net("a", 4), runtimes.find(name))
    monkeypatch.setenv("BBLAB_CACHE", str(tmp_path / "other"))
    again = models.converted(net("a", 4), runtimes.find(name))
    assert (first.sha256, first.path.name) == (again.sha256, again.path.name)
    assert first.path != again.path


def test_every_runtime_says_what_it_is() -> None:
    assert {*NEEDS, "ort-cuda", "ort-trt", "torch-cuda", "torch-compile-cuda"} <= set(runtimes.names())
    for name in runtimes.names():
        runtime = runtimes.find(name)
        assert runtime.name == name
        assert runtime.suffix.startswith(".")
        assert runtimes.uses_torch(runtime) == name.startswith("torch")
        assert runtimes.processor(runtime) == ("cuda" if name.endswith(("-cuda", "-trt")) else "cpu")


def test_a_missing_package_is_one_line_with_the_command() -> None:
    with pytest.raises(BblabError) as missing:
        runtimes.installed("mine", "no-such-package-anywhere")
    assert str(missing.value) == (
        "the runtime 'mine' needs no-such-package-anywhere, which is not installed\n"
        f"  {how_to_install('no-such-package-anywhere')}"
    )


@pytest.mark.parametrize("name", ["ort-cuda", "ort-trt", "torch-cuda", "torch-compile-cuda"])
def test_without_a_gpu_its_runtimes_refuse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BblabError, match=f"the runtime '{name}' needs") as refused:
        runtimes.find(name).version()
    assert refused.value.hint and refused.value.exit_code == 1


def test_pnnx_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pnnx = pytest.importorskip("pnnx", reason="pnnx is not installed")
    false = tmp_path / "false"
    false.write_text("#!/bin/sh\necho 'no such layer: Odd' >&2\nexit 3\n")
    false.chmod(0o755)
    monkeypatch.setattr(pnnx, "EXEC_PATH", str(false))
    with pytest.raises(models.CannotConvert, match="pnnx ended with code 3: no such layer: Odd"):
        models.converted(net("a", 4), runtimes.find("ncnn"))


def test_ncnn_names_the_operators_that_it_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("ncnn", reason="ncnn is not installed")
    param = "7767517\n3 3\nInput in0 0 1 in0\nTensor.Odd odd_0 1 1 in0 1\nReLU relu_0 1 1 1 out0\n"
    with zipfile.ZipFile(tmp_path / "net.zip", "w") as packed:
        packed.writestr("model.ncnn.param", param)
        packed.writestr("model.ncnn.bin", b"")
    with pytest.raises(RunError, match=r"ncnn .* does not know Tensor\.Odd"):
        runtimes.find("ncnn").load(str(tmp_path / "net.zip"), 1)
