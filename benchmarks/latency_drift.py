"""How often the drift detector sees a step of the clock, and how often it cries over a steady series.

    uv run python benchmarks/latency_drift.py [--series 100] [--sessions N] [--lab DIR]

Synthetic: sessions of 6 processes x 5 rounds, the reference's CPU time and the speedometer's, with a level of each
process (sd 2 %), noise of each call (sd 2 %) and one call in twenty hit by an interrupt (30 % longer). A step of 15 %
comes at a random place, at least five rounds from either end (nearer no test of 30 points can tell a step from noise),
in both series as a clock does it. Bars: reported in at least 95 % of the stepped sessions and in at most 5 % of the
steady ones.

Real: `--lab` takes every session that a notebook holds, `--sessions` measures so many new ones beside a busy loop on
every core. Printed: how many are flagged as they are (some did drift: nobody knows which), and how many after a step
of 15 % was put into them. No bar: it depends on the machine's company.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import machine
import numpy as np

from bblab.lab import REFERENCE, Lab
from bblab.latency import Plan, measure
from bblab.latency.protocol import session_drift
from bblab.latency.stats import Series

PROCESSES, ROUNDS = 6, 5
STEP = 1.15
MARGIN = 5  # rounds from either end
DETECTED, FALSE = 0.95, 0.05

Session = tuple[Series, Series]  # speedometer (rounds + 1 a process), reference


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--series", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=0)
    parser.add_argument("--lab", help="a lab folder whose stored sessions are looked at")
    asked = parser.parse_args(argv)
    print(machine.describe("numpy"))
    rng = np.random.default_rng(20261122)
    sessions = [synthetic(rng) for _ in range(asked.series)]
    steady = sum(is_flagged(s) for s in sessions)
    table = {size: sum(is_flagged(stepped(s, size, rng)) for s in sessions) for size in (1.05, 1.1, STEP, 1.3, 1.6)}
    n = asked.series
    print(f"synthetic, {PROCESSES} x {ROUNDS}: steady flagged {steady} of {n}")
    print("  steps reported: " + ", ".join(f"x{size:g} {count} of {n}" for size, count in table.items()))
    for level_sd in (0.03, 0.04):  # no bar: there two processes in a row do differ by 10 % now and then
        noisier = [synthetic(rng, level_sd) for _ in range(n)]
        flagged, seen = sum(map(is_flagged, noisier)), sum(is_flagged(stepped(s, STEP, rng)) for s in noisier)
        print(
            f"  levels of processes with sd {level_sd:.0%}: steady flagged {flagged}, x{STEP:g} reported {seen} of {n}"
        )
    real: list[tuple[str, list[Session]]] = []
    if asked.lab:
        real.append((f"stored in {asked.lab}", stored(asked.lab)))
    if asked.sessions:
        real.append(("measured beside busy loops", measured(asked.sessions)))
    for name, found in real:
        if not found:
            print(f"{name}: no session of at least {2 * MARGIN} rounds")
            continue
        plain = sum(is_flagged(s) for s in found)
        with_step = sum(is_flagged(stepped(s, STEP, rng)) for s in found)
        print(f"{name}: {len(found)} sessions, {plain} flagged as they are, {with_step} with a step of x{STEP:g}")
    return machine.judge(
        {
            f"a step of {STEP - 1:.0%} reported in {table[STEP]} of {n}, bar {DETECTED:.0%}": table[STEP]
            >= DETECTED * n,
            f"a steady series flagged in {steady} of {n}, bar {FALSE:.0%}": steady <= FALSE * n,
        }
    )


def synthetic(rng: np.random.Generator, level_sd: float = 0.02) -> Session:
    def series(base_s: float, length: int) -> Series:
        level = np.exp(rng.normal(0, level_sd, (PROCESSES, 1)))
        noise = np.exp(rng.normal(0, 0.02, (PROCESSES, length)))
        hit = np.where(rng.random((PROCESSES, length)) < 0.05, 1.3, 1.0)
        return as_series(base_s * level * noise * hit)

    return series(3e-3, ROUNDS + 1), series(40e-3, ROUNDS)


def stepped(session: Session, size: float, rng: np.random.Generator) -> Session:
    """Both clocks from one round on `size` times slower."""
    speed, reference = session
    lengths = [len(process) for process in reference]
    at = int(rng.integers(MARGIN, sum(lengths) - MARGIN + 1))
    made: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    first = 0
    for s, r in zip(speed, reference, strict=True):
        slow = [size if first + i >= at else 1.0 for i in range(len(r))]
        last = size if first + len(r) >= at else 1.0
        speed_now = tuple(x * f for x, f in zip(s, [*slow, last], strict=True))
        made.append((speed_now, tuple(x * f for x, f in zip(r, slow, strict=True))))
        first += len(r)
    return tuple(m[0] for m in made), tuple(m[1] for m in made)


def as_series(values: np.ndarray) -> Series:
    return tuple(tuple(float(x) for x in row) for row in values)


def is_flagged(session: Session) -> bool:
    drift = session_drift(*session)
    return drift is not None and drift.verdict == "drift"


def stored(folder: str) -> list[Session]:
    """One a session of the notebook, from the timings of one thread."""
    found: dict[str, Session] = {}
    with Lab(folder).notebook(read_only=True) as notebook:
        for run in notebook.runs(kind="timing", limit=100_000):
            name, counts = run.result.get("session"), run.result.get("samples_per_process")
            if name in found or not counts or run.inputs.get("threads") != 1:
                continue
            samples = notebook.samples(run.id)
            speed, reference = (split(samples[k], counts[k]) for k in ("speedometer_cpu_s", "reference_cpu_s"))
            if sum(map(len, reference)) > 2 * MARGIN:
                found[name] = (speed, reference)
    return list(found.values())


def split(values: Sequence[float], counts: Sequence[int]) -> Series:
    made, at = [], 0
    for count in counts:
        made.append(tuple(values[at : at + count]))
        at += count
    return tuple(made)


def measured(count: int) -> list[Session]:
    lab = Lab()
    base = lab.spec(REFERENCE)
    reference = lab.candidate(replace(base, head=None, input=(3, 255, 255)), "deploy", (255, 255))
    net = lab.candidate(lab.spec("nanotrack"), "deploy", (255, 255))
    found: list[Session] = []
    with machine.busy(2):
        for i in range(count):
            timing = measure([net], reference, plan=Plan(processes=PROCESSES, rounds=ROUNDS, seed=i))[0]
            found.append((timing.speedometer.cpu_s, timing.reference_samples["warm"].cpu_by_round_s))
            print(f"session {i + 1} of {count}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
