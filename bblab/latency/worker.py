"""The worker process: holds all candidates and the reference, and times them in the order it is told.

Run as `python -m bblab.latency.worker`: reads one request line, answers as `wire.py` documents. It never imports
torch, whose threads and memory would be part of what is timed, unless torch is what is timed.

A probe is a function of (request, say) in PROBES. It loads what it needs, says `ready` by `begin`, and ends with `end`.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from bblab.latency import holding, wire

# About 3 ms of CPython 3.11 on a 3 GHz server core. Never change it: times of the same kernel on the same device are
# compared over months. Another kernel gets another name.
SPEEDOMETER_STEPS = 15_000
SPEEDOMETER = f"python-xorshift64-{SPEEDOMETER_STEPS}"

Clock = Callable[[], float]
Say = Callable[["list[wire.Message]"], None]


def speedometer() -> int:
    """A fixed amount of integer work in the first-level cache: its CPU time follows the clock and nothing else.

    Xorshift (Marsaglia 2003), in plain Python so that it needs no library.
    """
    x = 88172645463325252
    for _ in range(SPEEDOMETER_STEPS):
        x ^= (x << 13) & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 7
        x ^= (x << 17) & 0xFFFFFFFFFFFFFFFF
    return x


@dataclass
class Bench:
    """The clocks of a worker; tests give others."""

    wall: Clock = time.perf_counter
    cpu: Clock = time.process_time
    kernel: Callable[[], object] = speedometer
    sleep: Callable[[float], object] = time.sleep
    preempted: Callable[[], int | None] = holding.preempted
    hold: Callable[[wire.Request], tuple[int | None, float | None]] = holding.hold
    due: float = field(default=0.0, init=False)

    def timed(self, work: Callable[[], object]) -> tuple[float, float, int | None]:
        """Wall and CPU seconds of one call, and how often it was preempted.

        The wall clock is read outside the CPU clock, so CPU <= wall. An accelerator's own clock, where the model has
        one, takes the place of wall time.
        """
        before = self.preempted()
        wall_start, cpu_start = self.wall(), self.cpu()
        work()
        cpu_s, wall_s = self.cpu() - cpu_start, self.wall() - wall_start
        after = self.preempted()
        own_clock = getattr(work, "seconds", None)
        seconds = wall_s if own_clock is None else own_clock()
        return seconds, cpu_s, None if before is None or after is None else after - before

    def speed(self, number: int) -> wire.Speed:
        return wire.Speed(number, *self.timed(self.kernel)[:2])

    def fill(self, call: Callable[[], object], fill_s: float, since: float) -> int:
        """Run a model until so much time has passed since then; how often it ran."""
        count = 0
        while self.wall() - since < fill_s:
            call()
            count += 1
        return count

    def wait(self, pace_s: float) -> None:
        """Sleep until the next frame is due; the one after it is due `pace_s` later."""
        self.sleep(max(0.0, self.due - self.wall()))
        self.due = max(self.due, self.wall() - pace_s) + pace_s

    @contextmanager
    def measuring(self, request: wire.Request, say: Say) -> Iterator[None]:
        """Says `ready` once the process is held to its core; no garbage is collected until the end."""
        for _ in range(min(request.warmups, 3)):
            self.kernel()
        cpu, slice_s = self.hold(request)
        gc.collect()
        say([wire.Ready(len(request.models), cpu, slice_s)])
        gc.disable()
        try:
            yield
        finally:
            gc.enable()


class _OnInput:
    """A loaded model on its input, as a call without arguments; `seconds` only where the model has its own clock."""

    def __init__(self, loaded: Any, x: Any) -> None:  # a runtimes.Loaded and a numpy array: not imported here
        self._run, self._x = loaded.run, x
        if hasattr(loaded, "seconds"):
            self.seconds = loaded.seconds

    def __call__(self) -> object:
        return self._run(self._x)


Model = Callable[[], object]


def visit(number: int, at: int, call: Model, request: wire.Request, bench: Bench) -> list[wire.Message]:
    """One net's turn in a round: cold, then run until the caches are its own, then warm, then at a camera's pace."""
    began = bench.wall()
    spoken: list[wire.Message] = [wire.Call(number, at, wire.COLD, *bench.timed(call))]
    bench.fill(call, request.fill_s, began)
    for _ in range(request.warm_calls):
        spoken.append(wire.Call(number, at, wire.WARM, *bench.timed(call)))
    if request.paced_calls:
        bench.due = bench.wall() + request.pace_s
    for _ in range(request.paced_calls):
        bench.wait(request.pace_s)
        spoken.append(wire.Call(number, at, wire.PACED, *bench.timed(call)))
    return spoken


def run_rounds(
    calls: list[Model],
    request: wire.Request,
    say: Say,
    bench: Bench,
    after: Callable[[int, int], list[wire.Message]] = lambda number, at: [],
) -> None:
    """Warm up, then the rounds. Messages leave after each round, when nothing is being timed.

    `after` is what a probe does at the end of each visit: it takes round and model.
    """
    for at, call in enumerate(calls):
        with of_model(at):
            for _ in range(request.warmups):
                call()
    with bench.measuring(request, say):
        for number, order in enumerate(request.orders):
            spoken: list[wire.Message] = [bench.speed(number)]
            for at in order:
                spoken += visit(number, at, calls[at], request, bench)
                spoken += after(number, at)
            say(spoken)
        say([bench.speed(request.rounds)])


# Probes ---------------------------------------------------------------------------------------------------------


def load(request: wire.Request) -> list[Model]:
    """Every model of the request as a call without arguments, on inputs drawn from the seed."""
    from bblab.latency import runtimes

    runtime = runtimes.find(request.runtime)
    calls: list[Model] = []
    for at, (model, x) in enumerate(zip(request.models, inputs(request), strict=True)):
        with of_model(at):
            calls.append(_OnInput(runtime.load(model.path, request.threads), x))
    return calls


class ModelFailed(Exception):
    """One model could not be loaded or run: its place in the request, and why."""

    def __init__(self, at: int, why: Exception) -> None:
        super().__init__(f"{type(why).__name__}: {why}")
        self.at = at


@contextmanager
def of_model(at: int) -> Iterator[None]:
    """Raises ModelFailed for whatever fails inside."""
    try:
        yield
    except Exception as error:
        raise ModelFailed(at, error) from error


def inputs(request: wire.Request) -> list[Any]:  # numpy arrays: numpy is not imported at the top
    import numpy as np

    rng = np.random.default_rng(request.seed)
    return [rng.standard_normal(model.input, dtype=np.float32) for model in request.models]


def rounds(request: wire.Request, say: Say, bench: Bench) -> None:
    calls = load(request)
    check_torch(request)
    run_rounds(calls, request, say, bench)


def layers(request: wire.Request, say: Say, bench: Bench) -> None:
    """Rounds, and each visit ends with calls of a twin of the model that the runtime profiles, operator by operator.

    A runtime tells its operators' times at the end only, over all the twin's calls: those that count are remembered.
    """
    from bblab.latency import runtimes

    runtime = runtimes.find(request.runtime)
    calls = load(request)
    twins = [runtimes.profiled(runtime, model.path, request.threads) for model in request.models]
    runs = list(map(_OnInput, twins, inputs(request)))
    check_torch(request)
    for run in runs:
        for _ in range(request.warmups):
            run()
    count = [request.warmups] * len(runs)
    kept: list[tuple[int, int, int, int]] = []  # round, model, call, place among the twin's calls

    def after(number: int, at: int) -> list[wire.Message]:
        count[at] += bench.fill(runs[at], request.fill_s, bench.wall())
        spoken: list[wire.Message] = []
        for place in range(request.warm_calls):
            spoken.append(wire.Call(number, at, wire.PROFILED, *bench.timed(runs[at])))
            kept.append((number, at, place, count[at]))
            count[at] += 1
        return spoken

    run_rounds(calls, request, say, bench, after)
    for at, twin in enumerate(twins):
        say([wire.Note(f"overhead_s {at}", repr(twin.overhead_s()))])
        found = list(twin.layers())
        say(
            [
                wire.Layer(r, m, c, i, a.name, a.op, a.seconds[place], a.module, a.told_by, a.kernel)
                for r, m, c, place in kept
                if m == at
                for i, a in enumerate(found)
            ]
        )


def stages(request: wire.Request, say: Say, bench: Bench) -> None:
    """A tracker's frame."""
    from bblab.latency import stageworker

    stageworker.run(request, say, bench)


PROBES: dict[str, Callable[[wire.Request, Say, Bench], None]] = {"rounds": rounds, "layers": layers, "stages": stages}


def check_torch(request: wire.Request) -> None:
    """Once all is loaded: raises RuntimeError where torch came along."""
    from bblab.latency import runtimes

    if "torch" in sys.modules and not runtimes.uses_torch(runtimes.find(request.runtime)):
        raise RuntimeError("torch was imported into the worker; its threads would be timed too")


def refuse(request: wire.Request) -> None:
    """Raises RuntimeError or BblabError, in words, for what this worker cannot do, before anything is loaded."""
    from bblab.latency import runtimes

    if request.probe not in PROBES:
        raise RuntimeError(f"this worker does not know the probe {request.probe!r}; it has {', '.join(PROBES)}")
    if request.probe == "layers":
        runtimes.refuse_silent(runtimes.find(request.runtime))


def main(source: TextIO, sink: TextIO) -> int:
    def say(messages: list[wire.Message]) -> None:
        sink.write("".join(wire.encode(m) + "\n" for m in messages))
        sink.flush()

    from bblab.latency import runtimes

    request = wire.parse_request(source.readline())
    refuse(request)
    holding.allow(request.cpus)
    runtime = runtimes.find(request.runtime)
    say([wire.Hello(request.runtime, runtime.version(), runtime.precision, SPEEDOMETER)])
    PROBES[request.probe](request, say, Bench())
    say([wire.End(request.rounds)])
    return 0


def _own_stdout() -> TextIO:
    """Our own copy of standard output; whatever libraries print there goes to standard error from now on."""
    sys.stdout.flush()
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return ours


def answer(source: TextIO, sink: TextIO) -> int:
    """`main`, and what it raises as an `error` message; the exit code."""
    try:
        code = main(source, sink)
    except Exception as error:
        import traceback

        traceback.print_exc()
        if isinstance(error, ModelFailed):
            failure = wire.Failure(str(error), error.at)
        else:
            failure = wire.Failure(f"{type(error).__name__}: {error}")
        sink.write(wire.encode(failure) + "\n")
        code = 1
    sink.flush()
    return code


if __name__ == "__main__":
    sys.exit(answer(sys.stdin, _own_stdout()))
