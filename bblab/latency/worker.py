"""The worker process: holds all candidates and the reference, and times them in the order it is told.

Run as `python -m bblab.latency.worker`: reads one request line, answers as `wire.py` documents. It never imports
torch, whose threads and memory would be part of what is timed, unless torch is what is timed.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from bblab.latency import wire

# About 3 ms of CPython 3.11 on a 3 GHz server core. Never change it: times of the same kernel on the same device are
# compared over months. Another kernel gets another name.
SPEEDOMETER_STEPS = 15_000
SPEEDOMETER = f"python-xorshift64-{SPEEDOMETER_STEPS}"

Clock = Callable[[], float]


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


def timed(work: Callable[[], object], wall: Clock, cpu: Clock) -> tuple[float, float]:
    """Wall and CPU seconds of one call. The wall clock is read outside the CPU clock, so CPU <= wall.

    An accelerator's own clock, where the model has one, takes the place of wall time.
    """
    wall_start, cpu_start = wall(), cpu()
    work()
    cpu_s, wall_s = cpu() - cpu_start, wall() - wall_start
    own_clock = getattr(work, "seconds", None)
    return (wall_s if own_clock is None else own_clock()), cpu_s


class _OnInput:
    """A loaded model on its input, as a call without arguments; `seconds` only where the model has its own clock."""

    def __init__(self, loaded: Any, x: Any) -> None:  # a runtimes.Loaded and a numpy array: not imported here
        self._run, self._x = loaded.run, x
        if hasattr(loaded, "seconds"):
            self.seconds = loaded.seconds

    def __call__(self) -> object:
        return self._run(self._x)


def run_rounds(
    calls: list[Callable[[], object]],
    request: wire.Request,
    say: Callable[[list[wire.Message]], None],
    *,
    wall: Clock = time.perf_counter,
    cpu: Clock = time.process_time,
    kernel: Callable[[], object] = speedometer,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Warm up, then the rounds. Messages leave after each round, when nothing is being timed."""
    for call in calls:
        for _ in range(request.warmups):
            call()
    for _ in range(min(request.warmups, 3)):
        kernel()
    gc.collect()
    say([wire.Ready(len(calls))])
    gc.disable()
    due = wall()
    try:
        for number, order in enumerate(request.orders):
            spoken: list[wire.Message] = [wire.Speed(number, *timed(kernel, wall, cpu))]
            for model in order:
                if request.pace_s:
                    sleep(max(0.0, due - wall()))
                    due = wall() + request.pace_s
                spoken.append(wire.Call(number, model, *timed(calls[model], wall, cpu)))
            say(spoken)
        say([wire.Speed(request.rounds, *timed(kernel, wall, cpu)), wire.End(request.rounds)])
    finally:
        gc.enable()


def load(request: wire.Request) -> list[Callable[[], object]]:
    """Every model of the request as a call without arguments, on inputs drawn from the seed."""
    import numpy as np

    from bblab.latency import runtimes

    runtime = runtimes.find(request.runtime)
    rng = np.random.default_rng(request.seed)
    calls: list[Callable[[], object]] = []
    for model in request.models:
        loaded = runtime.load(model.path, request.threads)
        x = rng.standard_normal(model.input, dtype=np.float32)
        calls.append(_OnInput(loaded, x))
    return calls


def main(source: TextIO, sink: TextIO) -> int:
    def say(messages: list[wire.Message]) -> None:
        sink.write("".join(wire.encode(m) + "\n" for m in messages))
        sink.flush()

    from bblab.latency import runtimes

    request = wire.parse_request(source.readline())
    if request.per_layer:
        raise RuntimeError("this worker does not tell the times of layers; the runtime ncnn-static does")
    runtime = runtimes.find(request.runtime)
    say([wire.Hello(request.runtime, runtime.version(), runtime.precision, SPEEDOMETER)])
    calls = load(request)
    if "torch" in sys.modules and not runtimes.uses_torch(runtime):
        raise RuntimeError("torch was imported into the worker; its threads would be timed too")
    run_rounds(calls, request, say)
    return 0


def _own_stdout() -> TextIO:
    """Our own copy of standard output; whatever libraries print there goes to standard error from now on."""
    sys.stdout.flush()
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return ours


if __name__ == "__main__":
    output = _own_stdout()
    try:
        code = main(sys.stdin, output)
    except Exception as error:
        import traceback

        traceback.print_exc()
        output.write(wire.encode(wire.Failure(f"{type(error).__name__}: {error}")) + "\n")
        code = 1
    output.flush()
    sys.exit(code)
