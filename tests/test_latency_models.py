"""Converted models: made once, checked against torch, made again when the file is not what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bblab.errors import RunError
from bblab.latency import Candidate, models, runtimes

torch = pytest.importorskip("torch")


class Counter:
    def __init__(self, module: Any) -> None:
        self.module = module
        self.made = 0

    def __call__(self) -> Any:
        self.made += 1
        return self.module


def conv() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()


def net(make: Any, *, key: str = "k", form: Any = "deploy") -> Candidate:
    return Candidate("net", "net", form, (3, 8, 8), key, make)


class Fake:
    """A runtime whose model file is a number: what it adds to torch's output."""

    name, suffix, precision, pip = "fake", ".fake", "float32", ""
    error = 0.0
    current: Any = None

    def version(self) -> str:
        return "1"

    def settings(self) -> str:
        return ""

    def convert(self, module: Any, input_shape: tuple[int, ...], path: Path) -> None:
        self.current = module
        path.write_text(str(self.error))

    def load(self, path: str, threads: int) -> Any:
        fake, error = self, float(Path(path).read_text())

        class Loaded:
            def run(self, x: Any) -> list[Any]:
                with torch.no_grad():
                    return [t.numpy() + error for t in models.flat_outputs(fake.current, torch.from_numpy(x))]

        return Loaded()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BBLAB_CACHE", str(tmp_path))
    return tmp_path / "models"


def test_a_model_is_made_once_for_a_key() -> None:
    make = Counter(conv())
    first = models.converted(net(make), Fake())
    assert models.is_remembered(net(make), Fake())
    assert models.converted(net(make), Fake()) == first
    assert make.made == 1


@pytest.mark.parametrize("other", [{"key": "other"}, {"form": "train"}])
def test_another_key_or_form_is_another_model(other: dict[str, Any]) -> None:
    make = Counter(conv())
    first = models.converted(net(make), Fake())
    assert models.converted(net(make, **other), Fake()).path != first.path
    assert make.made == 2


def test_another_runtime_version_is_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Counter(conv())
    first = models.converted(net(make), Fake())
    monkeypatch.setattr(Fake, "version", lambda self: "2")
    assert models.converted(net(make), Fake()).path != first.path


def test_a_corrupt_model_is_made_again() -> None:
    make = Counter(conv())
    model = models.converted(net(make), Fake())
    good = model.path.read_bytes()
    model.path.write_bytes(good + b"rot")
    assert models.converted(net(make), Fake()) == model
    assert make.made == 2
    assert model.path.read_bytes() == good


@pytest.mark.parametrize("broken", ["", "{", "[]", "{}"])
def test_a_broken_sidecar_is_made_again(broken: str) -> None:
    make = Counter(conv())
    model = models.converted(net(make), Fake())
    model.path.with_name(model.path.name + ".json").write_text(broken)
    assert models.converted(net(make), Fake()) == model
    assert make.made == 2


def test_a_model_that_disagrees_with_torch_is_refused_and_not_kept(cache: Path) -> None:
    wrong = Fake()
    wrong.error = 0.5
    with pytest.raises(RunError, match=r"net: output 0 in fake is off torch's by 0\.\d+ of its maximum"):
        models.converted(net(conv), wrong)
    assert list(cache.iterdir()) == []


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "error", [FULL, RuntimeError("[enforce fail at inline_container.cc] write failed: No space left on device")]
)
def test_a_full_disk_while_converting_is_said_so_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def half(self: Fake, module: Any, input_shape: Any, path: Path) -> None:
        path.write_text("ha")
        raise error

    monkeypatch.setattr(Fake, "convert", half)
    with pytest.raises(RunError, match="net: the disk is full, it could not be converted for fake") as full:
        models.converted(net(conv), Fake())
    assert not isinstance(full.value, models.CannotConvert)  # no net's fault: the next one would fail as well
    assert str(cache.parent) in full.value.hint
    assert list(cache.iterdir()) == []


def test_a_disk_that_is_full_at_the_last_step_is_said_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise FULL

    monkeypatch.setattr(models, "_write_sidecar", refuse)
    with pytest.raises(RunError, match="the disk is full"):
        models.converted(net(conv), Fake())


@pytest.mark.parametrize("error", [ValueError("odd shape"), RunError("fake 1 does not know Odd", hint="try another")])
def test_a_net_that_converts_and_then_cannot_be_loaded_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(self: Fake, path: str, threads: int) -> None:
        raise error

    monkeypatch.setattr(Fake, "load", refuse)
    with pytest.raises(models.CannotConvert, match=r"^net: fake.*[Oo]dd") as refused:
        models.converted(net(conv), Fake())
    assert refused.value.label == "net" and refused.value.hint


def test_the_error_is_relative_so_blown_up_and_tiny_outputs_both_pass() -> None:
    # BN statistics drawn at random gave outputs of 5e16 once: 4e9 off is then 8e-8
    import numpy as np

    big, small = np.array([5e16, -1e16]), np.array([1e-20, 0.0])
    assert models.checked_error("n", "r", [big], [big + 4e9]) == pytest.approx(8e-8, rel=0.01)
    assert models.checked_error("n", "r", [small], [small]) == 0.0
    assert models.checked_error("n", "r", [np.zeros(2)], [np.zeros(2)]) == 0.0
    with pytest.raises(RunError, match="off torch's"):
        models.checked_error("n", "r", [small], [small * 1.01])


def test_outputs_that_are_not_finite_or_not_there_are_refused() -> None:
    import numpy as np

    one, nan = np.ones(2), np.array([1.0, np.nan])
    with pytest.raises(RunError, match="not finite in torch itself") as wrong:
        models.checked_error("n", "r", [nan], [one])
    assert "BN" in wrong.value.hint
    with pytest.raises(RunError, match="off torch's"):
        models.checked_error("n", "r", [one], [nan])
    with pytest.raises(RunError, match=r"2 output\(s\), r 1"):
        models.checked_error("n", "r", [one, one], [one])
    with pytest.raises(RunError, match=r"\(2,\) in torch, \(3,\)"):
        models.checked_error("n", "r", [one], [np.ones(3)])


class TwoTaps(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Conv2d(4, 8, 3)

    def forward(self, x: Any) -> Any:
        a = self.stem(x)
        return a, [self.deep(a)]


def test_ort_converts_a_net_of_two_taps_without_a_word(
    recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = models.converted(net(TwoTaps().eval), runtimes.find("ort"))
    assert 0 <= model.rel_error < 1e-4
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []
    record = json.loads(model.path.with_name(model.path.name + ".json").read_text())
    assert record["sha256"] == model.sha256
    assert record["runtime"] == "ort"
    assert "opset 17" in record["settings"]


def test_an_op_that_cannot_be_converted_names_the_net() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.svdvals(x)

    with pytest.raises(RunError, match="net: ort cannot convert it"):
        models.converted(net(Odd), runtimes.find("ort"))
