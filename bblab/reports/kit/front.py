"""The front of accuracy against cost, and how far it can be believed: pure functions on numbers.

A point is on the front if no other is at least as cheap and at least as accurate, and better in one. Both axes are
measured, so membership is a probability: the share of draws in which a point is on the front. Draws of a latency are of
the t distribution that its interval is of, the same noise for all nets of one session, because they ran in the same
rounds; accuracies are drawn over seeds. What to measure next: the share of the membership's
variance that goes away when one candidate's value is known (first-order effect, Sobol 1993; Saltelli et al. 2010,
doi 10.1016/j.cpc.2009.09.018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Z95 = 1.959964  # of a normal distribution: half a 95 % interval in standard deviations


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval; None where nothing is known of the spread."""

    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


def on_front(x: Sequence[float], y: Sequence[float]) -> list[bool]:
    """Which points are on the front: x is a cost, y an accuracy. Equal points stand or fall together.

    A point with a NaN or an infinity is on no front.
    """
    import numpy as np

    if not len(x):
        return []
    return [bool(v) for v in membership(np.asarray(x, dtype=float)[None], np.asarray(y, dtype=float)[None])[0]]


def membership(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`on_front` of every row: (draws, points) in both axes -> bool (draws, points)."""
    import numpy as np

    x, y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    if not x.size:
        return np.zeros(x.shape, dtype=bool)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(known, x, np.inf), np.where(known, y, -np.inf)
    # By cost, the most accurate first among equals: then a point is on the front if it beats all before it.
    order = np.lexsort((-y, x), axis=-1)
    xs, ys = np.take_along_axis(x, order, -1), np.take_along_axis(y, order, -1)
    best = np.maximum.accumulate(ys, axis=-1)
    before = np.concatenate([np.full_like(best[:, :1], -np.inf), best[:, :-1]], axis=-1)
    ahead = ys > before
    # An equal of the one before shares its fate: look up the first of the run of equals.
    same = np.zeros_like(ahead)
    same[:, 1:] = (xs[:, 1:] == xs[:, :-1]) & (ys[:, 1:] == ys[:, :-1])
    place = np.broadcast_to(np.arange(xs.shape[1]), xs.shape)
    first = np.maximum.accumulate(np.where(same, 0, place), axis=-1)
    found = np.zeros_like(ahead)
    np.put_along_axis(found, order, np.take_along_axis(ahead, first, -1), -1)
    return found & known


def steps(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """The front's points in order of cost, equals once: the corners of the step line."""
    return sorted({(a, b) for a, b, is_on in zip(x, y, on_front(x, y), strict=True) if is_on})


def tied(
    x: Sequence[Interval], y: Sequence[Interval], candidates: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """Pairs that cannot be told apart on either axis: their intervals overlap on both."""
    chosen = range(len(x)) if candidates is None else candidates
    return [(i, j) for i in chosen for j in chosen if i < j and x[i].overlaps(x[j]) and y[i].overlaps(y[j])]


def level_with_front(x: Sequence[Interval], y: Sequence[Interval], is_on: Sequence[bool]) -> list[bool]:
    """Points off the front that cannot be told apart from one on it."""
    import numpy as np

    if not len(x):
        return []
    xl, xh = np.array([i.low for i in x]), np.array([i.high for i in x])
    yl, yh = np.array([i.low for i in y]), np.array([i.high for i in y])
    found = np.zeros(len(x), dtype=bool)
    for i in np.flatnonzero(np.asarray(is_on)):
        found |= (xl <= xh[i]) & (xl[i] <= xh) & (yl <= yh[i]) & (yl[i] <= yh)
    return [bool(f) and not on for f, on in zip(found, is_on, strict=True)]


# Draws ----------------------------------------------------------------------------------------------------------


def session_draws(logs: Sequence[Sequence[float]], seeds: Sequence[int], draws: int, seed: int) -> np.ndarray:
    """Draws of the mean log ratio of a net from Student's t, the log ratios of its processes given for each session.

    One session: a t of its processes. Several: also of the sessions' means, which differ by more than their processes
    tell. `seeds` name the sessions: nets that ran in the same rounds share what their processes had in common, so that
    what moved all of them together moves no ranking.
    """
    import numpy as np

    k = len(logs)
    means = np.array([np.mean(each) for each in logs])
    found = np.zeros(draws)
    for each, mean, own in zip(logs, means, seeds, strict=True):
        rng, n = np.random.default_rng(own), len(each)
        z = rng.standard_normal((draws, n))
        if n > 1:
            found += z @ (np.asarray(each) - mean) / math.sqrt(n * (n - 1)) / k
        if k > 1:
            found += rng.standard_normal(draws) * (mean - means.mean()) / math.sqrt(k * (k - 1))
    dof = sum(map(len, logs)) - k
    if dof > 0:
        found *= np.sqrt(dof / np.random.default_rng(seed).chisquare(dof, draws))
    return found + means.mean()


def normal_draws(value: float, low: float | None, high: float | None, draws: int, seed: int) -> np.ndarray:
    """Draws around a value of which only a 95 % interval is known; the value itself where there is none.

    Normal on each side with a width of its own, so that an accuracy near 100 % does not pass it.
    """
    import numpy as np

    if low is None or high is None or not high > low:
        return np.full(draws, value)
    z = np.random.default_rng(seed).standard_normal(draws) / Z95
    return value + z * np.where(z < 0, max(value - low, 0.0), max(high - value, 0.0))


def pooled_draws(each: Sequence[np.ndarray], centres: Sequence[float], seed: int) -> np.ndarray:
    """Draws of the mean of several measurements of one thing (seeds, sessions), each with draws of its own.

    The measurements themselves are drawn with replacement; their deviations are widened by sqrt(n / (n - 1)), without
    which two or three of them would look far too sure.
    """
    import numpy as np

    stacked = np.stack(each)  # n, draws
    n, draws = stacked.shape
    if n == 1:
        return stacked[0]
    centre = np.asarray(centres, dtype=float)
    mean = centre.mean()
    chosen = np.random.default_rng(seed).integers(n, size=(draws, n))
    between = centre[chosen].mean(axis=1) - mean
    within = (stacked - centre[:, None]).mean(axis=0)
    return mean + math.sqrt(n / (n - 1)) * between + within


def interval_of(value: float, draws: np.ndarray) -> Interval | None:
    """The central 95 % of the draws, widened to hold the value; None where they do not spread."""
    import numpy as np

    low, high = (float(v) for v in np.quantile(draws, (0.025, 0.975)))
    return None if high <= low else Interval(min(low, value), max(high, value))


# What to measure next -------------------------------------------------------------------------------------------

FEW = 12  # values of a candidate: up to so many are taken one by one, more in bins of equal share
BINS = 10


def worth_measuring(is_on: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each candidate, how many memberships its value would settle, were it known: a variance, in candidates.

    `is_on`: (draws, points) memberships; `values`: (draws, candidates), NaN-free. The result, one a candidate, is
    sum over points of Var(E[on front | value]): 0 where the value decides nothing, at most the sum of p (1 - p).
    """
    import numpy as np

    total = len(is_on)
    found = np.zeros(values.shape[1])
    if not total:
        return found
    open_ones = is_on[:, is_on.any(0) & ~is_on.all(0)].astype(np.float32)
    if not open_ones.shape[1]:
        return found
    mean = open_ones.mean(0)
    variance = float((mean * (1 - mean)).sum())
    for i in range(values.shape[1]):
        distinct, inverse = np.unique(values[:, i], return_inverse=True)
        if len(distinct) < 2:
            continue
        chance = 0.0
        if len(distinct) > FEW:
            inverse = np.empty(total, dtype=int)
            inverse[np.argsort(values[:, i], kind="stable")] = np.arange(total) * BINS // total
            chance = (BINS - 1) / total * variance  # what bins of pure noise would show
        count = np.bincount(inverse)
        by_bin = np.argsort(inverse, kind="stable")
        sums = np.add.reduceat(open_ones[by_bin], np.concatenate(([0], np.cumsum(count)[:-1])), axis=0)
        between = (count[:, None] / total * (sums / count[:, None] - mean) ** 2).sum()
        found[i] = max(0.0, float(between) - chance)
    return found
