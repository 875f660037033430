"""How to measure, protocol 2: the order of calls, what makes a number steady, and which net is faster.

Reads no clock and no file. A round visits every net once, in an order shuffled anew; a visit times one cold call, runs
the net until 6 ms have passed, and times three warm calls (`wire.py`), which rank. Version 1 timed one call a round:
with cold caches, so that a net of 1 ms came out up to 24 % slower in the company of other nets, outside its interval.
The numbers are made in `stats.py`, one way whatever came out: a drift of the clock is reported, and changes no ratio.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from bblab.errors import BblabError
from bblab.latency import stats
from bblab.latency.stats import Estimate, Series
from bblab.latency.wire import COLD, PACED, WARM

if TYPE_CHECKING:
    from bblab.latency.values import Timing

BUSY_WALL_OVER_CPU = 1.02  # from here on wall medians were 14 % and more over the best ever seen
LOADED_WALL_OVER_CPU = 1.5  # from here on ratios of small nets were seen to be moved
ENOUGH_PROCESSES, ENOUGH_ROUNDS = 5, 2  # ranking of six nets was stable from here on (Kendall tau 1.000)
ENOUGH_FOR_P99 = 100  # calls: of fewer, it is the largest
DRIFT_P = 0.01
# A smaller step of the clock moves the ratio of shuffled calls by less than its interval, and without a floor the
# test, which takes every process's own memory layout for a level, would cry drift on a usable machine. Chosen by us,
# 2026-11: in 14 sessions of 6 x 5 on a 2-core guest, the changes with p < .01 were of 2 to 9 %, and the ratio of
# mobilenetv3_small_100 to resnet18 at 255 px all the same spread 2.1 %.
DRIFT_SIZE = 0.10
STEADY_WIDTH = 0.10  # of a 95 % interval, relative: wider than what most design decisions turn on. Chosen by us.


# Order ----------------------------------------------------------------------------------------------------------


def orders(num_models: int, rounds: int, seed: int, process: int) -> list[list[int]]:
    """The order of the models in each round of a process: shuffled anew every round, the same for a same seed.

    Shuffling is not optional: sequential medians of identical work came out 38 % apart (nanobench's documentation).
    """
    rng = random.Random(f"{seed}/{process}")
    result = []
    for _ in range(rounds):
        order = list(range(num_models))
        rng.shuffle(order)
        result.append(order)
    return result


def load_order(num_models: int, seed: int, process: int) -> list[int]:
    """The order in which a process loads the models, its own in each process: `[place in the worker] -> model`.

    Where a model lies in memory is part of its time (Mytkowicz et al. 2009, "Producing wrong data without doing
    anything obviously wrong!"), and loaded in one order it lies at the same place in every process.
    """
    order = list(range(num_models))
    random.Random(f"{seed}/{process}/load").shuffle(order)
    return order


# Drift ----------------------------------------------------------------------------------------------------------


def is_busy(ratio: float) -> bool:
    return ratio >= BUSY_WALL_OVER_CPU


@dataclass(frozen=True, slots=True)
class Drift:
    """Whether a series changed its level: where (first process and round after the change) and by how much."""

    verdict: Literal["none", "drift"]
    p_value: float
    series: str = ""  # "speedometer" (the clock itself) or "reference" (also memory and caches)
    process: int = 0
    round: int = 0
    change_ratio: float = 1.0  # median after / median before: 1.3 is 30 % slower

    def to_json(self) -> dict[str, Any]:
        return {
            "series": self.series,
            "process": self.process,
            "round": self.round,
            "change_ratio": self.change_ratio,
            "p_value": self.p_value,
        }


@lru_cache(maxsize=128)
def session_drift(speedometer_cpu_s: Series, reference_cpu_s: Series | None) -> Drift | None:
    """The session's verdict: drift where either series changed by DRIFT_SIZE or more with p < DRIFT_P.

    Processes follow one another in time, so their series are joined. Of two changes the larger is told.
    """
    found: list[Drift] = []
    for name, series in (("speedometer", speedometer_cpu_s), ("reference", reference_cpu_s)):
        change = stats.cusum(stats.pooled(series)) if series else None
        if series is None or change is None:
            continue
        size = abs(math.log(change.change_ratio)) if change.change_ratio > 0 else 0.0
        is_drift = change.p_value < DRIFT_P and size >= math.log1p(DRIFT_SIZE)
        process, round_ = _locate(series, change.at)
        if name == "speedometer" and round_ == len(series[process]) - 1:  # taken after the process's last round
            process, round_ = (process + 1, 0) if process + 1 < len(series) else (process, max(0, round_ - 1))
        found.append(Drift("drift" if is_drift else "none", change.p_value, name, process, round_, change.change_ratio))
    return max(found, key=lambda d: (d.verdict == "drift", abs(math.log(d.change_ratio or 1.0))), default=None)


def _locate(series: Series, at: int) -> tuple[int, int]:
    for process, rounds in enumerate(series):
        if at < len(rounds):
            return process, at
        at -= len(rounds)
    raise AssertionError("outside the series")


def doubts(processes: int, rounds: int, drift: Drift | None, estimate: Estimate) -> tuple[str, ...]:
    """Each reason not to call a number steady."""
    found = []
    if processes < ENOUGH_PROCESSES or rounds < ENOUGH_ROUNDS:
        found.append(
            f"only {processes} process(es) x {rounds} round(s); "
            f"a ranking needs {ENOUGH_PROCESSES} x {ENOUGH_ROUNDS} or more"
        )
    if drift is None:
        found.append("too few rounds to see a drift of the clock")
    elif drift.verdict == "drift":
        found.append(
            f"the {drift.series} changed {drift.change_ratio:.2f}-fold "
            f"at process {drift.process + 1}, round {drift.round + 1}"
        )
    if not estimate.is_known:
        found.append("one process: there is no interval, and no place in a ranking")
    elif estimate.width > STEADY_WIDTH:
        found.append(f"the interval is {estimate.width:.1%} wide, over {STEADY_WIDTH:.0%}")
    return tuple(found)


# Ranking --------------------------------------------------------------------------------------------------------


def ratio_between(a: Timing, b: Timing, state: str = WARM) -> Estimate:
    """a / b with its 95 % interval: by their own calls in the same rounds, or by way of the reference of two sessions.

    Raises BblabError for two timings that cannot be compared.
    """
    _comparable(a, b)
    if a.session == b.session:
        return stats.ratio_of(a.series(state), b.series(state), a.functional(state))
    if a.reference_key != b.reference_key:
        raise BblabError(
            f"{a.label} and {b.label} were measured against different references",
            hint="measure them in one session, or against the same reference",
        )
    ours, theirs = a.ratio_in(state), b.ratio_in(state)
    value = ours.value / theirs.value
    if not (ours.is_known and theirs.is_known):
        return Estimate(value, 0.0, math.inf)

    def side(*spans: float) -> float:
        return math.sqrt(sum(s * s for s in spans))

    # Independent sessions: the two errors of the logarithms add in quadrature.
    down = side(math.log(ours.value / ours.low), math.log(theirs.high / theirs.value))
    up = side(math.log(ours.high / ours.value), math.log(theirs.value / theirs.low))
    return Estimate(value, value * math.exp(-down), value * math.exp(up))


def _comparable(a: Timing, b: Timing) -> None:
    for name in ("device", "processor", "runtime", "runtime_version", "precision", "threads", "pace_fps"):
        if getattr(a, name) != getattr(b, name):
            raise BblabError(
                f"{a.label} and {b.label} differ in {name}: {getattr(a, name)} and {getattr(b, name)}",
                hint="a ranking belongs to one device, runtime, precision, number of threads and pace",
            )


def settled(a: Timing, b: Timing) -> Estimate:
    """a / b with the interval that allows for every look at a measurement that goes on until somebody wins."""
    _comparable(a, b)
    if a.session == b.session:
        return stats.contest(a.series(WARM), b.series(WARM), a.functional(WARM))
    return ratio_between(a, b)


def is_tie(a: Timing, b: Timing) -> bool:
    return ratio_between(a, b).sign == 0


def ties(timings: Sequence[Timing]) -> list[tuple[Timing, Timing]]:
    """Every pair whose order the measurement does not settle."""
    return [(a, b) for i, a in enumerate(timings) for b in timings[i + 1 :] if is_tie(a, b)]


def has_separated(timings: Sequence[Timing]) -> bool:
    """Whether a measurement may end: every pair is settled, for all the looks together."""
    return all(settled(a, b).sign for i, a in enumerate(timings) for b in timings[i + 1 :])


def turned(timings: Sequence[Timing]) -> list[tuple[str, Timing, Timing]]:
    """(state, faster warm, slower warm) of each pair that cold or paced turns round, apart beyond doubt in both."""
    found = []
    for state in (COLD, PACED):
        having = [t for t in timings if t.has(state)]
        for i, a in enumerate(having):
            for b in having[i + 1 :]:
                warm, other = ratio_between(a, b).sign, ratio_between(a, b, state).sign
                if warm * other < 0:
                    found.append((state, a, b) if warm < 0 else (state, b, a))
    return found


def ordered(timings: Sequence[Timing]) -> list[Timing]:
    """Fastest first, by warm calls: by their own ratio to one of them, so that nets of several input sizes rank."""
    return sorted(timings, key=lambda t: -ratio_between(timings[0], t).value)


def rank(timings: Sequence[Timing]) -> list[list[Timing]]:
    """Groups, fastest first; any two of different groups are settled, within a group some pair is a tie.

    Ties do not chain (a = b and b = c, yet a < c), so a group can hold settled pairs: `ties` lists the others.
    """
    in_order = ordered(timings)
    groups: list[list[Timing]] = []
    reach = -1  # the last place that is tied with anything in the open group
    for place, timing in enumerate(in_order):
        if place > reach:
            groups.append([])
        groups[-1].append(timing)
        for later in range(place + 1, len(in_order)):
            if later > reach and is_tie(timing, in_order[later]):
                reach = later
    return groups


def spinning_waste(many: Timing, one: Timing) -> float:
    """CPU(T) / CPU(1) of the same net: 1 is perfect, T means that every thread did (or spun) the whole work."""
    if many.key != one.key or one.threads != 1:
        raise BblabError(
            f"{many.label} at {many.threads} threads beside {one.label} at {one.threads}",
            hint="give the same net, the second at one thread",
        )
    return many.cpu_p10_s / one.cpu_p10_s
