"""Round numbers for an axis: multiples of 1, 2 or 5 times a power of ten, far enough apart to be read.

A log axis that spans enough takes 1, 2, 5, 10, 20 ...; a narrow one evenly stepped numbers (0.8, 1.0, 1.2), as a person
would. Pure: print and page have the same ticks.
"""

from __future__ import annotations

import itertools
import math

MOST = 7
LEAST = 3
APART = 0.085  # of the axis: a label of five digits and a space in an axis of print size


def nice(low: float, high: float, *, is_log: bool = False, apart: float = APART) -> list[float]:
    """Ticks from `low` to `high` (either order), in rising order; `apart`: the least gap, as a share of the axis."""
    low, high = min(low, high), max(low, high)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return [low] if math.isfinite(low) else []
    if is_log and low <= 0:
        return []
    if is_log:
        for steps in ((1, 2, 5), (1,)):
            found = log_steps(steps, low, high)
            if len(found) >= LEAST and len(found) <= MOST and _gap(found, low, high, is_log) >= apart:
                return found
        if len(found) > MOST:  # many decades: every second, third ...
            return found[:: -(-len(found) // MOST)]
    return _even(low, high, is_log, apart)


def log_steps(steps: tuple[float, ...], low: float, high: float) -> list[float]:
    """Each step times each power of ten within the ends."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    found = (float(f"{s * 10.0**d:.12g}") for d in decades for s in steps)
    return [v for v in found if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]


def _even(low: float, high: float, is_log: bool, apart: float) -> list[float]:
    """Multiples of the smallest step whose multiples are few and far apart."""
    exponent = math.floor(math.log10(high - low)) - 1
    found: list[float] = []
    for power in range(exponent, exponent + 4):
        for base in (1, 2, 5):
            step = base * 10.0**power
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if last - first > 4 * MOST:
                continue
            ticks = [float(f"{k * step:.12g}") for k in range(first, last + 1)]
            ticks = [t for t in ticks if t > 0] if is_log else ticks
            if len(ticks) <= MOST and (len(ticks) < 2 or _gap(ticks, low, high, is_log) >= apart):
                return ticks if ticks else found
            found = ticks
    return found


def _gap(ticks: list[float], low: float, high: float, is_log: bool) -> float:
    """The least distance of two neighbours, as a share of the axis."""
    if is_log:
        ticks, low, high = [math.log(t) for t in ticks], math.log(low), math.log(high)
    return min((b - a for a, b in itertools.pairwise(ticks)), default=math.inf) / (high - low)


def texts(ticks: list[float]) -> list[str]:
    """The numbers, evenly spaced ones with as many decimals as the finest of them needs: 0.8, 1.0, 1.2."""
    gaps = [b - a for a, b in itertools.pairwise(ticks)]
    if not gaps or max(gaps) - min(gaps) > 1e-6 * max(gaps):
        return [f"{t:.12g}" for t in ticks]
    places = max(len(f"{t:.12f}".rstrip("0").partition(".")[2]) for t in ticks)
    return [f"{t:.{places}f}" for t in ticks]


def bounded(low: float, high: float, least: float | None, most: float | None, *, margin: float) -> tuple[float, float]:
    """An axis around values from `low` to `high` with a margin (share of their span) that passes no bound.

    Values beyond a bound are shown all the same: a wrong number must be seen.
    """
    room = max(margin * (high - low), 0.004 * max(abs(low), abs(high)), 1e-6)
    bottom, top = low - room, high + 1.5 * room
    if least is not None:
        bottom = max(bottom, min(least, low))
    if most is not None:
        top = min(top, max(most, high))
    return bottom, top
