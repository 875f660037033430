"""The real runner: built for x86-64 and for aarch64 (which runs under qemu), compared with torch, killed, fed garbage.

Building takes minutes, so all of it is slow. BBLAB_TEST_RUNNERS=DIR keeps what was built for the next run.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bblab.errors import BblabError, RunError
from bblab.latency import Candidate, Plan, measure, models, runner, runtimes, wire
from bblab.latency.devices.host import Host
from bblab.latency.runtimes.ncnn_static import _Program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
if platform.machine() != "x86_64":
    pytest.skip("the host's runner is tried on x86-64", allow_module_level=True)
pytest.importorskip("pnnx", reason="pnnx is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A runner for each architecture; bblab finds them as its own."""
    keep = os.environ.get("BBLAB_TEST_RUNNERS")
    folder = Path(keep) if keep else tmp_path_factory.mktemp("runners")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BBLAB_CACHE", str(folder))
        for arch in runner.ARCHES:
            try:
                found[arch] = runner.built(arch) or runner.build(arch)
            except BblabError as error:
                if "not installed" in error.message or "no source archive" in error.message:
                    pytest.skip(error.message)
                raise
    with pytest.MonkeyPatch.context() as patch:
        for arch, path in found.items():
            patch.setenv(f"BBLAB_RUNNER_{arch.upper()}", str(path))
        yield found


@pytest.fixture(scope="module")
def qemu() -> str:
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not found:
        pytest.skip("qemu-user is not installed: apt install qemu-user-static")
    return found


class TwoTaps(torch.nn.Module):
    """Two outputs, a strided and a depthwise convolution, a gate; odd widths, so that channels do not fill lanes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3, 2, 1), torch.nn.ReLU())
        self.b = torch.nn.Conv2d(width, width, 5, 1, 2, groups=width)
        self.gate = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(width, width, 1))
        self.c = torch.nn.Sequential(torch.nn.Conv2d(width, 13, 1), torch.nn.Hardswish())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a = self.a(x)
        b = self.b(a) + a
        return a, self.c(b * torch.nn.functional.hardsigmoid(self.gate(b)))


def net(label: str, width: int) -> Candidate:
    def make() -> torch.nn.Module:
        torch.manual_seed(width)
        return TwoTaps(width).eval()

    return Candidate(label, label, "deploy", (3, 63, 63), label, make)


NETS = (net("small", 5), net("large", 32))


@pytest.fixture(scope="module")
def files(built: dict[str, Path]) -> list[Path]:
    return [models.converted(n, runtimes.find("ncnn-static")).path for n in NETS]


def error_of(command: tuple[str, ...], candidate: Candidate, path: Path) -> float:
    """The largest difference to torch over the largest value, of both outputs."""
    x = models.check_image((1, *candidate.input))
    with torch.no_grad():
        truth = [t.numpy() for t in candidate.make_module()(x)]
    got = _Program(command, str(path), 1).run(x.numpy())
    assert [a.shape for a in truth] == [b.shape for b in got]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(truth, got, strict=True))


def request(files: list[Path], rounds: int = 3, **more: Any) -> wire.Request:
    listed = tuple(wire.ModelFile(c.label, str(p), (1, *c.input)) for c, p in zip(NETS, files, strict=True))
    given: dict[str, Any] = {"orders": tuple((r % 2, 1 - r % 2) for r in range(rounds)), **more}
    return wire.Request("ncnn-static", 1, 2, 7, listed, **given)


def said(process: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("BBLAB ")) for line in process.stdout.splitlines() if line]


def run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)


def test_both_are_static_and_say_what_they_are(built: dict[str, Path], qemu: str) -> None:
    for arch, prefix in (("x86_64", ()), ("aarch64", (qemu,))):
        about = runner.about(built[arch], prefix=prefix)
        assert (about["program"], about["wire"], about["arch"]) == ("bblab-runner", wire.VERSION, arch)
        wire.check_protocol(about, "it")
        assert about["ncnn"].startswith("1.0.20")
        lines = run([*prefix, str(built[arch]), "--speedometer", "3"]).stdout.splitlines()
        speeds = [wire.parse(line) for line in lines]
        assert [s.round for s in speeds if isinstance(s, wire.Speed)] == [0, 1, 2]


@pytest.mark.parametrize("place", [0, 1])
def test_float32_equals_torch(built: dict[str, Path], qemu: str, files: list[Path], place: int) -> None:
    assert error_of((str(built["x86_64"]),), NETS[place], files[place]) < 1e-5
    assert error_of((qemu, str(built["aarch64"])), NETS[place], files[place]) < 1e-5
    # A core without float16 instructions takes other kernels.
    assert error_of((qemu, "-cpu", "cortex-a53", str(built["aarch64"])), NETS[place], files[place]) < 1e-5


@pytest.mark.parametrize(("cpu", "precision"), [("max", "float16"), ("cortex-a53", "float16 storage")])
def test_float16_is_used_where_asked_and_named(
    built: dict[str, Path], qemu: str, files: list[Path], cpu: str, precision: str
) -> None:
    command = (qemu, "-cpu", cpu, str(built["aarch64"]))
    half = error_of((*command, "--precision", "float16"), NETS[1], files[1])
    assert 1e-5 < half < 5e-3  # float16 keeps 11 bits: 5e-4 a rounding
    heard = list(Host(command=(*command, "--precision", "float16")).run(request(files, 1), silence_s=60))
    assert isinstance(heard[0], wire.Hello) and heard[0].precision == precision


def test_a_session_through_the_host(built: dict[str, Path]) -> None:
    small, large = measure(
        [NETS[0]], NETS[1], runtime="ncnn-static", plan=Plan(processes=2, rounds=3, warmups=1, pace_fps=200)
    )
    assert (small.runtime, small.precision, small.processes, small.rounds) == ("ncnn-static", "float32", 2, 3)
    assert small.speedometer_name == "xorshift64-2000000"
    assert [len(p) for p in small.speedometer.cpu_s] == [4, 4]
    for own in (s for t in (small, large) for s in t.samples.values()):
        pairs = [(c, w) for p in range(2) for c, w in zip(own.cpu_s[p], own.wall_s[p], strict=True)]
        assert all(0 < c <= w for c, w in pairs)
    assert {state: own.calls for state, own in small.samples.items()} == {"warm": 18, "cold": 6, "paced": 18}
    assert all(cpu in os.sched_getaffinity(0) for cpu in small.pinned_cpus)
    assert sum(map(len, small.warm.preempted)) == 18
    assert small.conversion_rel_error < 1e-5
    assert small.runtime_version == runner.about(built["x86_64"])["ncnn"]


def test_a_session_of_aarch64(built: dict[str, Path], qemu: str) -> None:
    device = Host(command=(qemu, str(built["aarch64"]), *runner.arguments(limit_s=60)))
    plan = Plan(processes=1, rounds=2, warmups=1)
    small, large = measure([NETS[0]], NETS[1], device=device, runtime="ncnn-static", plan=plan)
    assert (small.processes, small.rounds, large.rounds) == (1, 2, 2)


def test_rounds_run_in_the_order_that_was_told(built: dict[str, Path], files: list[Path]) -> None:
    heard = list(Host(command=(str(built["x86_64"]),)).run(request(files, 4), silence_s=60))
    calls = [m for m in heard if isinstance(m, wire.Call)]
    assert [m.state for m in calls] == ["cold", "warm", "warm", "warm"] * 8
    assert [(m.round, m.model) for m in calls[::4]] == [
        (0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1), (3, 1), (3, 0)
    ]  # fmt: skip
    assert [m.kind for m in heard[:5]] == ["hello", "ready", "speed", "call", "call"]
    nobody = replace(request(files), models=(), orders=((),) * 3)
    heard = list(Host(command=(str(built["x86_64"]),)).run(nobody, silence_s=60))
    assert [m.kind for m in heard] == ["hello", "ready", "speed", "speed", "speed", "speed", "end"]


def test_layers_sum_to_less_than_their_call_and_are_the_models(built: dict[str, Path], files: list[Path]) -> None:
    heard = list(Host(command=(str(built["x86_64"]),)).run(request(files, 2, probe="layers"), silence_s=60))
    with zipfile.ZipFile(files[1]) as packed:
        rows = packed.read("model.ncnn.param").decode().splitlines()[2:]
    in_file = {(row.split()[1], row.split()[0]) for row in rows} - {("in0", "Input")}
    every = [m for m in heard if isinstance(m, wire.Layer)]
    counted: dict[tuple[int, int], int] = {}
    for call in (m for m in heard if isinstance(m, wire.Call) and m.state == "profiled"):
        at = (call.round, call.model)
        number = counted.setdefault(at, 0)
        counted[at] += 1
        layers = [m for m in every if (m.round, m.model, m.call) == (*at, number)]
        assert [layer.place for layer in layers] == list(range(len(layers)))
        assert 0 < sum(layer.wall_s for layer in layers) <= call.wall_s
        if call.model == 1:
            assert {(layer.name, layer.type) for layer in layers} == in_file
    assert set(counted.values()) == {wire.WARM_CALLS}
    silent = list(Host(command=(str(built["x86_64"]),)).run(request(files, 2), silence_s=60))
    assert not any(isinstance(m, wire.Layer) for m in silent)


def test_a_runner_killed_half_way_is_named(built: dict[str, Path], files: list[Path]) -> None:
    pid_of = ["sh", "-c", f'echo $$ > {files[0].parent}/pid; exec "$0"', str(built["x86_64"])]
    with pytest.raises(RunError, match="was killed by SIGKILL"):
        for message in Host(command=pid_of).run(request(files, 20_000), silence_s=60):
            if isinstance(message, wire.Speed) and message.round == 5:
                os.kill(int((files[0].parent / "pid").read_text()), signal.SIGKILL)


def test_a_crash_inside_is_told_with_its_signal(built: dict[str, Path], files: list[Path]) -> None:
    pid_of = ["sh", "-c", f'echo $$ > {files[0].parent}/pid; exec "$0"', str(built["x86_64"])]
    with pytest.raises(RunError, match="SIGSEGV: the runner touched memory that is not its own"):
        for message in Host(command=pid_of).run(request(files, 20_000), silence_s=60):
            if isinstance(message, wire.Speed) and message.round == 5:
                os.kill(int((files[0].parent / "pid").read_text()), signal.SIGSEGV)


def test_a_runner_that_nobody_reads_ends_itself(built: dict[str, Path], files: list[Path]) -> None:
    process = subprocess.Popen([str(built["x86_64"])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    process.stdin.write(wire.encode_request(request(files, 100_000)) + "\n")
    process.stdin.flush()
    assert "hello" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) in (4, -signal.SIGPIPE)
    process.stdin.close()


def test_a_runner_that_waits_too_long_ends_itself(built: dict[str, Path]) -> None:
    process = subprocess.Popen(
        [str(built["x86_64"]), "--limit", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    began = time.monotonic()
    assert process.stdout and process.stdin
    text = process.stdout.read()
    assert process.wait(20) == 3 and time.monotonic() - began < 20
    assert isinstance(wire.parse(text.strip()), wire.Failure)
    process.stdin.close()


GOOD = wire.encode_request(wire.Request("r", 1, 0, 0, (wire.ModelFile("a", "/none", (1, 3, 8, 8)),), ((0,),)))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no request came"),
        ("\n", "no request came"),
        ("%PDF-1.4\x00\x01", "not JSON"),
        ("{" * 100_000, "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        (GOOD[:-1], "cut off|was expected"),
        (GOOD + "}", "something follows"),
        ("[]", "not a JSON object"),
        (GOOD.replace('"wire": 2', '"wire": 1'), "of version 1, this runner speaks version 2"),
        (GOOD.replace('"threads": 1', '"threads": 0'), "whole number from 1 to 1024"),
        (GOOD.replace('"threads": 1', '"threads": 1.5'), "whole number"),
        (GOOD.replace('"threads": 1', '"threads": "1"'), "of another type"),
        (GOOD.replace('"threads": 1', '"threads": 1e999'), "cannot be read"),
        (GOOD.replace("[[0]]", "[[1]]"), "whole number from 0 to 0"),
        (GOOD.replace("[[0]]", "[[0, 0]]"), "every model once"),
        (GOOD.replace("[[0]]", "[[]]"), "every model once"),
        (GOOD.replace("[1, 3, 8, 8]", "[2, 3, 8, 8]"), "no batch"),
        (GOOD.replace("[1, 3, 8, 8]", "[1, 3, 99999, 99999]"), "no batch"),
        (GOOD.replace("[1, 3, 8, 8]", "[1]"), "no batch"),
        (GOOD.replace('"/none"', '"/no\\u00fcne\\n"'), "cannot be read: No such file"),
        (GOOD.replace('"pace_s": 0.0', '"pace_s": -1'), "pace_s"),
        (GOOD.replace('"seed"', '"sead"'), 'has no "seed"'),
        (GOOD.replace('"rounds"', '"stages"'), 'does not know the probe "stages"; it has rounds, layers'),
        (GOOD.replace('"fill_s": 0.006', '"fill_s": -1'), "fill_s"),
        (GOOD.replace('"cpus": []', '"cpus": [900, 901]'), "cannot be had|the system gives"),
    ],
)
def test_a_bad_request_is_one_tagged_line(built: dict[str, Path], text: str, why: str) -> None:
    import re

    done = run([str(built["x86_64"])], text)
    *before, last = said(done)
    assert done.returncode in (1, 2)
    assert [m["kind"] for m in before] in ([], ["hello"])
    assert last["kind"] == "error" and re.search(why, last["message"]), last
    assert isinstance(wire.parse(done.stdout.splitlines()[-1]), wire.Failure)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--cpus", "9999"], "give cores"),
        (["--cpus", "0-"], "give cores"),
        (["--cpus", ""], "give cores"),
        (["--cpus", "900-901"], "cannot be had|the system gives"),
        (["--cpus"], "needs a value"),
        (["--precision", "int8"], "float32 or float16"),
        (["--limit", "0"], "whole number"),
        (["--speed"], "no option --speed"),
        (["--compute", "/none", "1,x", "/in", "/out"], "a shape is"),
    ],
)
def test_a_wrong_command_line_is_one_tagged_line(built: dict[str, Path], words: list[str], why: str) -> None:
    import re

    done = run([str(built["x86_64"]), *words])
    (line,) = said(done)
    assert done.returncode in (1, 2) and line["kind"] == "error" and re.search(why, line["message"]), line


def damaged(path: Path, tmp_path: Path, how: str) -> Path:
    data = bytearray(path.read_bytes())
    target = tmp_path / f"{how}.ncnn.zip"
    if how == "cut":
        data = data[: len(data) // 2]
    elif how == "bit":
        data[len(data) // 2] ^= 1  # of a weight
    elif how == "empty":
        data = bytearray()
    elif how == "text":
        data = bytearray(b"not a model at all\n" * 100)
    elif how == "compressed":
        with zipfile.ZipFile(path) as packed, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
            for name in packed.namelist():
                made.writestr(name, packed.read(name))
        return target
    elif how in ("unknown layer", "few weights", "bare"):
        with zipfile.ZipFile(path) as packed, zipfile.ZipFile(target, "w") as made:
            param, weights = packed.read("model.ncnn.param"), packed.read("model.ncnn.bin")
            if how == "unknown layer":
                param = param.replace(b"ConvolutionDepthWise", b"ConvolutionOfTheMoon")
            made.writestr("model.ncnn.param", param)
            if how != "bare":
                made.writestr("model.ncnn.bin", weights[:64] if how == "few weights" else weights)
        return target
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(
    "how", ["cut", "bit", "empty", "text", "compressed", "unknown layer", "few weights", "bare"]
)  # fmt: skip
def test_a_damaged_model_is_named_and_never_timed(
    built: dict[str, Path], files: list[Path], tmp_path: Path, how: str
) -> None:
    broken = damaged(files[1], tmp_path, how)
    asked = request([files[0], broken])
    done = run([str(built["x86_64"])], wire.encode_request(asked) + "\n")
    heard = said(done)
    assert done.returncode == 1
    assert [m["kind"] for m in heard] == ["hello", "error"] and str(broken) in heard[1]["message"], heard


def test_the_cores_that_were_asked_are_the_ones_it_has(built: dict[str, Path], files: list[Path]) -> None:
    core = min(os.sched_getaffinity(0))
    done = run([str(built["x86_64"]), "--cpus", str(core)], wire.encode_request(request(files, 1)) + "\n")
    assert said(done)[0]["cpus"] == [core]
    assert done.returncode == 0 and said(done)[-1]["peak_memory_bytes"] > 1e6
