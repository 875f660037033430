"""Workers as child processes: good ones, crashing, hanging and chattering ones, and one real measurement."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bblab.errors import RunError
from bblab.latency import Candidate, Interrupted, Plan, measure, sentence, wire, worker
from bblab.latency.devices import cores, talk
from bblab.latency.devices import host as host_device
from bblab.latency.devices.host import Host

REQUEST = wire.Request("ort", 1, 0, 0, (wire.ModelFile("a", "/a.onnx", (1, 3, 8, 8)),), ((0,), (0,)))


def host(code: str) -> Host:
    """A host whose worker is this code."""
    return Host(command=(sys.executable, "-c", textwrap.dedent(code)))


def messages(device: Host, *, silence_s: float = 20.0) -> list[wire.Message]:
    return list(device.run(REQUEST, silence_s=silence_s))


GOOD = """
    import json, sys
    request = json.loads(sys.stdin.readline())
    assert request["orders"] == [[0], [0]]
    def say(**m): print("BBLAB " + json.dumps(m))
    say(kind="hello", wire=2, protocol=2, runtime="ort", runtime_version="1", precision="float32", speedometer="c++")
    print("a library says hello")
    say(kind="ready", models=1)
    for r in range(2):
        say(kind="speed", round=r, wall_s=0.003, cpu_s=0.003)
        say(kind="call", round=r, model=0, state="warm", wall_s=0.5, cpu_s=0.25)
    say(kind="speed", round=2, wall_s=0.003, cpu_s=0.003)
    say(kind="end", rounds=2)
"""


def test_a_worker_of_another_make_is_understood() -> None:
    heard = messages(host(GOOD))
    assert [m.kind for m in heard] == ["hello", "ready", "speed", "call", "speed", "call", "speed", "end"]
    assert wire.Call(1, 0, "warm", 0.5, 0.25) in heard


def test_a_crash_shows_the_last_words() -> None:
    with pytest.raises(RunError, match="exited with code 3") as failed:
        messages(host("import sys; sys.stderr.write('cannot allocate the arena\\n'); sys.exit(3)"))
    assert "| cannot allocate the arena" in str(failed.value)


def test_only_the_last_lines_of_a_long_complaint_are_shown() -> None:
    with pytest.raises(RunError) as failed:
        messages(host("import sys\nfor i in range(50000): sys.stderr.write(f'line {i}\\n')\nsys.exit(1)"))
    assert "line 49999" in str(failed.value)
    assert "line 49980\n" not in str(failed.value)


def test_a_kill_midway_is_named() -> None:
    code = GOOD.replace(
        "for r in range(2):", "import os; sys.stdout.flush(); os.kill(os.getpid(), 9)\n    for r in ():"
    )
    heard = []
    with pytest.raises(RunError, match="was killed by SIGKILL") as failed:
        for message in host(code).run(REQUEST, silence_s=20):
            heard.append(message.kind)
    assert heard == ["hello", "ready"]
    assert "out of memory" in failed.value.hint


def test_a_crash_after_the_last_word_is_not_swallowed() -> None:
    with pytest.raises(RunError, match="exited with code 7"):
        messages(host(GOOD + "    sys.exit(7)\n"))


def test_garbage_alone_is_a_failure_that_shows_it() -> None:
    with pytest.raises(RunError, match="before it had finished") as failed:
        messages(host("print('%PDF-1.4 garbage')"))
    assert "| %PDF-1.4 garbage" in str(failed.value)


def test_bytes_that_are_no_text_do_not_break_the_reader() -> None:
    noise = "import sys; sys.stdout.buffer.write(bytes(range(128, 256)) + b'\\n'); sys.stdout.flush()"
    assert messages(host(noise + "\n" + textwrap.dedent(GOOD)))[-1] == wire.End(2)


def test_a_line_cut_off_is_a_failure() -> None:
    with pytest.raises(wire.WireError, match="cut off"):
        messages(host('print(\'BBLAB {"kind": "call", "rou\', end=\'\')'))


def test_a_failure_told_by_the_worker_is_passed_on() -> None:
    with pytest.raises(RunError, match="failed: no NPU here"):
        messages(host("""print('BBLAB {"kind": "error", "message": "no NPU here"}'); raise SystemExit(1)"""))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that nobody has reaped is dead all the same.
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(status.strip()) and not status.strip().startswith("Z")


def gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_running(pid)


HANGING = """
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, file=open({path!r}, "w"), flush=True)
    print('BBLAB {{"kind": "ready", "models": 1}}', flush=True)
    time.sleep(600)
"""


def test_a_second_measurement_on_the_host_is_refused_in_words_or_waits() -> None:
    from bblab.latency.devices import lock

    with Host():
        with pytest.raises(
            RunError, match=f"this machine is being measured by another bblab .process {os.getpid()}."
        ) as no:
            Host().__enter__()
        assert "--wait" in no.value.hint
    first = lock.locked("host", "this machine")
    assert first is not None
    slept: list[float] = []

    def sleep(seconds: float) -> None:  # the other one ends meanwhile
        slept.append(seconds)
        first.close()

    second = lock.locked("host", "this machine", waits=True, sleep=sleep)
    assert second is not None and len(slept) == 1
    second.close()


def test_where_files_cannot_be_locked_it_is_measured_unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    from bblab.latency.devices import lock

    def no_locks(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    taken = lock.locked("host", "this machine")
    assert taken is not None
    taken.close()


def machine(tmp_path: Path, khz: dict[int, int] | None = None, capacity: dict[int, int] | None = None) -> Path:
    """A / with the sysfs of such cores."""
    for name, values in (("cpufreq/cpuinfo_max_freq", khz or {}), ("cpu_capacity", capacity or {})):
        for cpu, value in values.items():
            file = tmp_path / f"sys/devices/system/cpu/cpu{cpu}" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{value}\n")
    return tmp_path


def test_workers_are_held_to_the_fast_cores_of_a_hybrid_and_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    # two cores of 5.1 and 5.0 GHz are one kind, two of 3.8 another
    fast = machine(tmp_path, khz={0: 5_000_000, 1: 5_100_000, 2: 3_800_000, 3: 3_800_000})
    real = host_device.topology
    monkeypatch.setattr(host_device, "topology", lambda: real(fast))
    assert Host().choice(1) == cores.Choice((0, 1), "held to the fast cores 0,1 of 2 at 5.10 GHz + 2 at 3.80 GHz")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 3})  # a user who has taken core 0 away
    assert Host().choice(1).cpus == (1,)


def test_by_capacity_where_no_clock_can_be_read_and_not_at_all_where_all_are_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    hybrid = machine(tmp_path / "a", capacity={0: 400, 1: 1024, 2: 1024})
    real = host_device.topology
    monkeypatch.setattr(host_device, "topology", lambda: real(hybrid))
    assert Host().choice(1).cpus == (1, 2)
    monkeypatch.setattr(host_device, "topology", lambda: real(tmp_path / "nothing"))
    assert Host().choice(1) == cores.Choice()


def test_a_hanging_worker_is_ended_with_its_children(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with pytest.raises(RunError, match="said nothing for 1 s"):
        messages(host(HANGING.format(path=str(file))), silence_s=1)
    assert gone(int(file.read_text()))


def test_closing_early_ends_the_worker_and_its_children(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    stream = host(HANGING.format(path=str(file))).run(REQUEST, silence_s=20)
    assert next(stream) == wire.Ready(1)
    pid = int(file.read_text())
    assert is_running(pid)
    stream.close()
    assert gone(pid)


# The worker's own loop ------------------------------------------------------------------------------------------


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_worker_does_as_it_is_told_and_times_only_the_calls() -> None:
    clock, ran, said = FakeClock(), [], []

    def call(model: int) -> None:
        ran.append(model)
        clock.now += 1.0 + model

    def say(batch: list[wire.Message]) -> None:
        said.append(batch)
        clock.now += 100.0  # writing is slow, and is no part of any time

    def kernel() -> None:
        clock.now += 0.5

    request = wire.Request("ort", 1, 2, 0, (wire.ModelFile("a", "", ()),) * 2, ((1, 0), (0, 1)), fill_s=3.5)
    bench = made_up(clock, cpu=lambda: clock.now / 2, kernel=kernel)
    worker.run_rounds([lambda: call(0), lambda: call(1)], request, say, bench)
    # Two warm-ups each; then the visits: a cold call, others until 3.5 s have passed since it began (model 0 takes 1 s:
    # three more; model 1 takes 2 s: one more), three warm ones.
    visits = {0: [0] * (1 + 3 + 3), 1: [1] * (1 + 1 + 3)}
    assert ran == [0, 0, 1, 1, *visits[1], *visits[0], *visits[0], *visits[1]]

    def spoken(number: int, at: int, wall_s: float) -> list[wire.Message]:
        states = ("cold", "warm", "warm", "warm")
        return [wire.Call(number, at, state, wall_s, wall_s / 2, 0) for state in states]

    assert said == [
        [wire.Ready(2, 5, 0.1)],
        [wire.Speed(0, 0.5, 0.25), *spoken(0, 1, 2.0), *spoken(0, 0, 1.0)],
        [wire.Speed(1, 0.5, 0.25), *spoken(1, 0, 1.0), *spoken(1, 1, 2.0)],
        [wire.Speed(2, 0.5, 0.25)],
    ]


def made_up(clock: FakeClock, **how: Any) -> worker.Bench:
    """Clocks that tests set, a core and a slice that nobody has."""
    given: dict[str, Any] = {"cpu": clock, "kernel": lambda: None, **how}
    return worker.Bench(wall=clock, preempted=lambda: 0, hold=lambda request: (5, 0.1), **given)


def test_a_net_of_six_milliseconds_needs_no_further_call_before_the_warm_ones() -> None:
    clock, ran = FakeClock(), []

    def call(seconds: float) -> None:
        ran.append(seconds)
        clock.now += seconds

    request = wire.Request("ort", 1, 0, 0, (wire.ModelFile("a", "", ()),) * 2, ((0, 1),))
    worker.run_rounds([lambda: call(0.004), lambda: call(0.006)], request, lambda batch: None, made_up(clock))
    assert ran == [0.004] * (1 + 1 + 3) + [0.006] * (1 + 0 + 3)


def test_paced_calls_begin_on_a_cameras_beat() -> None:
    clock, started, said = FakeClock(), [], []
    lengths = iter([0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 1.5, 0.25, 0.25])  # cold, two to fill, warm x 3, paced x 3

    def call() -> None:
        started.append(clock.now)
        clock.now += next(lengths)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    request = wire.Request(
        "ort", 1, 0, 0, (wire.ModelFile("a", "", ()),), ((0,),), fill_s=0.6, pace_s=1.0, paced_calls=3
    )
    worker.run_rounds([call], request, said.extend, made_up(clock, sleep=sleep))
    # The last warm call ends at 1.5: beats at 2.5, 3.5, 4.5. The first paced call lasts until 4.0, so the second begins
    # at once, and the third on its beat.
    assert started[6:] == [2.5, 4.0, 4.5]
    assert [m.wall_s for m in said if isinstance(m, wire.Call) and m.state == "paced"] == [1.5, 0.25, 0.25]


def test_calls_that_were_preempted_are_counted() -> None:
    switches = iter([3, 3, 3, 5, 5, 5, 5, 6])
    request = wire.Request("ort", 1, 0, 0, (wire.ModelFile("a", "", ()),), ((0,),), fill_s=0.0)
    said: list[wire.Message] = []
    bench = worker.Bench(kernel=lambda: None, hold=lambda request: (None, None))
    bench.preempted = lambda: next(switches, 6)
    bench.speed = lambda number: wire.Speed(number, 1, 1)  # type: ignore[method-assign]
    worker.run_rounds([lambda: None], request, said.extend, bench)
    assert [m.preempted for m in said if isinstance(m, wire.Call)] == [0, 2, 0, 1]


def test_a_worker_holds_itself_to_one_core_and_says_which() -> None:
    code = (
        "import os; from bblab.latency import holding, wire; r = wire.Request('ort', 1, 0, 0, (), ()); "
        "cpu, slice_s = holding.hold(r); print(cpu in os.sched_getaffinity(0), len(os.sched_getaffinity(0)), slice_s)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    is_there, count, slice_s = done.stdout.split()
    assert (is_there, count) == ("True", "1")
    assert slice_s == "None" or float(slice_s) == pytest.approx(0.1)


def test_several_threads_are_not_held_to_one_core() -> None:
    code = (
        "import os; from bblab.latency import holding, wire; before = os.sched_getaffinity(0); "
        "cpu, _ = holding.hold(wire.Request('ort', 2, 0, 0, (), ())); print(cpu, before == os.sched_getaffinity(0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "True"]


def test_the_garbage_collector_rests_during_rounds_only() -> None:
    import gc

    seen = []
    request = wire.Request("ort", 1, 1, 0, (wire.ModelFile("a", "", ()),), ((0,),))
    bench = worker.Bench(kernel=lambda: None, hold=lambda request: (None, None))
    worker.run_rounds([lambda: seen.append(gc.isenabled())], replace(request, fill_s=0), lambda batch: None, bench)
    assert seen == [True, *[False] * 4]  # warm-up, a visit
    assert gc.isenabled()


FAKE_RUNTIME = """
    import sys
    {first}
    from bblab.latency import runtimes, worker
    class Loaded:
        def run(self, x): return [x]
    class Fake:
        name, suffix, precision, pip = "fake", ".fake", "float32", ""
        def version(self): return "1"
        def load(self, path, threads):
            print("printed by a library")
            {load}
            return Loaded()
    runtimes.RUNTIMES.add("fake", Fake)
    {start}
"""


def fake_worker(load: str = "pass", first: str = "pass") -> Host:
    start = "sys.exit(worker.answer(sys.stdin, worker._own_stdout()))"
    return host(FAKE_RUNTIME.format(load=load, first=first, start=start))


FAKE_REQUEST = wire.Request("fake", 1, 1, 0, (wire.ModelFile("a", "x", (1, 3, 8, 8)),), ((0,), (0,)))


def test_the_real_worker_runs_a_runtime_that_prints() -> None:
    heard = list(fake_worker().run(FAKE_REQUEST, silence_s=20))
    assert heard[0] == wire.Hello("fake", "1", "float32", worker.SPEEDOMETER)
    visit = ["speed", *["call"] * 4]
    assert [m.kind for m in heard[1:]] == ["ready", *visit, *visit, "speed", "end"]


def test_what_a_library_prints_never_reaches_the_wire() -> None:
    done = subprocess.run(
        fake_worker()._command,
        input=wire.encode_request(FAKE_REQUEST) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "printed by a library" in done.stderr
    assert all(line.startswith(wire.TAG) for line in done.stdout.splitlines())


def test_a_child_that_escaped_cannot_hold_the_host(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    escaping = HANGING.format(path=str(file)).replace('600)"])', '600)"], start_new_session=True)')
    stream = host(escaping).run(REQUEST, silence_s=20)
    assert next(stream) == wire.Ready(1)
    begin = time.monotonic()
    stream.close()
    os.kill(int(file.read_text()), 9)
    assert time.monotonic() - begin < 10


def test_a_worker_that_cannot_load_a_model_says_which() -> None:
    two = replace(FAKE_REQUEST, models=(*FAKE_REQUEST.models, wire.ModelFile("b", "y", (1, 3, 8, 8))), orders=((0, 1),))
    load = "assert path != 'y', 'no operator Odd'"
    with pytest.raises(talk.ModelRefused, match="AssertionError: no operator Odd") as refused:
        list(fake_worker(load).run(two, silence_s=20))
    assert refused.value.model == 1


def test_the_worker_imports_no_torch() -> None:
    # A torch that cannot be imported: were it wanted anywhere in the worker, this would fail.
    block = "sys.modules['torch'] = None"
    code = FAKE_RUNTIME.format(
        load="import onnxruntime; from bblab.latency.runtimes import ort", first=block, start="del sys.modules['torch']"
    )
    code += "    sys.exit(worker.main(sys.stdin, worker._own_stdout()))\n"
    code = code.replace("del sys.modules['torch']", "runtimes.find('ort'); del sys.modules['torch']")
    heard = list(host(code).run(FAKE_REQUEST, silence_s=20))
    assert heard[-1] == wire.End(2)


def test_a_worker_into_which_torch_slipped_refuses() -> None:
    load = "import types; sys.modules['torch'] = types.ModuleType('torch')"
    with pytest.raises(RunError, match="torch was imported into the worker"):
        list(fake_worker(load).run(FAKE_REQUEST, silence_s=20))


def test_a_worker_whose_runtime_is_made_of_torch_may_have_it() -> None:
    load = "import types; sys.modules['torch'] = types.ModuleType('torch')"
    device = fake_worker(load)
    own = Host(
        command=(
            *device._command[:-1],
            device._command[-1].replace('"float32", ""', '"float32", ""\n    uses_torch = True'),
        )
    )
    assert list(own.run(FAKE_REQUEST, silence_s=20))[-1] == wire.End(2)


def test_an_accelerators_own_clock_takes_the_place_of_wall_time() -> None:
    class OnDevice:
        def run(self, x: object) -> list[object]:
            return [x]

        def seconds(self) -> float:
            return 0.125

    ticks = iter(range(100))
    call = worker._OnInput(OnDevice(), None)
    bench = worker.Bench(wall=lambda: next(ticks), cpu=lambda: 0.0, preempted=lambda: None)
    assert bench.timed(call) == (0.125, 0.0, None)
    assert bench.timed(lambda: None) == (1, 0.0, None)


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = "import sys, bblab.latency; print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# One real measurement -------------------------------------------------------------------------------------------


def tiny(width: int, label: str) -> Candidate:
    def make():  # type: ignore[no-untyped-def]
        import torch

        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.ReLU(), torch.nn.Conv2d(width, 8, 3)).eval()

    return Candidate(label, label, "deploy", (3, 32, 32), label, make)


def test_a_real_measurement_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BBLAB_CACHE", str(tmp_path))
    small, reference = measure([tiny(8, "small")], tiny(16, "large"), plan=Plan(processes=2, rounds=2, warmups=1))
    assert (small.processes, small.rounds, small.warm.calls) == (2, 2, 12)
    assert small.device == "host" and small.runtime == "ort" and small.precision == "float32"
    assert all(t > 0 for process in small.warm.cpu_s for t in process)
    assert [len(p) for p in small.speedometer.cpu_s] == [3, 3]
    assert small.conversion_rel_error < 1e-4
    assert small.model_sha256 != reference.model_sha256
    assert small.ratio_low <= small.ratio <= small.ratio_high
    assert not small.steady  # 2 x 2 is not enough, whatever came out
    assert small.conditions_before["cores"] == os.cpu_count()
    assert "x large" in sentence(small)
    assert "the reference" in sentence(reference)
    assert all(cpu in os.sched_getaffinity(0) for cpu in small.pinned_cpus)
    assert sorted(p.suffix for p in (tmp_path / "models").iterdir()) == [".json", ".json", ".onnx", ".onnx"]


def test_ctrl_c_in_a_real_measurement_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    monkeypatch.setattr("bblab.latency.models.converted", _no_file)

    def on_progress(done: int, total: int, seconds_left: float | None, text: str) -> None:
        if text.startswith("process 2") and done == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        measure([tiny(8, "a")], tiny(8, "r"), device=fake_worker_as_ort(), plan=Plan(rounds=2), on_progress=on_progress)
    assert [t.processes for t in stopped.value.partial] == [1, 1]


def _no_file(candidate: Candidate, runtime: object):  # type: ignore[no-untyped-def]
    from bblab.latency.models import Model

    return Model(Path(candidate.key), "sha", 1, 0.0)


def fake_worker_as_ort() -> Host:
    return host(
        FAKE_RUNTIME.format(
            load="pass",
            first="pass",
            start="runtimes.find = lambda name: Fake(); sys.exit(worker.main(sys.stdin, worker._own_stdout()))",
        )
    )
