"""Statistics of timings, as pure functions: one ratio and one interval for table, chart, ties and JSON.

A process gives one value a net: the smallest CPU time of its warm calls, or the median over its rounds of a log ratio
that is paired within the round. The mean of the log ratios over processes is the estimate, Student's t over processes
its interval: processes are independent, calls of one process are not. A percentile bootstrap of 5, 6 and 8 process
means held the truth in 82, 86 and 88 % of synthetic sessions at nominal 95, Student's t in 94 to 95 %.
CUSUM with permutation: Taylor 2000, "Change-point analysis". Error spent over looks: Lan and DeMets 1983,
Biometrika 70. Neither torch nor a file, clock or device is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from bblab.errors import BblabError

if TYPE_CHECKING:
    import numpy as np

Series = tuple[tuple[float, ...], ...]  # [process][call], seconds
Functional = Literal["cpu_min", "cpu_paired", "wall_paired"]

ERROR = 0.05  # of an interval: 95 %


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval, 95 % unless said otherwise; the interval of one process is infinitely wide."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Relative: (high - low) / value."""
        return (self.high - self.low) / self.value

    @property
    def is_known(self) -> bool:
        """Whether there is an interval at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def sign(self) -> int:
        """Of a ratio: -1 where the first is faster beyond doubt, 1 where the second is, 0 where neither is."""
        return -1 if self.high < 1.0 else int(self.low > 1.0)

    def to_json(self) -> tuple[float | None, float | None]:
        return (self.low, self.high) if self.is_known else (None, None)


def pooled(series: Series) -> tuple[float, ...]:
    return tuple(x for process in series for x in process)


def quantile(values: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics, as numpy's default."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def wall_over_cpu(wall_s: Series, cpu_s: Series) -> float:
    """Total wall time over total CPU time; infinite where the CPU clock saw nothing."""
    cpu = sum(pooled(cpu_s))
    return sum(pooled(wall_s)) / cpu if cpu > 0 else math.inf


# The functional -------------------------------------------------------------------------------------------------


def functional_of(state: str, threads: int, processor: str = "cpu") -> Functional:
    """Which value of a process is compared: it follows from what was asked, never from what came out.

    With T threads CPU time counts spinning (2 threads of ncnn: 28 -> 185 ms CPU), so it is not a latency; beside a GPU
    it is the time of waiting; a paced call's latency includes waking up.
    """
    if threads > 1 or processor != "cpu" or state == "paced":
        return "wall_paired"
    return "cpu_min" if state == "warm" else "cpu_paired"


def process_logs(ours: Series, theirs: Series, functional: Functional) -> tuple[float, ...]:
    """One log ratio ours / theirs a process: of the smallest calls, or the median over calls of the same rounds."""
    assert len(ours) == len(theirs), "the two did not run in the same processes"
    if min(pooled(ours)) <= 0 or min(pooled(theirs)) <= 0:
        raise BblabError(
            "a call took no time at all: the device's CPU clock is too coarse for these models",
            hint="measure larger nets or a larger input there",
            exit_code=1,
        )
    if functional == "cpu_min":
        return tuple(math.log(min(a) / min(b)) for a, b in zip(ours, theirs, strict=True))
    return tuple(
        quantile([math.log(x / y) for x, y in zip(a, b, strict=True)], 0.5) for a, b in zip(ours, theirs, strict=True)
    )


def level(process: Sequence[float], functional: Functional) -> float:
    """Seconds of one net in one process: the value whose ratio `process_logs` takes."""
    return min(process) if functional == "cpu_min" else quantile(process, 0.5)


def mean_interval(values: Sequence[float], error: float = ERROR) -> Estimate:
    """The mean of independent values with Student's t interval; infinitely wide for one value."""
    mean, n = sum(values) / len(values), len(values)
    if n == 1:
        return Estimate(mean, -math.inf, math.inf)
    spread = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1))
    half = students_t(1 - error / 2, n - 1) * spread / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half)


def mean_ratio(logs: Sequence[float], error: float = ERROR) -> Estimate:
    """The geometric mean of ratios given as logarithms, with its interval."""
    found = mean_interval(logs, error)
    return Estimate(math.exp(found.value), _exp(found.low), _exp(found.high))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700.0 else math.inf


@lru_cache(maxsize=4096)
def ratio_of(ours: Series, theirs: Series, functional: Functional) -> Estimate:
    """The ratio ours / theirs of two nets that ran in the same rounds, with its 95 % interval."""
    return mean_ratio(process_logs(ours, theirs, functional))


@lru_cache(maxsize=512)
def p10_interval(series: Series) -> Estimate:
    """The p10 over all calls in seconds, for people, and the 95 % interval over processes that holds it."""
    value = quantile(pooled(series), 0.1)
    own = mean_ratio([math.log(max(quantile(process, 0.1), 1e-12)) for process in series])
    return Estimate(value, min(own.low, value), max(own.high, value))


# Who is faster, however often one looks -------------------------------------------------------------------------

FALSE_CLAIMS = 0.05  # of duels between a net and itself, over all their looks together
FIRST_LOOK = 6  # processes


def contest(ours: Series, theirs: Series, functional: Functional) -> Estimate:
    """The same ratio with the interval that says who is faster whenever the measurement was stopped.

    Peeking at a plain 95 % interval after each of 6 to 36 processes instead calls one of five nets faster than itself
    (tests/test_latency_stats.py).
    """
    return mean_ratio(process_logs(ours, theirs, functional), error_at(looks_taken(len(ours))))


def is_look(processes: int) -> bool:
    """Whether a measurement may stop after so many processes because the ranking has separated."""
    return processes in _looks(processes)


def looks_taken(processes: int) -> int:
    """Looks up to and with the last process. A measurement that ended between two was looked at once more there."""
    scheduled = _looks(processes)
    return len(scheduled) + (processes not in scheduled)


@lru_cache(maxsize=256)
def _looks(processes: int) -> tuple[int, ...]:
    """6, 8, 11, 15, 20, 27, 36, ...: a third more each time, so that looks stay few and cost little."""
    found, at = [], FIRST_LOOK
    while at <= processes:
        found.append(at)
        at = -(-at * 4 // 3)
    return tuple(found)


def error_at(look: int) -> float:
    """What the k-th look may spend: 1/(k (k+1)) of FALSE_CLAIMS. They add up to FALSE_CLAIMS however long it goes on.

    By the union bound, so it holds whatever the looks have in common.
    """
    return FALSE_CLAIMS / (look * (look + 1))


@lru_cache(maxsize=512)
def students_t(p: float, dof: int) -> float:
    """The p-quantile of Student's t for whole degrees of freedom, p >= 0.5, to 1e-9.

    Neither numpy nor torch has it, and scipy is not among the core dependencies.
    """
    low, high = 0.0, 1.0
    while _t_cdf(high, dof) < p:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, dof) < p else (low, middle)
    return high


def _t_cdf(t: float, dof: int) -> float:
    """Abramowitz and Stegun 1964, 26.7.3 and 26.7.4: finite sums."""
    angle = math.atan(t / math.sqrt(dof))
    sine, cosine2 = math.sin(angle), math.cos(angle) ** 2
    if dof % 2 == 0:
        term = total = 1.0
        for k in range(1, dof // 2):
            term *= cosine2 * (2 * k - 1) / (2 * k)
            total += term
        return 0.5 + 0.5 * sine * total
    total = 0.0
    term = math.cos(angle)
    for k in range(1, (dof - 1) // 2 + 1):
        total += term
        term *= cosine2 * 2 * k / (2 * k + 1)
    return 0.5 + (angle + sine * total) / math.pi


# A change of level ----------------------------------------------------------------------------------------------

PERMUTATIONS = 999
LEAST_VALUES = 8  # with fewer, no order of them reaches p < .01 with a change inside


@dataclass(frozen=True, slots=True)
class Change:
    """CUSUM's most likely change point: the index of the first value after it."""

    at: int
    p_value: float
    change_ratio: float


def cusum(values: Sequence[float], *, permutations: int = PERMUTATIONS, seed: int = 0) -> Change | None:
    """The most likely change of level in a series, and how often a shuffled series looks as changed.

    On ranks, so that one call hit by an interrupt does not pass for a change. The walk is held against its own spread
    at each place: the plain one hardly reaches p < .01 for a step among the first or last fifth of 30 values, and saw
    91 to 96 % of steps of 15 % there and between (200 synthetic sessions each), this one 99 to 100 %, with as few
    false ones (benchmarks/latency_drift.py). None for fewer than LEAST_VALUES values.
    """
    import numpy as np

    n = len(values)
    if n < LEAST_VALUES:
        return None
    x = np.asarray(values, dtype=float)
    # Ties share their mean rank: a coarse clock must not make an order out of nothing.
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    centred = ranks - ranks.mean()
    if not centred.any():
        return Change(0, 1.0, 1.0)
    place = np.arange(1, n)
    weight = 1 / np.sqrt(place * (n - place) / n)
    weight[[0, -1]] = 0.0  # one value is no level
    walk = np.abs(np.cumsum(centred))[:-1] * weight
    at = _split(np.log(np.maximum(x, 1e-12)))
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.broadcast_to(centred, (permutations, n)), axis=1)
    peaks = (np.abs(np.cumsum(shuffled, axis=1))[:, :-1] * weight).max(axis=1)
    p_value = float((np.sum(peaks >= walk.max() - 1e-9) + 1) / (permutations + 1))
    return Change(at, p_value, float(np.median(x[at:]) / np.median(x[:at])))


def _split(x: np.ndarray) -> int:
    """Where two levels fit best: the least sum of absolute distances to each side's median, two values a side.

    The walk's own peak leans to the middle when the step is early or late; least squares run after a single outlier.
    """
    import numpy as np

    def misfit(at: int) -> float:
        return float(sum(np.abs(side - np.median(side)).sum() for side in (x[:at], x[at:])))

    return min(range(2, len(x) - 1), key=misfit)
