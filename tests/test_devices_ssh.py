"""A board behind ssh: a real sshd on 127.0.0.1, with keys made for the test, and a worker pushed to it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bblab.errors import BblabError, RunError
from bblab.latency import Broken, Candidate, Plan, devices, measure, wire, worker
from bblab.latency.devices import bundle, remote
from bblab.latency.devices.ssh import parse_address

SSHD = shutil.which("sshd") or next((p for p in ("/usr/sbin/sshd",) if os.access(p, os.X_OK)), None)
needs_sshd = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh-keygen") is None, reason="needs sshd: apt-get install openssh-server"
)
pytest.importorskip("asyncssh", reason="needs asyncssh")


@dataclass
class Board:
    """The loopback sshd, and what is needed to reach it."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        return f"ssh:127.0.0.1:{self.port}"

    def options(self, **more: object) -> dict[str, object]:
        return {
            "key": str(self.folder / "user"),
            "known_hosts": str(self.folder / "known_hosts"),
            "folder": str(self.folder / "base"),
            "python": sys.executable,
            **more,
        }

    def device(self, **more: object) -> remote.Remote:
        found = devices.find(self.name, self.options(**more))
        assert isinstance(found, remote.Remote)
        return found

    def left(self) -> list[str]:
        return sorted(p.name for p in (self.folder / "base").iterdir())

    def drop_connections(self) -> None:
        """As if the cable were pulled: the sshds that serve a connection die, the listening one stays."""
        listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines()[1:]:
            pid, parent = map(int, line.split())
            if parent == self.process.pid:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user", "stranger"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(folder / name)], check=True
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "authorized").chmod(0o600)
    (folder / "base").mkdir()
    host_key = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    config = f"""
        Port {port}
        ListenAddress 127.0.0.1
        HostKey {folder}/host
        PidFile {folder}/pid
        AuthorizedKeysFile {folder}/authorized
        StrictModes no
        UsePAM no
        PasswordAuthentication no
        PermitRootLogin yes
        SetEnv HOME={folder}
        """  # a home of its own: the shell's start files of the person who runs the tests are none of ours
    (folder / "config").write_text(textwrap.dedent(config))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    process = subprocess.Popen(
        [str(SSHD), "-D", "-e", "-f", str(folder / "config")], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            pytest.skip("sshd did not start here")
        yield Board(port, folder, process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def board(sshd: Board) -> Iterator[Board]:
    """The board, with its folder empty before, and, which every test must see to, after."""
    yield sshd
    left = sshd.left()
    for name in left:
        shutil.rmtree(sshd.folder / "base" / name)
    assert left == []


# Addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pi@board", "ssh:pi@board"),
        ("board", "ssh:board"),
        ("pi@192.168.1.7:2222", "ssh:pi@192.168.1.7:2222"),
        ("pi@[fe80::1]:22", "ssh:pi@fe80::1:22"),
    ],
)
def test_an_address_is_user_host_and_port(text: str, shown: str) -> None:
    assert str(parse_address(text)) == shown


@pytest.mark.parametrize("text", ["", "@board", "pi@", "pi@board:0", "pi@board:99999", "pi@bo ard", "-oProxyCommand=x"])
def test_a_wrong_address_is_refused(text: str) -> None:
    with pytest.raises(BblabError, match="no device 'ssh:") as refused:
        parse_address(text)
    assert "ssh:USER@HOST" in refused.value.hint


def test_an_unknown_option_lists_those_there_are() -> None:
    with pytest.raises(BblabError, match="no option 'pyton'") as refused:
        devices.find("ssh:pi@board", {"pyton": "python3"})
    assert "did you mean 'python'" in refused.value.hint


def test_cores_are_checked_before_anything_is_reached() -> None:
    with pytest.raises(BblabError, match="cores 'bigg'"):
        devices.find("ssh:pi@board", {"cores": "bigg"})


# The pushed worker ----------------------------------------------------------------------------------------------


def test_the_bundle_needs_nothing_of_bblab(tmp_path: Path) -> None:
    """With an empty PYTHONPATH and site-packages of other packages only, the zip's own bblab is what runs."""
    place = tmp_path / "worker.zip"
    place.write_bytes(bundle.worker())
    code = f"import sys, runpy; sys.argv = ['w', 'about']; runpy.run_path({str(place)!r}, run_name='__main__')"
    code += "; import bblab; print(bblab.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    about, where = done.stdout.splitlines()
    assert where.startswith(str(place))
    told = json.loads(about.partition(" ")[2])
    assert told["runtimes"]["ort"] and told["python"].startswith("3.")


def test_the_bundle_is_the_same_every_time() -> None:
    first = bundle.worker()
    bundle.worker.cache_clear()
    assert bundle.worker() == first


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.12", "3.13"])
def test_the_worker_starts_on_other_pythons(version: str, tmp_path: Path) -> None:
    pyenv = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python3"))
    found = shutil.which(f"python{version}")
    works = found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0
    python = found if works else str(pyenv[-1]) if pyenv else None
    if python is None:
        pytest.skip(f"no Python {version} here")
    place = tmp_path / "worker.zip"
    place.write_bytes(bundle.worker())
    done = subprocess.run([python, str(place), "about"], capture_output=True, text=True)
    assert done.stdout.startswith("BBLAB-ABOUT "), done.stderr


# Through sshd ---------------------------------------------------------------------------------------------------


def tiny(width: int, label: str) -> Candidate:
    def make():  # type: ignore[no-untyped-def]
        import torch

        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.ReLU(), torch.nn.Conv2d(width, 8, 3)).eval()

    return Candidate(label, label, "deploy", (3, 32, 32), label, make)


@needs_sshd
def test_operators_are_timed_on_the_board(board: Board) -> None:
    from bblab.latency import perop

    plan = Plan(processes=1, rounds=2, warmups=1)
    found, problem = perop.measure(tiny(8, "small"), (), device=board.device(), plan=plan)
    assert problem is None and found is not None
    assert found.device == board.name
    assert [a.op for a in found.table.layers].count("Conv") == 2
    assert all(len(a.samples_s[0]) == 6 for a in found.table.layers)  # two rounds of three profiled calls


@needs_sshd
def test_a_real_measurement_over_ssh(board: Board) -> None:
    device = board.device()
    small, reference = measure(
        [tiny(8, "small")], tiny(16, "large"), device=device, plan=Plan(processes=2, rounds=2, warmups=1)
    )
    assert (small.processes, small.rounds, small.warm.calls) == (2, 2, 12)
    assert small.device == board.name and small.runtime == "ort"
    assert all(t > 0 for process in small.warm.cpu_s for t in process)
    assert [len(p) for p in small.speedometer.cpu_s] == [3, 3]
    for record in (small.conditions_before, small.conditions_after):
        assert record["cores"] == os.cpu_count() and record["os"].startswith("Linux")
        assert record["load_average"] and "python" not in record  # nothing of this side's
    assert reference.notes == ()


@needs_sshd
def test_the_same_device_opens_again_and_sends_a_file_once(board: Board, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(os.urandom(300_000))
    device = board.device()
    for _ in range(2):
        with device:
            place = device.send(file)
            assert device.send(file) == place
            assert Path(device.folder, place).read_bytes() == file.read_bytes()
            assert len(board.left()) == 1
        assert board.left() == []


@needs_sshd
def test_an_unknown_host_is_refused_with_its_fingerprint(board: Board, tmp_path: Path) -> None:
    empty = tmp_path / "known_hosts"
    empty.write_text("")
    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(board.folder / "host.pub")], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    with pytest.raises(RunError, match="is not in ") as refused, board.device(known_hosts=str(empty)):
        pass
    assert shown in refused.value.message and shown.startswith("SHA256:")
    assert f"ssh-keyscan -p {board.port} 127.0.0.1" in refused.value.hint


@needs_sshd
def test_a_changed_host_key_is_refused(board: Board, tmp_path: Path) -> None:
    other = " ".join((board.folder / "stranger.pub").read_text().split()[:2])
    file = tmp_path / "known_hosts"
    file.write_text(f"[127.0.0.1]:{board.port} {other}\n")
    with pytest.raises(RunError, match="host key") as refused, board.device(known_hosts=str(file)):
        pass
    assert "ssh-keygen" in refused.value.hint and "-R" in refused.value.hint


@needs_sshd
def test_a_key_that_is_not_accepted_says_how_to_put_it_there(board: Board) -> None:
    device = board.device(key=str(board.folder / "stranger"))
    with pytest.raises(RunError, match="accepts none of our keys") as refused, device:
        pass
    assert "ssh-copy-id" in refused.value.hint


@needs_sshd
def test_a_missing_key_file_is_named(board: Board) -> None:
    with pytest.raises(BblabError, match=r"there is no key .*nokey"), board.device(key="/nokey"):
        pass


def test_nobody_listening_is_told(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(RunError, match="cannot be reached") as refused, devices.find(f"ssh:pi@127.0.0.1:{port}"):
        pass
    assert f"ssh -p {port} pi@127.0.0.1 true" in refused.value.hint


@needs_sshd
def test_a_missing_runtime_is_told_before_anything_is_converted(board: Board, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)

    def never() -> None:
        raise AssertionError("converted for a device that cannot run it")

    net = Candidate("a", "a", "deploy", (3, 8, 8), "never-converted", never)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="needs onnxruntime, which is not installed") as refused:
        measure([net], net, device=board.device(python=str(bare / "bin" / "python")))
    assert board.name in refused.value.message and "--python" in refused.value.hint


@needs_sshd
def test_no_python_at_all_is_told(board: Board) -> None:
    device = board.device(python="/no/such/python")
    with device, pytest.raises(RunError, match=r"no usable Python there .*no/such/python"):
        devices.prepare(device, "ort")


@needs_sshd
def test_a_full_disk_is_told(board: Board) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("needs /dev/full")
    with board.device() as device, pytest.raises(RunError, match=r"could not be written: .*No space left"):
        device.link.put(b"x" * 100_000, "/dev/full")


@needs_sshd
def test_a_folder_that_cannot_be_made_is_told(board: Board) -> None:
    with pytest.raises(RunError, match="no folder can be made in /proc/nowhere"), board.device(folder="/proc/nowhere"):
        pass


# Workers of other makes -----------------------------------------------------------------------------------------

REQUEST = wire.Request("ort", 1, 0, 0, (wire.ModelFile("a", "/a.onnx", (1, 3, 8, 8)),), ((0,), (0,)))
HEAD = """
    import json, os, subprocess, sys, time
    request = json.loads(sys.stdin.readline())
    def say(**m): print("BBLAB " + json.dumps(m), flush=True)
    say(kind="hello", wire=2, protocol=2, runtime="ort", runtime_version="1", precision="float32", speedometer="s")
    say(kind="ready", models=1)
"""
ROUNDS = """
    for r in range(len(request["orders"])):
        say(kind="speed", round=r, wall_s=0.003, cpu_s=0.003)
        for state in ("cold", "warm", "warm", "warm"):
            say(kind="call", round=r, model=0, state=state, wall_s=0.5, cpu_s=0.25)
    say(kind="speed", round=len(request["orders"]), wall_s=0.003, cpu_s=0.003)
    say(kind="end", rounds=len(request["orders"]))
"""


@pytest.fixture
def acting(board: Board, tmp_path: Path) -> Callable[[str], remote.Remote]:
    """The board with this code as its worker."""

    def make(code: str, *, device: remote.Remote | None = None) -> remote.Remote:
        script = tmp_path / "act.py"
        script.write_text(textwrap.dedent(code))
        made = device or board.device()
        command = f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}"
        made.engine_for = lambda board, runtime: remote.Engine(command)
        return made

    return make


@needs_sshd
def test_garbage_on_the_output_is_passed_over_and_counted(acting: Callable[..., remote.Remote]) -> None:
    noise = "\n    sys.stdout.buffer.write(bytes(range(128, 256)) + b'\\nlinker: warning\\n'); sys.stdout.flush()\n"
    with acting(HEAD + noise + ROUNDS) as device:
        heard = list(device.run(REQUEST, silence_s=20))
        assert heard[-1] == wire.End(2) and wire.Call(1, 0, "warm", 0.5, 0.25) in heard
        assert devices.notes(device) == ("2 line(s) on the workers' output were not bblab's and were passed over",)


@needs_sshd
def test_a_crash_shows_the_boards_last_words(acting: Callable[..., remote.Remote]) -> None:
    code = HEAD + "\n    print('Illegal instruction in conv', file=sys.stderr); sys.exit(9)\n"
    with acting(code) as device, pytest.raises(RunError, match="exited with code 9") as failed:
        list(device.run(REQUEST, silence_s=20))
    assert "| Illegal instruction in conv" in str(failed.value)


@needs_sshd
def test_a_killed_worker_is_named(acting: Callable[..., remote.Remote]) -> None:
    with acting(HEAD + "\n    os.kill(os.getpid(), 9)\n") as device, pytest.raises(RunError, match="SIGKILL") as failed:
        list(device.run(REQUEST, silence_s=20))
    assert "out of memory" in failed.value.hint


def is_running(pid: int) -> bool:
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(status) and not status.startswith("Z")


def gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_running(pid)


HANG = """
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open({path!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
    say(kind="speed", round=0, wall_s=0.003, cpu_s=0.003)
    time.sleep(600)
"""


@needs_sshd
def test_a_hanging_worker_is_ended_with_its_children(acting: Callable[..., remote.Remote], tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with acting(HEAD + HANG.format(path=str(file))) as device:
        with pytest.raises(RunError, match="said nothing for 1 s"):
            list(device.run(REQUEST, silence_s=1))
        assert all(gone(int(pid)) for pid in file.read_text().split())


@needs_sshd
def test_closing_early_ends_the_worker_on_the_board(acting: Callable[..., remote.Remote], tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with acting(HEAD + HANG.format(path=str(file))) as device:
        stream = device.run(REQUEST, silence_s=20)
        while not isinstance(next(stream), wire.Speed):
            pass
        pids = [int(pid) for pid in file.read_text().split()]
        assert all(map(is_running, pids))
        stream.close()
        assert all(map(gone, pids))


BREAKS_OFF = """
    if os.path.exists({path!r}):
        open({path!r} + ".pids", "w").write(str(os.getpid()))
        say(kind="speed", round=0, wall_s=0.003, cpu_s=0.003)
        time.sleep(600)
    open({path!r}, "w").close()
"""


@needs_sshd
def test_a_connection_lost_halfway_keeps_what_was_measured(
    acting: Callable[..., remote.Remote], board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process never ends; the connection is cut while it runs. Its leftovers go at the next connection."""
    from bblab.latency.models import Model

    file = tmp_path / "net"
    file.write_bytes(b"net")
    monkeypatch.setattr("bblab.latency.models.converted", lambda net, runtime: Model(file, "sha", 3, 0.0))
    mark = tmp_path / "mark"
    device = acting(HEAD + BREAKS_OFF.format(path=str(mark)) + ROUNDS)
    pids = Path(f"{mark}.pids")

    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            if pids.exists() and pids.read_text():
                board.drop_connections()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    net = tiny(8, "a")
    try:
        with pytest.raises(Broken, match=r"connection to .* broke") as broken:
            measure([net], net, device=device, plan=Plan(processes=3, rounds=2))
    finally:
        stop.set()
        watcher.join()
    (kept,) = broken.value.partial
    assert (kept.processes, kept.rounds) == (1, 2)
    assert any("after 1 process" in note for note in kept.notes)
    assert kept.conditions_after["absent"] == ["everything: the device did not answer"]
    assert len(board.left()) == 1  # it could not be reached to clean up
    pid = int(pids.read_text())
    with board.device() as again:
        assert len(board.left()) == 1 and again.folder.endswith(board.left()[0])
        assert any("cleared 1 folder" in note for note in devices.notes(again))
        assert gone(pid)


@needs_sshd
def test_anothers_folder_and_other_files_are_left_alone(board: Board) -> None:
    others = [board.folder / "base" / name for name in ("bblab-0123abcd-89abcdef", "bblab-cache", "mine")]
    for folder in others:
        folder.mkdir()
    old = time.time() - 3 * 24 * 3600
    for folder in others[1:]:
        os.utime(folder, (old, old))
    with board.device():
        assert all(folder.exists() for folder in others)
    os.utime(others[0], (old, old))  # of another machine's bblab, and nobody's any more
    with board.device():
        assert [folder.exists() for folder in others] == [False, True, True]
    for folder in others[1:]:
        folder.rmdir()


@needs_sshd
def test_two_measurements_at_once_on_one_board_are_refused(board: Board) -> None:
    with board.device(), pytest.raises(RunError, match=f"measured by another bblab .process {os.getpid()}"):
        board.device().__enter__()
    with board.device():
        pass


@needs_sshd
def test_the_speedometer_runs_alone(board: Board) -> None:
    with board.device() as device:
        name, seconds = remote.speedometer_s(device, "ort", readings=3)
        assert name == worker.SPEEDOMETER and 0 < seconds < 10


@needs_sshd
def test_a_board_without_python_runs_a_program(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    program = tmp_path / "runner"
    source = Path(__file__).with_name("wire_runner.c")
    subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True, capture_output=True)
    monkeypatch.setattr(remote, "static_program", lambda runtime, machine: (str(program),))
    model = tmp_path / "model"
    model.write_bytes(b"net")
    with board.device(python="/no/such/python") as device:
        devices.prepare(device, "ncnn")
        request = wire.Request("ncnn", 1, 0, 0, (wire.ModelFile("a", device.send(model), (1, 3, 8, 8)),), ((0,), (0,)))
        heard = list(device.run(request, silence_s=20))
        assert heard[0].kind == "hello" and heard[-1] == wire.End(2)
        assert devices.notes(device)[0].startswith("by bblab's own runner: no usable Python there (/no/such/python")
        assert remote.speedometer_s(device, "ncnn")[0] == "wire-runner"


@needs_sshd
def test_a_mask_reaches_the_worker(acting: Callable[..., remote.Remote], board: Board) -> None:
    last = max(os.sched_getaffinity(0))
    code = HEAD + "\n    print(sorted(os.sched_getaffinity(0)), file=sys.stderr); sys.exit(3)\n"
    device = acting(code, device=board.device(cores=f"{1 << last:x}"))
    with device, pytest.raises(RunError) as failed:
        list(device.run(REQUEST, silence_s=20))
    assert f"| [{last}]" in str(failed.value)


@needs_sshd
def test_cores_that_are_not_there_are_refused(board: Board) -> None:
    with board.device(cores="f" * 64) as device, pytest.raises(BblabError, match="not online there"):
        list(device.run(REQUEST, silence_s=20))
    assert board.left() == []
