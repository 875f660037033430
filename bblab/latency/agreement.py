"""Where two rankings of the same nets differ: a ranking belongs to a runtime and a number of threads.

Works on the rows of `--json` with their `rank` and `tied_with`, so that stored rows can be compared as well.
Kendall's tau-a: (pairs in the same order - pairs in the opposite order) / all pairs; a tie counts for neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

Row = Mapping[str, Any]  # a `latency` element of --json


@dataclass(frozen=True, slots=True)
class Agreement:
    """`turned`: pairs (x, y) of which x is faster in the first and y in the second, both beyond doubt."""

    tau: float
    turned: tuple[tuple[str, str], ...]
    unsettled: tuple[tuple[str, str], ...]  # pairs that one of the two cannot tell apart
    pairs: int


def agreement(first: Sequence[Row], second: Sequence[Row]) -> Agreement | None:
    """Over the nets that both have; None for fewer than two."""
    a, b = ({row["label"]: row for row in rows} for rows in (first, second))
    common = [label for label in a if label in b]
    same = 0
    turned, unsettled = [], []
    for x, y in combinations(common, 2):
        one, two = _sign(a[x], a[y]), _sign(b[x], b[y])
        if not one or not two:
            unsettled.append((x, y))
        elif one == two:
            same += 1
        else:
            turned.append((x, y) if one < 0 else (y, x))
    count = len(common) * (len(common) - 1) // 2
    return Agreement((same - len(turned)) / count, tuple(turned), tuple(unsettled), count) if count else None


def _sign(x: Row, y: Row) -> int:
    """-1 where x is faster, 1 where y is, 0 for a tie and where one process gives no ranking."""
    if y["label"] in x["tied_with"] or None in (x["rank"], y["rank"]):
        return 0
    # Ratios to references of two sizes do not order.
    key = "ratio" if x["input"] == y["input"] else "cpu_p10_s"
    a, b = (x["rank"], x[key]), (y["rank"], y[key])
    return (a > b) - (a < b)


def agreement_words(first: str, second: str, found: Agreement) -> str:
    """In words: 'ort and ncnn rank 1 of 6 pairs the other way round (Kendall tau 0.67): ...'"""
    ties = f"; {len(found.unsettled)} not told apart in one of them" if found.unsettled else ""
    if not found.turned:
        alike = "agree on every pair" if not found.unsettled else "agree where both can tell"
        return f"{first} and {second} {alike} (Kendall tau {found.tau:.2f}, {found.pairs} pairs{ties})"
    pairs = "; ".join(f"{x} is faster than {y} in {first}, slower in {second}" for x, y in found.turned)
    return (
        f"{first} and {second} rank {len(found.turned)} of {found.pairs} pairs the other way round "
        f"(Kendall tau {found.tau:.2f}{ties}): {pairs}"
    )
