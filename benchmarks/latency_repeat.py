"""How much a latency ratio moves when it is measured again, beside the usual way of measuring.

    uv run python benchmarks/latency_repeat.py [--repeats N] [SPEC...]

Each repetition measures the same nets twice, in turn: by `bblab.latency.measure` (6 processes of 5 rounds), and the
usual way, the named peer: one process, one net after another, `torch.utils.benchmark.Timer(...).blocked_autorange()`
over the same ONNX Runtime session, median wall time. Printed: for each net the spread over the repetitions
(max / min - 1, and the standard deviation of the logarithm) of bblab's ratio to resnet18, of the peer's ratio of
medians, and of the peer's median itself. Bar: the median spread of bblab's ratio is below that of the peer's medians.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace

import machine
import numpy as np
from torch.utils.benchmark import Timer

from bblab.lab import REFERENCE, Lab
from bblab.latency import Candidate, Plan, measure, models, runtimes

SPECS = ("mobileone_s0@s16", "mobileone_k5_se", "nanotrack")
SIDE_PX = 255
PEER_S = 0.2  # least time of a net's block, the Timer's own default


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("specs", nargs="*", default=SPECS)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args(argv)
    print(machine.describe("torch", "onnxruntime"))
    lab = Lab()
    side = (SIDE_PX, SIDE_PX)
    nets = [lab.candidate(lab.spec(name), "deploy", side) for name in asked.specs]
    base = replace(lab.spec(REFERENCE), head=None, input=(3, *side))
    reference = lab.candidate(base, "deploy", side)
    found: dict[str, dict[str, list[float]]] = {n.spec: {"ours": [], "ratio": [], "median": []} for n in nets}
    for i in range(asked.repeats):
        for t in measure(nets, reference, plan=Plan(seed=i))[: len(nets)]:
            found[t.spec]["ours"].append(t.ratio)
        medians = {n.spec: sequential_s(n) for n in (*nets, reference)}
        for n in nets:
            found[n.spec]["ratio"].append(medians[n.spec] / medians[reference.spec])
            found[n.spec]["median"].append(medians[n.spec])
        print(f"repetition {i + 1} of {asked.repeats}", file=sys.stderr, flush=True)
    heads = ("bblab ratio", "sequential ratio", "sequential median")
    print(f"{'max/min - 1, sd of log':<24}" + "".join(f"{h:>22}" for h in heads))
    for spec, series in found.items():
        print(f"{spec:<24}" + "".join(f"{spread(v):>14.1%}{sd(v):>8.1%}" for v in series.values()))
    ours, theirs = (statistics.median(spread(s[key]) for s in found.values()) for key in ("ours", "median"))
    text = f"bblab's ratio spreads {ours:.1%}, the sequential median {theirs:.1%} (median over the nets)"
    return machine.judge({text: ours < theirs})


def sequential_s(net: Candidate) -> float:
    """The usual number: the median wall time of a net timed alone, in a process that does nothing else."""
    runtime = runtimes.find("ort")
    model = models.converted(net, runtime)
    loaded = runtime.load(str(model.path), 1)
    x = np.random.default_rng(0).standard_normal((1, *net.input), dtype=np.float32)
    timer = Timer("loaded.run(x)", globals={"loaded": loaded, "x": x}, num_threads=1)
    return float(timer.blocked_autorange(min_run_time=PEER_S).median)


def spread(values: Sequence[float]) -> float:
    return max(values) / min(values) - 1


def sd(values: Sequence[float]) -> float:
    return statistics.stdev(map(math.log, values)) if len(values) > 1 else math.nan


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
