"""What a person gets wrong, and what a machine does to them: a message, an exit code, and nothing lost."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from bblab import ops
from bblab.lab import Lab
from bblab.store import Store

BBLAB = (sys.executable, "-m", "bblab")
NET = "tracker: {template: 31, search: 63}\nstages: {stem: {block: conv, out: 8, stride: 2}}\n"
QUICK = ("--no-latency", "--no-verify")


# ---------------------------------------------------------------------------------------------- sizes


def stage(row: str, top: str = "") -> str:
    return f"{top}stages: {{a: {{block: conv, out: 8, {row}}}}}\n"


SIZES = {
    stage("kernel: 0"): "kernel must be at least 1, read 0",
    stage("kernel: -3"): "kernel must be at least 1, read -3",
    stage("kernel: 9999"): "kernel is out of all bounds: 9999",
    stage("kernel: 250, pad: valid"): "Kernel size can't be greater than actual input size",
    stage("stride: 0"): "stride must be from 1 to 32, read 0",
    stage("stride: 99"): "stride must be from 1 to 32, read 99",
    stage("dilation: 0"): "dilation must be at least 1, read 0",
    stage("groups: 0"): "groups must be at least 1, read 0",
    stage("groups: -1"): "groups must be at least 1, read -1",
    stage("groups: 3"): "groups 3 does not divide 3 input and 8 output channels",
    stage("repeat: 0"): "repeat must be from 1 to 256, read 0",
    stage("repeat: 1000000"): "repeat must be from 1 to 256",
    stage("pad: -1"): "none negative",
    stage("pad: sme"): "did you mean 'same'?",
    stage("act: reluu"): "did you mean 'relu'?",
    stage("kernel: 3", "input: [0, 224, 224]\n"): "input channels must be from 1 to",
    stage("kernel: 5, pad: valid", "input: [3, 1, 1]\n"): "a map of 3x1x1",
    "stages: {a: {block: conv, out: 0}}": "out must be from 1 to",
    "stages: {a: {block: conv, out: -8}}": "out must be from 1 to",
    "stages: {a: {block: conv, out: [8, 8]}}": "out is a list",
    "stages: {a: {block: mobileone, out: 8, branches: -1}}": "branches must be at least 1, read -1",
    "stages: {a: {block: mobileone, out: 8, branches: 60000}}": "more than 16,384 layers",
    "stages: {a: {block: mbconv, out: 8, se: {ratioo: 1}}}": "did you mean 'ratio'?",
    "stages: {a: {block: mbconv, out: 8, se: {ratio: -1}}}": "ratio must be a number above 0",
    "tracker: {template: 255, search: 127}\n" + stage("kernel: 3"): "search 127 px is smaller than template 255 px",
    "stages: {" + ", ".join(f"s{i}: {{block: maxpool, stride: 16, pad: valid}}" for i in range(4)) + "}": "too small",
}


@pytest.mark.parametrize(("text", "said"), SIZES.items())
def test_absurd_sizes_are_told_in_their_place(
    text: str, said: str, bblab: Callable[..., Any], spec_file: Callable[..., Path]
) -> None:
    spec = spec_file(text)
    ran = bblab("check", spec)
    assert ran.code == 2 and ran.out == ""
    assert f"{spec}:" in ran.err and said in ran.err


def test_a_map_of_one_pixel_is_still_a_map(bblab: Callable[..., Any], spec_file: Callable[..., Path]) -> None:
    ran = bblab("profile", spec_file(stage("stride: 2", "input: [3, 1, 1]\n")), "--no-latency", "--json", "-")
    assert ran.code == 0 and json.loads(ran.out)[0]["feature_maps"][0]["height"] == 1


def test_wrong_files_are_told(bblab: Callable[..., Any], spec_file: Callable[..., Path], tmp_path: Path) -> None:
    for reference, said in (
        (tmp_path / "none.yaml", "no file"),
        (tmp_path, "is a folder"),
        (spec_file(b"\xff\xfe\x00\x01", "binary"), "not UTF-8 text"),
        (spec_file(b"a" * 300_000, "huge"), "300,000 bytes"),
        (spec_file("", "empty"), "the file is empty"),
        ("/dev/zero", "endless"),
    ):
        ran = bblab("profile", reference, *QUICK)
        assert ran.code == 2 and said in ran.err and not ran.out


@pytest.mark.parametrize("name", ["timm:nope", "torchvision:nope", "timm:resnet18@s7"])
def test_a_net_that_a_library_lacks_is_told(name: str, bblab: Callable[..., Any]) -> None:
    pytest.importorskip(name.partition(":")[0])
    ran = bblab("check", name)
    assert ran.code == 2 and "known: " in ran.err and len(ran.err) < 700


# ---------------------------------------------------------------------------------------------- the lab


@pytest.fixture
def spec(spec_file: Callable[..., Path]) -> Path:
    return spec_file(NET)


def test_a_lab_that_is_a_file_is_refused(spec: Path, bblab: Callable[..., Any]) -> None:
    for argv in (["profile", spec, *QUICK], ["runs"], ["specs"], ["new", "a", "--like", "resnet18"]):
        ran = bblab(*argv, "--lab", spec)
        assert ran.code == 2 and "is a file" in ran.err and "--lab DIR" in ran.err


def test_a_lab_that_cannot_be_made_still_shows_the_profile(spec: Path, bblab: Callable[..., Any]) -> None:
    ran = bblab("profile", spec, *QUICK, "--json", "-", "--lab", "/proc/none")
    assert ran.code == 1 and "/proc/none/lab.sqlite cannot be used" in ran.err and "--lab DIR" in ran.err
    (row,) = json.loads(ran.out)
    assert row["run_id"] is None and row["forms"]["deploy"]["params"] == 3 * 8 * 9 + 8
    ran = bblab("new", "mine", "--like", "resnet18", "--lab", "/proc/none")
    assert ran.code == 1 and "cannot be written" in ran.err
    assert bblab("runs", "--lab", "/proc/none").code == 0


def test_a_read_only_notebook_is_told_and_the_profile_shown(
    spec: Path, bblab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        error = sqlite3.OperationalError("attempt to write a readonly database")
        error.sqlite_errorcode = sqlite3.SQLITE_READONLY
        raise error

    monkeypatch.setattr(Store, "_insert", refused)
    ran = bblab("profile", spec, *QUICK)
    assert ran.code == 1 and "cannot be written" in ran.err and "parameters" in ran.out


def test_a_corrupt_notebook_is_moved_aside_never_overwritten(spec: Path, bblab: Callable[..., Any], lab: Path) -> None:
    damaged = b"SQLite format 3\0" + os.urandom(5000)
    (lab / "lab.sqlite").write_bytes(damaged)
    for argv in (["runs"], ["show", "1"], ["find", "0.15"], ["diff", "1", "2"]):
        ran = bblab(*argv)
        assert ran.code == 1 and "is damaged" in ran.err, argv
    assert (lab / "lab.sqlite").read_bytes() == damaged, "reading changes nothing"
    ran = bblab("profile", spec, *QUICK)
    assert ran.code == 0 and "was damaged" in ran.err
    (aside,) = lab.glob("lab.sqlite.corrupt-*")
    assert aside.read_bytes() == damaged
    assert "1 run" in bblab("runs").out


def test_someone_elses_database_is_left_alone(spec: Path, bblab: Callable[..., Any], lab: Path) -> None:
    with closing(sqlite3.connect(lab / "lab.sqlite")) as other, other:
        other.execute("CREATE TABLE theirs (x)")
    before = (lab / "lab.sqlite").read_bytes()
    ran = bblab("profile", spec, *QUICK)
    assert ran.code == 1 and "another program" in ran.err
    assert (lab / "lab.sqlite").read_bytes() == before


# ---------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test's own, and a memory that starts empty."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BBLAB_CACHE", str(folder))
    ops.MEMORY.forget()
    yield folder
    ops.MEMORY.forget()


@pytest.mark.parametrize("state", ["garbage", "torn", "wrong values", "a folder", "a file", "unwritable"])
def test_a_spoilt_cache_costs_time_only(
    state: str, own_cache: Path, spec: Path, bblab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = bblab("profile", spec, "--no-latency", "--json", "-")
    file = own_cache / "ops.sqlite"
    ops.MEMORY.forget()
    if state == "garbage":
        file.write_bytes(b"garbage" * 1000)
    elif state == "torn":
        file.write_bytes(file.read_bytes()[:5000] + b"\xff" * 3000)
    elif state == "wrong values":
        with closing(sqlite3.connect(file)) as db, db:
            db.execute("UPDATE remembered SET value = '[1]'")
    elif state == "a folder":
        file.unlink()
        file.mkdir()
    elif state == "a file":
        monkeypatch.setenv("BBLAB_CACHE", str(spec))
    else:
        monkeypatch.setenv("BBLAB_CACHE", "/proc/none/cache")
    for _ in range(2):
        ran = bblab("profile", spec, "--no-latency", "--json", "-")
        assert ran.code == 0 and ran.err == ""
        again, before = json.loads(ran.out)[0], json.loads(good.out)[0]
        assert {**again, "run_id": 0} == {**before, "run_id": 0}
        ops.MEMORY.forget()


# ---------------------------------------------------------------------------------------------- real processes


def start(*argv: object, lab: Path, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*BBLAB, *map(str, argv), "--lab", str(lab)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **more,
    )


def ended(process: subprocess.Popen[str], timeout_s: float = 120) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def workers_of(pid: int) -> set[int]:
    """The latency workers that a process has started, as Linux lists them."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"bblab.latency.worker" in (folder / "cmdline").read_bytes():
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == pid:
                    found.add(int(folder.name))
    return found


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def all_gone(pids: set[int], within_s: float = 30) -> bool:
    deadline = time.monotonic() + within_s
    while any(is_alive(p) for p in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def remembered(spec: Path, bblab: Callable[..., Any]) -> Path:
    """A spec that needs no torch any more, with one run in the notebook."""
    assert bblab("profile", spec, *QUICK).code == 0
    return spec


def test_a_full_disk_is_told_and_loses_nothing(remembered: Path, lab: Path) -> None:
    before = Lab(lab)
    with before.notebook(read_only=True) as store:
        kept = store.runs()
    size = (lab / "lab.sqlite").stat().st_size

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    code, out, err = ended(start("profile", remembered, *QUICK, lab=lab, preexec_fn=limited))
    assert code == 1 and "Traceback" not in err
    assert "cannot be read or written" in err or "disk is full" in err
    assert "parameters" in out, "what was computed is shown"
    with before.notebook(read_only=True) as store:
        assert store.runs()[-len(kept) :] == kept


def test_two_profiles_at_once_are_both_kept(remembered: Path, lab: Path) -> None:
    both = [start("profile", remembered, *QUICK, lab=lab) for _ in range(2)]
    assert [ended(p)[0] for p in both] == [0, 0]
    with Lab(lab).notebook(read_only=True) as store:
        assert [r.id for r in store.runs(kind="profile")] == [3, 2, 1]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for workers as Linux lists them")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_measurement_that_is_stopped_keeps_what_it_had(number: signal.Signals, remembered: Path, lab: Path) -> None:
    process = start("profile", remembered, "--budget", "60", lab=lab)
    seen: set[int] = set()
    deadline = time.monotonic() + 100
    while len(seen) < 2 and time.monotonic() < deadline and process.poll() is None:
        seen |= workers_of(process.pid)  # a second worker: the first has finished
        time.sleep(0.01)
    assert len(seen) == 2, ended(process)
    process.send_signal(number)
    code, out, err = ended(process)
    assert all_gone(seen), "a worker outlived the command"
    assert "Traceback" not in out + err
    with Lab(lab).notebook(read_only=True) as store:
        runs = store.runs()
        assert runs[-1].id == 1 and runs[-1].kind == "profile", "what was stored before"
        timings = [r for r in runs if r.kind == "timing"]
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 1 and "stopped" in err and "stored as run" in out
        assert {r.inputs["form"] for r in timings} == {"train", "deploy"}
    after = ended(start("runs", lab=lab))
    assert after[0] == 0 and "next: bblab show" in after[1]


def test_ctrl_c_before_anything_is_measured_is_a_failed_run(spec: Path, lab: Path) -> None:
    code = (
        "import sys\nfrom bblab.cli import main\nfrom bblab.lab import Lab\n"
        "def pressed(*_, **__): raise KeyboardInterrupt\nLab.check = pressed\nsys.exit(main(sys.argv[1:]))"
    )
    ran = subprocess.run([sys.executable, "-c", code, "check", str(spec)], capture_output=True, text=True)
    assert ran.returncode == 1 and "stopped by hand" in ran.stderr and "Traceback" not in ran.stderr


def test_a_closed_pipe_and_a_full_screen_are_no_crash() -> None:
    ran = subprocess.run(f"{sys.executable} -m bblab blocks | head -1", shell=True, capture_output=True, text=True)
    assert ran.stdout.startswith("block") and ran.stderr == ""
    if Path("/dev/full").exists():
        ran = subprocess.run(
            f"{sys.executable} -m bblab blocks > /dev/full", shell=True, capture_output=True, text=True
        )
        assert ran.returncode == 1 and "cannot be written" in ran.stderr and "Traceback" not in ran.stderr
