"""Where labels go: beside their points, over no point, no other label and, if there is room, no line.

Greedy with refinement over a ring of places around each point, as in Christensen, Marks and Shieber 1995,
"An empirical study of algorithms for point-feature label placement". Lengths are in any one unit (points of print).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ANGLES = 24
DISTANCES = (2.0, 6.0, 12.0, 20.0, 32.0, 48.0, 66.0, 90.0, 120.0)
PASSES = 4
MARGIN = 1.5
LINE = 70.0  # of the front, or a bar: through a label it costs as much as a long way beside it
FAINT = 25.0  # a limit or the like, drawn thin


@dataclass(frozen=True, slots=True)
class Rect:
    """A box: its lower left corner and its size."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Rect, margin: float = 0.0) -> float:
        """The shared area, each side widened by the margin."""
        wide = min(self.x + self.width, other.x + other.width) - max(self.x, other.x) + margin
        high = min(self.y + self.height, other.y + other.height) - max(self.y, other.y) + margin
        return wide * high if wide > 0 and high > 0 else 0.0

    def outside(self, bounds: Rect) -> float:
        """How far it sticks out of the bounds, summed over the sides."""
        return (
            max(0.0, bounds.x - self.x)
            + max(0.0, bounds.y - self.y)
            + max(0.0, self.x + self.width - bounds.x - bounds.width)
            + max(0.0, self.y + self.height - bounds.y - bounds.height)
        )


@dataclass(frozen=True, slots=True)
class Anchor:
    """A point to be labelled: its place, the radius of its mark, the size of its label."""

    x: float
    y: float
    radius: float
    width: float
    height: float


def place(
    anchors: Sequence[Anchor],
    marks: Sequence[tuple[float, float, float]],
    bounds: Rect,
    lines: Sequence[tuple[float, float, float, float]] = (),
    faint: Sequence[tuple[float, float, float, float]] = (),
) -> list[Rect]:
    """A box for each label, in order. `marks`: (x, y, radius) of every point; `lines`: segments to keep off; `faint`:
    those to keep off where it costs little.

    Free space above left is preferred: there a front has no points. No label is dropped, so in a crowd that has no
    room some may still touch; `overlapping` tells.
    """
    import numpy as np

    if not anchors:
        return []
    options = [_around(a) for a in anchors]
    fixed = np.array([_costs(found, marks, bounds, lines, faint) for found in options])
    corners = np.array([[(box.x, box.y) for box, _, _ in found] for found in options])  # labels, places, 2
    sizes = np.array([(a.width, a.height) for a in anchors])
    chosen = fixed.argmin(1)
    every = np.arange(len(anchors))
    for _ in range(PASSES):
        moved = False
        for i in every:
            others = every[every != i]
            at = corners[others, chosen[others]]
            ends = np.minimum(corners[i][:, None] + sizes[i], at + sizes[others])
            shared = ends - np.maximum(corners[i][:, None], at) + MARGIN  # places, others, 2
            area = np.where((shared > 0).all(-1), shared.prod(-1), 0.0).sum(1)
            best = int((fixed[i] + 20 * area).argmin())
            moved |= best != chosen[i]
            chosen[i] = best
        if not moved:
            break
    return [options[i][k][0] for i, k in enumerate(chosen)]


def overlapping(boxes: Sequence[Rect]) -> list[tuple[int, int]]:
    """The pairs of boxes that share an area."""
    return [(i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlap(boxes[j]) > 0]


def _around(a: Anchor) -> list[tuple[Rect, float, float]]:
    found = []
    for distance in DISTANCES:
        for k in range(ANGLES):
            angle = 2 * math.pi * k / ANGLES
            reach = a.radius + distance
            x, y = a.x + reach * math.cos(angle), a.y + reach * math.sin(angle)
            # The side of the label that faces the point touches the ring.
            left = x - a.width * (1 - math.cos(angle)) / 2
            low = y - a.height * (1 - math.sin(angle)) / 2
            found.append((Rect(left, low, a.width, a.height), distance, angle))
    return found


def _costs(
    found: Sequence[tuple[Rect, float, float]],
    marks: Sequence[tuple[float, float, float]],
    bounds: Rect,
    lines: Sequence[tuple[float, float, float, float]],
    faint: Sequence[tuple[float, float, float, float]],
) -> list[float]:
    """What each place costs by itself: distance, direction, marks and lines under it. All at once, for crowds."""
    import numpy as np

    cost = np.array(
        [
            0.9 * distance + 6 * abs(math.remainder(angle - 0.75 * math.pi, 2 * math.pi)) + 60 * box.outside(bounds)
            for box, distance, angle in found
        ]
    )
    left, low = (np.array([getattr(box, side) for box, _, _ in found])[:, None] for side in ("x", "y"))
    right, high = left + found[0][0].width, low + found[0][0].height
    if marks:
        x, y, radius = np.array(marks).T
        gap = np.hypot(x - np.clip(x, left, right), y - np.clip(y, low, high)) - radius
        cost += np.where(gap < MARGIN, 25 + 6 * np.minimum(radius, MARGIN - gap), 0.0).sum(1)
    near = left - MARGIN, low - MARGIN, right + MARGIN, high + MARGIN  # a line may not touch the letters either
    for segments, price in ((lines, LINE), (faint, FAINT)):
        if segments:
            cost += price * _crossed(np.array(segments), *near).sum(1)
    return [float(c) for c in cost]


def _crossed(lines: np.ndarray, left: np.ndarray, low: np.ndarray, right: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether each box (rows) holds a point of each segment (columns): Liang and Barsky's clipping."""
    import numpy as np

    x0, y0, x1, y1 = lines.T
    enter = np.zeros((len(left), len(lines)))
    leave = np.ones_like(enter)
    for p, q in ((x0 - x1, x0 - left), (x1 - x0, right - x0), (y0 - y1, y0 - low), (y1 - y0, high - y0)):
        with np.errstate(divide="ignore", invalid="ignore"):
            at = q / p
        enter = np.where(p < 0, np.fmax(enter, at), enter)
        leave = np.where(p > 0, np.fmin(leave, at), leave)
        leave = np.where((p == 0) & (q < 0), -1.0, leave)
    return enter <= leave
