"""Whether a ranking of six nets repeats, and how far a ratio moves, beside the usual way of measuring.

    uv run python benchmarks/latency_repeat.py [--repeats 10] [--cpu-seconds 3] [SPEC...]

Each repetition measures the same nets four times: by `bblab.latency.measure` and the usual way, the named peer (one
process, one net after another, `torch.utils.benchmark.Timer(...).blocked_autorange()` over the same ONNX Runtime
session, median wall time), each with and without a competing busy loop on every core, in shuffled order. bblab gets so
many rounds that the six nets together take about `--cpu-seconds` of CPU time a measurement (warm-ups not counted);
what the peer spent is printed. The last net is the reference.

Printed for each condition: in how many repetitions the order was the same, the tied pairs of each, Kendall's tau over
pairs of repetitions, and each net's coefficient of variation over the repetitions (sd of the logarithm): of bblab's
ratio, of the peer's ratio of medians, of the peer's median itself. Bars, for nets whose true ratios (the median over
all repetitions) are at least 15 % apart: bblab's order is the same in every repetition of both conditions, no
repetition ties more than one pair, and the mean CV of bblab's ratio is at most 2 % in both.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from pathlib import Path

import machine
import numpy as np
from torch.utils.benchmark import Timer

from bblab.lab import Lab
from bblab.latency import Candidate, Plan, measure, models, protocol, runtimes, stats

SPECS = ("nanotrack", "shufflenetv2_x1_0@s16", "mobileone_k5_se", "mobileone_s1@s16", "repvgg_a0@s16", "resnet18")
SIDE_PX = 255
PEER_S = 0.2  # least time of a net's block, the Timer's own default
APART = 1.15
CV = 0.02


@dataclass
class Found:
    """What one way of measuring gave under one condition: a value a net and repetition."""

    ratios: dict[str, list[float]] = field(default_factory=dict)
    absolutes: dict[str, list[float]] = field(default_factory=dict)
    ties: list[int] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def orders(self) -> list[tuple[str, ...]]:
        return [
            tuple(sorted(self.ratios, key=lambda name: self.ratios[name][i]))
            for i in range(len(next(iter(self.ratios.values()))))
        ]

    def same(self) -> tuple[int, int]:
        """How many repetitions had the most usual order, of how many."""
        orders = self.orders()
        return Counter(orders).most_common(1)[0][1], len(orders)

    def tau(self) -> float:
        orders = self.orders()
        taus = [kendall(a, b) for a, b in combinations(orders, 2)]
        return statistics.mean(taus) if taus else math.nan


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("specs", nargs="*", default=SPECS)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--cpu-seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path, help="where to write every value")
    asked = parser.parse_args(argv)
    print(machine.describe("torch", "onnxruntime"))
    lab = Lab()
    nets = [candidate(lab, name) for name in asked.specs]
    *_, reference = nets
    plan = plan_for(nets, reference, asked.cpu_seconds)
    print(f"bblab: {plan.processes} processes x {plan.rounds} rounds; the reference is {reference.spec}")
    found = {(way, loaded): Found() for way in ("bblab", "sequential") for loaded in (False, True)}
    rng = random.Random(0)
    for i in range(asked.repeats):
        turn = list(found)
        rng.shuffle(turn)
        for way, loaded in turn:
            with machine.busy(2 if loaded else 0):
                if way == "bblab":
                    ours(found[way, loaded], nets, reference, replace(plan, seed=i))
                else:
                    theirs(found[way, loaded], nets, reference)
        print(f"repetition {i + 1} of {asked.repeats}", file=sys.stderr, flush=True)
    if asked.json:
        values = {f"{way}, busy loop {'on' if loaded else 'off'}": vars(f) for (way, loaded), f in found.items()}
        asked.json.write_text(json.dumps(values, indent=1))
    return report(found, nets, reference)


def candidate(lab: Lab, name: str) -> Candidate:
    spec = replace(lab.spec(name), head=None) if "@" not in name and lab.spec(name).taps else lab.spec(name)
    return lab.candidate(replace(spec, input=(3, SIDE_PX, SIDE_PX)), "deploy", (SIDE_PX, SIDE_PX))


def plan_for(nets: Sequence[Candidate], reference: Candidate, cpu_seconds: float) -> Plan:
    """Six processes with as many rounds as fit into so much CPU time, at least two."""
    pilot = measure(nets, reference, plan=Plan(processes=1, rounds=3))
    round_s = sum(4 * min(t.warm.cpu_s[0]) + 0.006 for t in pilot)
    return Plan(processes=6, rounds=max(2, round(cpu_seconds / (6 * round_s))))


def ours(found: Found, nets: Sequence[Candidate], reference: Candidate, plan: Plan) -> None:
    timings = measure(nets, reference, plan=plan)
    for t in timings:
        found.ratios.setdefault(t.spec, []).append(t.ratio)
        found.absolutes.setdefault(t.spec, []).append(t.cpu_p10_s)
    found.ties.append(len(protocol.ties(timings)))
    found.cpu_s.append(sum(sum(stats.pooled(s.cpu_s)) for t in timings for s in t.samples.values()))


def theirs(found: Found, nets: Sequence[Candidate], reference: Candidate) -> None:
    began = time.process_time()
    medians = {n.spec: sequential_s(n) for n in nets}
    found.cpu_s.append(time.process_time() - began)
    for name, median in medians.items():
        found.ratios.setdefault(name, []).append(median / medians[reference.spec])
        found.absolutes.setdefault(name, []).append(median)


def sequential_s(net: Candidate) -> float:
    """The usual number: the median wall time of a net timed alone, in a process that does nothing else."""
    runtime = runtimes.find("ort")
    model = models.converted(net, runtime)
    loaded = runtime.load(str(model.path), 1)
    x = np.random.default_rng(0).standard_normal((1, *net.input), dtype=np.float32)
    timer = Timer("loaded.run(x)", globals={"loaded": loaded, "x": x}, num_threads=1)
    return float(timer.blocked_autorange(min_run_time=PEER_S).median)


def report(found: dict[tuple[str, bool], Found], nets: Sequence[Candidate], reference: Candidate) -> int:
    values = {
        n.spec: statistics.median([*found["bblab", False].ratios[n.spec], *found["bblab", True].ratios[n.spec]])
        for n in nets
    }
    ordered = sorted(values, key=values.__getitem__)
    gaps = {f"{b} / {a}": values[b] / values[a] for a, b in pairwise(ordered)}
    narrow = min(gaps, key=gaps.__getitem__)
    print("true ratios: " + ", ".join(f"{name} {values[name]:.4f}" for name in ordered))
    print(f"narrowest gap: {narrow} = {gaps[narrow]:.3f}")
    bars = {f"every two nets are at least {APART - 1:.0%} apart": gaps[narrow] >= APART}
    others = [n.spec for n in nets if n.spec != reference.spec]
    for loaded in (False, True):
        b, s = found["bblab", loaded], found["sequential", loaded]
        state = f"busy loop {'on' if loaded else 'off'}"
        print(f"\n{state}: CPU seconds a measurement {statistics.mean(b.cpu_s):.1f} (bblab), "
              f"{statistics.mean(s.cpu_s):.1f} (sequential)")  # fmt: skip
        print(f"{'CV over repetitions':<24}{'bblab ratio':>14}{'seq. ratio':>14}{'seq. median':>14}")
        for name in others:
            print(f"{name:<24}{cv(b.ratios[name]):>14.2%}{cv(s.ratios[name]):>14.2%}{cv(s.absolutes[name]):>14.2%}")
        mean = {
            label: statistics.mean(cv(series[name]) for name in others)
            for label, series in (("ours", b.ratios), ("ratio", s.ratios), ("median", s.absolutes))
        }
        print(f"{'mean':<24}{mean['ours']:>14.2%}{mean['ratio']:>14.2%}{mean['median']:>14.2%}")
        (same, total), (seq_same, _) = b.same(), s.same()
        print(f"same order in {same} of {total} repetitions, tau {b.tau():.3f}, tied pairs {b.ties} (bblab); "
              f"in {seq_same} of {total}, tau {s.tau():.3f} (sequential wall median)")  # fmt: skip
        bars[f"{state}: one order in all {total} repetitions ({same}; sequential {seq_same})"] = same == total
        bars[f"{state}: at most one tied pair (most: {max(b.ties)})"] = max(b.ties) <= 1
        bars[f"{state}: mean CV of the ratio at most {CV:.0%} ({mean['ours']:.2%}; sequential {mean['ratio']:.2%})"] = (
            mean["ours"] <= CV
        )
    print()
    return machine.judge(bars)


def kendall(a: Sequence[str], b: Sequence[str]) -> float:
    place = {name: i for i, name in enumerate(b)}
    signs = [1 if place[x] < place[y] else -1 for x, y in combinations(a, 2)]
    return sum(signs) / len(signs)


def cv(values: Sequence[float]) -> float:
    """The standard deviation of the logarithm, which for small spreads is that share of the mean."""
    return statistics.stdev(map(math.log, values)) if len(values) > 1 else math.nan


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
