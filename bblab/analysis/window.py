"""Which input pixels one output unit sees: exact interval arithmetic along one axis.

Unit i of a map sees the interval [low(i), high(i)] of the input. For convolutions and pools both ends move by the
same step from unit to unit; an upsampled map repeats a pattern of several units, hence the period. The extremes of
composed and joined windows are exact, so the extent equals the extent of the non-zero input gradient of a net whose
weights are all positive (Araujo et al. 2019, "Computing Receptive Fields of Convolutional Neural Networks").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

Range = tuple[int, int]
"""First and last index, both included; last < first where there is none."""


@dataclass(frozen=True, slots=True)
class Window:
    """Unit q * period + r sees [q * step + lows[r], q * step + highs[r]], in pixels of the input."""

    step: int
    lows: tuple[int, ...]
    highs: tuple[int, ...]

    @property
    def period(self) -> int:
        return len(self.lows)

    @property
    def jump(self) -> Fraction:
        """Input pixels between neighbouring units: the total stride."""
        return Fraction(self.step, len(self.lows))

    def low(self, unit: int) -> int:
        q, r = divmod(unit, len(self.lows))
        return q * self.step + self.lows[r]

    def high(self, unit: int) -> int:
        q, r = divmod(unit, len(self.highs))
        return q * self.step + self.highs[r]

    def extent(self, unit: int = 0) -> int:
        """Receptive field of a unit in pixels."""
        return self.high(unit) - self.low(unit) + 1

    def centre(self, unit: float) -> float:
        """Centre of a unit's window in pixels; between two units, between their centres."""
        below = math.floor(unit)
        share = unit - below
        here = (self.low(below) + self.high(below)) / 2
        return here if share == 0 else here * (1 - share) + share * (self.low(below + 1) + self.high(below + 1)) / 2

    def after(self, inner: Window) -> Window:
        """The window of a map computed (`inner`) from the map that this window describes."""
        if len(self.lows) == 1 and len(inner.lows) == 1:
            step, low, high = self.step, self.lows[0], self.highs[0]
            return Window(step * inner.step, (low + step * inner.lows[0],), (high + step * inner.highs[0],))
        turns = self.period // math.gcd(self.period, inner.step)
        units = range(turns * inner.period)
        return Window(
            turns * inner.step // self.period * self.step,
            tuple(self.low(inner.low(i)) for i in units),
            tuple(self.high(inner.high(i)) for i in units),
        ).shortest()

    def joined(self, other: Window) -> Window | None:
        """The window of a sum or concatenation of two maps; None where their strides differ."""
        if self == other:
            return self
        if self.jump != other.jump:
            return None
        period = math.lcm(self.period, other.period)
        units = range(period)
        return Window(
            self.step * (period // self.period),
            tuple(min(self.low(i), other.low(i)) for i in units),
            tuple(max(self.high(i), other.high(i)) for i in units),
        ).shortest()

    def shortest(self) -> Window:
        """The same window with the shortest period."""
        for period in range(1, self.period):
            turns, rest = divmod(self.period, period)
            if rest or self.step % turns:
                continue
            short = Window(self.step // turns, self.lows[:period], self.highs[:period])
            if all(short.low(i) == self.lows[i] and short.high(i) == self.highs[i] for i in range(self.period)):
                return short
        return self

    def clean(self, given: Range, size: int) -> Range:
        """The units, of `size`, whose whole window lies in `given`."""
        first, last = given
        if len(self.lows) == 1:
            low = -((self.lows[0] - first) // self.step)
            high = (last - self.highs[0]) // self.step
            return max(low, 0), min(high, size - 1)
        units = [i for i in range(size) if self.low(i) >= first and self.high(i) <= last]
        return (units[0], units[-1]) if units else (0, -1)


SAME = Window(1, (0,), (0,))
"""Every unit sees its own place."""


def sliding(kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> Window:
    """A convolution or pool."""
    return Window(stride, (-pad,), ((kernel - 1) * dilation - pad,))


def shifted(by: int, step: int = 1) -> Window:
    """A crop (by > 0) or padding (by < 0) at the near side."""
    return Window(step, (by,), (by,))


def upsampled(factor: int) -> Window:
    """Each unit copied `factor` times."""
    return Window(1, (0,) * factor, (0,) * factor)


def resized(size: int, out: int, mode: str) -> Window:
    """A map of `size` units brought to `out` units, in any ratio, as torch's interpolate does (half-pixel centres).

    nearest and nearest-exact copy one unit, bilinear mixes the two beside the place, area takes all that it overlaps.
    """
    common = math.gcd(size, out)
    lows, highs = [], []
    for unit in range(out // common):
        if mode == "area":
            low, high = unit * size // out, -(-(unit + 1) * size // out) - 1
        elif mode == "bilinear":
            place = Fraction((2 * unit + 1) * size, 2 * out) - Fraction(1, 2)
            low, high = math.floor(place), math.ceil(place)
        else:
            assert mode in ("nearest", "nearest-exact"), mode
            low = high = unit * size // out if mode == "nearest" else (2 * unit + 1) * size // (2 * out)
        lows.append(low)
        highs.append(high)
    return Window(size // common, tuple(lows), tuple(highs)).shortest()


def transposed(kernel: int, stride: int, pad: int, dilation: int) -> Window | None:
    """A transposed convolution; None where some unit sees nothing (kernel shorter than stride)."""
    reach = (kernel - 1) * dilation
    lows = tuple(-((reach - r - pad) // stride) for r in range(stride))
    highs = tuple((r + pad) // stride for r in range(stride))
    if any(low > high for low, high in zip(lows, highs, strict=True)):
        return None
    return Window(1, lows, highs)
