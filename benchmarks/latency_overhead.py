"""What measuring costs beside what is measured, in CPU time, beyond the start of the processes.

    uv run python benchmarks/latency_overhead.py [--rounds N] [SPEC...]

Two parts. In the worker: all its CPU time between its "ready" and its end, less the timed calls (the speedometer, the
lines it writes, the clocks). In the process that asks: all its CPU time while it measures, ranks and makes the rows,
with every model converted and every library loaded before. Warm-ups are the worker's start, as the loading of the
models is; their CPU time is printed apart. Bar: both parts together are below 10 % of the measured CPU time.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import machine

from bblab.lab import REFERENCE, Lab
from bblab.latency import Plan, measure, models, protocol, runtimes, sessions, stats, wire

SPECS = ("nanotrack", "shufflenetv2_x1_0@s16", "mobileone_k5_se", "mobileone_s1@s16", "repvgg_a0@s16")
SIDE_PX = 255
BAR = 0.10


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("specs", nargs="*", default=SPECS)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(argv)
    print(machine.describe("onnxruntime"))
    lab = Lab()
    side = (SIDE_PX, SIDE_PX)
    nets = [lab.candidate(lab.spec(name), "deploy", side) for name in asked.specs]
    base = replace(lab.spec(REFERENCE), head=None, input=(3, *side))
    reference = lab.candidate(base, "deploy", side)
    plan = Plan(rounds=asked.rounds)
    asker_part(nets, reference, replace(plan, processes=1))  # loads every library
    asker_s, measured_s = asker_part(nets, reference, plan)
    inside = worker_part([*nets, reference], plan)
    ours, calls = asker_s / measured_s, inside["overhead"] / inside["calls"]
    print(f"measured CPU time {measured_s:.2f} s in {plan.processes} processes x {plan.rounds} rounds")
    print(f"asking process: {asker_s:.3f} s, {ours:.1%}: messages, estimates, intervals, ties, rows")
    print(f"worker: {inside['overhead']:.3f} s beside {inside['calls']:.3f} s of calls, {calls:.1%}, "
          f"of which the speedometer {inside['speed'] / inside['calls']:.1%}")  # fmt: skip
    print(f"warming each net in each visit, beyond measured time: {inside['fill'] / inside['calls']:.0%} of it")
    print(f"warm-ups, part of a worker's start: {inside['warm'] / inside['calls']:.0%} of its calls' time")
    return machine.judge({f"overhead {ours + calls:.1%} of the measured CPU time, bar {BAR:.0%}": ours + calls < BAR})


def asker_part(nets: Sequence[Any], reference: Any, plan: Plan) -> tuple[float, float]:
    """Our own CPU time of one measurement as `bblab bench` makes it, and what was measured."""
    stats.ratio_of.cache_clear()
    stats.p10_interval.cache_clear()
    protocol.session_drift.cache_clear()
    began = time.process_time()
    timings = measure(nets, reference, plan=plan)
    ranked = sessions.places(timings)
    rows = json.dumps([{**t.to_json(), **ranked[t.label].to_json(), **t.raw()} for t in timings])
    spent = time.process_time() - began
    assert rows
    return spent, sum(sum(stats.pooled(s.cpu_s)) for t in timings for s in t.samples.values())


def worker_part(nets: Sequence[Any], plan: Plan) -> dict[str, float]:
    """One worker's rounds in a fresh process, as the real one is, with the CPU clock read at its ready and its end."""
    runtime = runtimes.find("ort")
    files = [models.converted(net, runtime) for net in nets]
    request = wire.Request(
        runtime="ort",
        threads=1,
        warmups=plan.warmups,
        seed=0,
        models=tuple(wire.ModelFile(n.label, str(f.path), (1, *n.input)) for n, f in zip(nets, files, strict=True)),
        orders=tuple(map(tuple, protocol.orders(len(nets), plan.rounds, 0, 0))),
    )
    command = [sys.executable, __file__, "--as-worker"]
    done = subprocess.run(command, input=wire.encode_request(request), capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def as_worker() -> int:
    """What `bblab.latency.worker.main` does, with the clock read twice."""
    from bblab.latency import worker

    request = wire.parse_request(sys.stdin.readline())
    calls = worker.load(request)
    at: dict[str, float] = {"begin": time.process_time()}
    spent = {"calls": 0.0, "speed": 0.0, "fill": 0.0}
    with open(os.devnull, "w") as sink:  # noqa: PTH123

        def say(messages: list[wire.Message]) -> None:
            sink.write("".join(wire.encode(m) + "\n" for m in messages))
            sink.flush()
            for message in messages:
                if isinstance(message, wire.Ready):
                    at["ready"] = time.process_time()
                elif isinstance(message, wire.Call):
                    spent["calls"] += message.cpu_s
                elif isinstance(message, wire.Speed):
                    spent["speed"] += message.cpu_s

        class Bench(worker.Bench):
            def fill(self, call: worker.Model, fill_s: float, since: float) -> int:
                began = time.process_time()
                count = super().fill(call, fill_s, since)
                spent["fill"] += time.process_time() - began
                return count

        worker.run_rounds(calls, request, say, Bench())
    whole = time.process_time() - at["ready"]
    overhead = whole - spent["calls"] - spent["fill"]
    print(json.dumps({**spent, "overhead": overhead, "warm": at["ready"] - at["begin"]}))
    return 0


if __name__ == "__main__":
    sys.exit(as_worker() if sys.argv[1:] == ["--as-worker"] else main(sys.argv[1:]))
