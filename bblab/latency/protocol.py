"""How to measure, as pure functions: the order of calls, estimates, intervals, drift, ties.

Reads no clock and no file. Where the numbers come from: on a 2-core machine under load, the p10
of CPU time as a ratio to a reference that runs in the same shuffled rounds spread 1.4 % between repetitions, the
wall median of one net run alone 53 %. Kernel of the drift test: CUSUM with permutation (Taylor 2000, "Change-point
analysis"). Intervals: cluster bootstrap, processes first, then rounds within (Davison and Hinkley 1997, section 3.8).
Who is faster of two: `contest`, Student's t over processes with an error that is spent over the looks (Lan and DeMets
1983, Biometrika 70), because a measurement that goes on until somebody wins is otherwise won by chance.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from bblab.errors import BblabError

if TYPE_CHECKING:
    import numpy as np

    from bblab.latency.values import Timing

Series = tuple[tuple[float, ...], ...]  # [process][round], seconds
Estimator = Literal["cpu_p10", "cpu_paired", "wall_paired"]

BUSY_WALL_OVER_CPU = 1.02  # from here on wall medians were 14 % and more over the best ever seen
ENOUGH_PROCESSES, ENOUGH_ROUNDS = 5, 2  # ranking of six nets was stable from here on (Kendall tau 1.000)
DRIFT_P = 0.01
# A smaller step of the clock moves the ratio of shuffled calls by less than its interval, and without a floor the
# test, which takes every process's own memory layout for a level, would cry drift on a usable machine. Chosen by us,
# 2026-11: in 14 sessions of 6 x 5 on a 2-core guest, the changes with p < .01 were of 2 to 9 %, and the ratio of
# mobilenetv3_small_100 to resnet18 at 255 px all the same spread 2.1 %.
DRIFT_SIZE = 0.10
DRIFT_LEAST = 8  # points; with fewer, no order of them reaches p < .01 with a change inside
STEADY_WIDTH = 0.10  # of a 95 % interval, relative: wider than what most design decisions turn on. Chosen by us.
RESAMPLES = 2000
PERMUTATIONS = 999


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


# Estimates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval, which always holds the value."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Relative: (high - low) / value."""
        return (self.high - self.low) / self.value


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


def is_busy(ratio: float) -> bool:
    return ratio >= BUSY_WALL_OVER_CPU


def choose_estimator(threads: int, drift: Drift | None, processor: str = "cpu") -> Estimator:
    """p10 of CPU time; paired rounds once the clock moved; paired wall time for more than one thread, and on a GPU.

    With T threads CPU time counts spinning (2 threads of ncnn: 28 -> 185 ms CPU), so it is no latency. Beside a GPU it
    is the time of waiting.
    """
    if threads > 1 or processor != "cpu":
        return "wall_paired"
    return "cpu_paired" if drift is not None and drift.verdict == "drift" else "cpu_p10"


@lru_cache(maxsize=512)
def compare(ours: Series, theirs: Series, estimator: Estimator) -> Estimate:
    """The ratio ours / theirs of two models that ran in the same rounds, with its 95 % interval.

    `cpu_p10`: ratio of the p10 over all calls. `*_paired`: exp of the median log ratio within a round, which a
    change of the clock between rounds leaves alone. With one process the interval knows rounds only; it is then
    too narrow, and `doubts` says that processes are few.
    """
    import numpy as np

    _check_pair(ours, theirs)
    if ours == theirs:
        return Estimate(1.0, 1.0, 1.0)
    picks, sizes = _resampled(tuple(map(len, ours)))
    a, b = _flat(ours), _flat(theirs)
    if estimator == "cpu_p10":
        value = quantile(pooled(ours), 0.1) / quantile(pooled(theirs), 0.1)
        drawn = _row_quantile(a[picks], sizes, 0.1) / _row_quantile(b[picks], sizes, 0.1)
    else:
        logs = np.log(a) - np.log(b)
        value = math.exp(float(np.median(logs[:-1])))
        drawn = np.exp(_row_quantile(logs[picks], sizes, 0.5))
    return _around(value, drawn)


@lru_cache(maxsize=512)
def p10_interval(series: Series) -> tuple[float, float]:
    """95 % interval over processes of the p10 itself, in seconds."""
    picks, sizes = _resampled(tuple(map(len, series)))
    estimate = _around(quantile(pooled(series), 0.1), _row_quantile(_flat(series)[picks], sizes, 0.1))
    return estimate.low, estimate.high


def _check_pair(ours: Series, theirs: Series) -> None:
    assert tuple(map(len, ours)) == tuple(map(len, theirs)), "the two did not run in the same rounds"
    if min(pooled(ours)) <= 0 or min(pooled(theirs)) <= 0:
        raise BblabError(
            "a call took no time at all: the device's CPU clock is too coarse for these models",
            hint="measure larger nets or a larger input there",
            exit_code=1,
        )


def _around(value: float, drawn: np.ndarray) -> Estimate:
    import numpy as np

    low, high = (float(x) for x in np.quantile(drawn, (0.025, 0.975)))
    return Estimate(value, min(low, value), max(high, value))


def _flat(series: Series) -> np.ndarray:
    """All values, and a last element NaN that padding points to."""
    import numpy as np

    return np.array([*pooled(series), np.nan])


@lru_cache(maxsize=32)
def _resampled(lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of RESAMPLES cluster-bootstrap samples into `_flat`, padded with -1, and how many are real a row.

    The seed is fixed: the same samples give the same interval, today and in a notebook next year.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    n, longest = np.array(lengths), max(lengths)
    start = np.concatenate(([0], np.cumsum(n)[:-1]))
    process = rng.integers(len(n), size=(RESAMPLES, len(n)))
    within = (rng.random((RESAMPLES, len(n), longest)) * n[process][..., None]).astype(int)
    index = start[process][..., None] + within
    index[np.arange(longest) >= n[process][..., None]] = -1
    return index.reshape(RESAMPLES, -1), n[process].sum(1)


def _row_quantile(rows: np.ndarray, sizes: np.ndarray, q: float) -> np.ndarray:
    """`quantile` of each row's first `size` sorted values; NaN padding sorts last."""
    import numpy as np

    rows = np.sort(rows, axis=1)
    at = q * (sizes - 1)
    below = np.floor(at).astype(int)
    above = np.minimum(below + 1, sizes - 1)
    each = np.arange(len(rows))
    return rows[each, below] + (at - below) * (rows[each, above] - rows[each, below])


# Drift ----------------------------------------------------------------------------------------------------------


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
    false ones (benchmarks/latency_drift.py). None for fewer than DRIFT_LEAST values.
    """
    import numpy as np

    n = len(values)
    if n < DRIFT_LEAST:
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


@lru_cache(maxsize=128)
def session_drift(speedometer_cpu_s: Series, reference_cpu_s: Series | None) -> Drift | None:
    """The session's verdict: drift where either series changed by DRIFT_SIZE or more with p < DRIFT_P.

    Processes follow one another in time, so their series are joined. Of two changes the larger is told.
    """
    found: list[Drift] = []
    for name, series in (("speedometer", speedometer_cpu_s), ("reference", reference_cpu_s)):
        change = cusum(pooled(series)) if series else None
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
    if estimate.width > STEADY_WIDTH:
        found.append(f"the interval is {estimate.width:.1%} wide, over {STEADY_WIDTH:.0%}")
    return tuple(found)


# Who is faster --------------------------------------------------------------------------------------------------

FALSE_CLAIMS = 0.05  # of duels between a net and itself, over all their looks together
FIRST_LOOK = 6  # processes


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


def contest(ours: Series, theirs: Series, estimator: Estimator) -> Estimate:
    """The ratio ours / theirs with the interval that says who is faster, whenever the measurement was stopped.

    One log ratio a process (of the p10s, or the median of its rounds), Student's t over processes: processes are
    independent, calls of one process are not. Infinitely wide for one process. Peeking at a plain 95 % interval after
    each of 6 to 36 processes instead calls one of five nets faster than itself (tests/test_latency_protocol.py).
    """
    _check_pair(ours, theirs)
    if ours == theirs:
        return Estimate(1.0, 1.0, 1.0)
    logs = [_log_ratio(a, b, estimator) for a, b in zip(ours, theirs, strict=True)]
    mean, n = sum(logs) / len(logs), len(logs)
    if n == 1:
        return Estimate(math.exp(mean), 0.0, math.inf)
    spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / (n - 1))
    half = students_t(1 - error_at(looks_taken(n)) / 2, n - 1) * spread / math.sqrt(n)
    return Estimate(math.exp(mean), math.exp(mean - half) if half < 700 else 0.0, math.exp(min(mean + half, 700.0)))


def _log_ratio(ours: tuple[float, ...], theirs: tuple[float, ...], estimator: Estimator) -> float:
    if estimator == "cpu_p10":
        return math.log(quantile(ours, 0.1) / quantile(theirs, 0.1))
    return quantile([math.log(a / b) for a, b in zip(ours, theirs, strict=True)], 0.5)


@lru_cache(maxsize=512)
def students_t(p: float, dof: int) -> float:
    """The p-quantile of Student's t for whole degrees of freedom, p >= 0.5, to 1e-9."""
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


# Ranking --------------------------------------------------------------------------------------------------------


def ratio_between(a: Timing, b: Timing) -> Estimate:
    """a / b with its interval: paired over the same rounds, or by way of the reference if their sessions differ."""
    _comparable(a, b)
    if a.session == b.session:
        estimator = a.estimator
        return compare(a.series_for(estimator), b.series_for(estimator), estimator)
    if a.reference_key != b.reference_key:
        raise BblabError(
            f"{a.label} and {b.label} were measured against different references",
            hint="measure them in one session, or against the same reference",
        )
    value = a.ratio / b.ratio

    def side(*spans: float) -> float:
        return math.sqrt(sum(s * s for s in spans))

    # Independent sessions: the two errors of the logarithms add in quadrature.
    down = side(math.log(a.ratio / a.ratio_low), math.log(b.ratio_high / b.ratio))
    up = side(math.log(a.ratio_high / a.ratio), math.log(b.ratio / b.ratio_low))
    return Estimate(value, value * math.exp(-down), value * math.exp(up))


def _comparable(a: Timing, b: Timing) -> None:
    for name in ("device", "processor", "runtime", "runtime_version", "precision", "threads", "pace_fps"):
        if getattr(a, name) != getattr(b, name):
            raise BblabError(
                f"{a.label} and {b.label} differ in {name}: {getattr(a, name)} and {getattr(b, name)}",
                hint="a ranking belongs to one device, runtime, precision, number of threads and pace",
            )


def settled(a: Timing, b: Timing) -> Estimate:
    """a / b with the interval that decides between them: `contest` within a session, else by way of the reference."""
    _comparable(a, b)
    if a.session == b.session:
        estimator = a.estimator
        return contest(a.series_for(estimator), b.series_for(estimator), estimator)
    return ratio_between(a, b)


def is_tie(a: Timing, b: Timing) -> bool:
    between = settled(a, b)
    return between.low <= 1.0 <= between.high


def ties(timings: Sequence[Timing]) -> list[tuple[Timing, Timing]]:
    """Every pair whose order the measurement does not settle."""
    return [(a, b) for i, a in enumerate(timings) for b in timings[i + 1 :] if is_tie(a, b)]


def rank(timings: Sequence[Timing]) -> list[list[Timing]]:
    """Groups, fastest first; any two of different groups are settled, within a group some pair is a tie.

    Ties do not chain (a = b and b = c, yet a < c), so a group can hold settled pairs: `ties` lists the others.
    """
    ordered = sorted(timings, key=lambda t: t.ratio)
    groups: list[list[Timing]] = []
    reach = -1  # the last place that is tied with anything in the open group
    for place, timing in enumerate(ordered):
        if place > reach:
            groups.append([])
        groups[-1].append(timing)
        for later in range(place + 1, len(ordered)):
            if later > reach and is_tie(timing, ordered[later]):
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
