"""What other work on the machine does to warm and cold ratios, with and without holding the worker to a core.

    sudo uv run python benchmarks/latency_load.py [--repeats 5] [--loops 2] [SPEC...]

Each repetition measures the same nets in every condition, in shuffled order: quiet (the whole measurement at real-time
priority, SCHED_FIFO, which needs root) and beside so many busy loops; and the latter once more with the peer, the same
worker neither held to a core nor given a long time slice. Printed: the mean change of each net's ratio to the reference
against quiet, warm and cold, and the pairs that load turned round. Bars: no pair is turned, and the mean change of each
net's warm ratio is at most 5 %.
"""

import argparse
import math
import os
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import combinations

import machine

from bblab.lab import REFERENCE, Lab
from bblab.lab.racing import Entry, field
from bblab.latency import Plan, measure, worker
from bblab.latency.devices.host import Host

SPECS = ("shufflenetv2_x0_5@s16", "nanotrack", "mobileone_k5_se", "repvgg_a0@s16")
SIDE = (255, 255)
BAR = 0.05
States = dict[tuple[str, str], float]  # (spec, state) -> ratio


@contextmanager
def quiet() -> Iterator[None]:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("specs", nargs="*", default=SPECS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--loops", type=int, default=2)
    asked = parser.parse_args(argv)
    print(machine.describe("onnxruntime"))
    lab = Lab()
    nets = field(lab, [Entry(lab.spec(name), "deploy", SIDE) for name in asked.specs], lab.spec(REFERENCE))
    loose = Host(command=(sys.executable, __file__, "--as-worker"))
    conditions = {
        "quiet": (quiet, 0, Host()), "loaded": (nullcontext, asked.loops, Host()),
        "loaded, not held": (nullcontext, asked.loops, loose),
    }  # fmt: skip
    found: dict[str, list[States]] = {name: [] for name in conditions}
    waits: dict[str, list[float]] = {name: [] for name in conditions}
    rng = random.Random(0)
    for i in range(asked.repeats):
        for name in rng.sample(list(conditions), len(conditions)):
            priority, loops, device = conditions[name]
            with machine.busy(loops), priority():
                timings = measure(nets.candidates, nets.references, device=device, plan=Plan(seed=100 * i))
            found[name].append({(t.spec, s): t.ratio_in(s).value for t in timings for s in ("warm", "cold")})
            waits[name].append(statistics.median(t.waiting for t in timings))
        print(f"repetition {i + 1} of {asked.repeats}", file=sys.stderr, flush=True)
    return report(found, waits, asked.specs)


def report(found: dict[str, list[States]], waits: dict[str, list[float]], specs: Sequence[str]) -> int:
    names = list(found)
    for name in names:
        print(f"{name}: wall/CPU " + ", ".join(f"{w:.2f}" for w in waits[name]))
    mean = {
        name: {key: statistics.fmean(math.log(run[key]) for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    print(f"\n{'change of the ratio':<30}{'sd quiet':>10}" + "".join(f"{name:>20}" for name in names[1:]))
    for spec in specs:
        for state in ("warm", "cold"):
            key = spec, state
            logs = [math.log(run[key]) for run in found["quiet"]]
            spread = statistics.stdev(logs) if len(logs) > 1 else math.nan
            moved = "".join(f"{mean[name][key] - mean['quiet'][key]:>+20.1%}" for name in names[1:])
            print(f"{spec + ', ' + state:<30}{spread:>10.1%}{moved}")
    turned = [
        (a, b)
        for a, b in combinations(specs, 2)
        if (mean["quiet"][a, "warm"] - mean["quiet"][b, "warm"])
        * (mean["loaded"][a, "warm"] - mean["loaded"][b, "warm"]) < 0
    ]  # fmt: skip
    worst = max(abs(mean["loaded"][s, "warm"] - mean["quiet"][s, "warm"]) for s in specs)
    print()
    return machine.judge(
        {
            f"no pair is turned by load ({turned or 'none'})": not turned,
            f"warm ratios move by at most {BAR:.0%} ({worst:.1%})": worst <= BAR,
        }
    )


def as_worker() -> int:
    """The worker, held to no core and with the usual time slice."""

    class Loose(worker.Bench):
        def __init__(self) -> None:
            super().__init__(hold=lambda request: (None, None))

    worker.Bench = Loose  # type: ignore[misc]
    return worker.main(sys.stdin, worker._own_stdout())


if __name__ == "__main__":
    sys.exit(as_worker() if sys.argv[1:] == ["--as-worker"] else main(sys.argv[1:]))
