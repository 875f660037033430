"""Published figures of trackers, each with its source: scores, and the cost and speed of whole trackers.

Three tables beside this file, written from the papers and repositories that they name. A speed belongs to its device
and program; a validation score and a test score of GOT-10k are two metrics. Nothing here was measured by bblab.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bblab.tracking import metrics

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class PublishedSpeed:
    """Frames a second of a whole tracker. `bound` is ">" (at least) or "~" (about) where the source says so."""

    fps: float
    bound: str
    device: str
    source: str


@dataclass(frozen=True, slots=True)
class PublishedScore:
    """One score of one tracker, as a share of 1 where its benchmark has one.

    `spec`: the backbone's name here, "" where it is not declared. `params` and `macs` are the whole tracker's, None
    where no source was found. `speeds` has one entry a device, the source's first one first.
    """

    tracker: str
    spec: str
    metric: str
    value: float
    source: str
    note: str
    params: int | None
    macs: int | None
    cost_source: str
    speeds: tuple[PublishedSpeed, ...]

    @property
    def split(self) -> str:
        """ "val" or "test": never on one axis."""
        return metrics.METRICS[self.metric].split

    @property
    def higher_is_better(self) -> bool:
        """Which way is better."""
        return bool(metrics.METRICS[self.metric].higher_is_better)

    @property
    def fps(self) -> float | None:
        """The first published speed, which belongs to `device`."""
        return self.speeds[0].fps if self.speeds else None

    @property
    def device(self) -> str:
        """Where `fps` was measured."""
        return self.speeds[0].device if self.speeds else ""


def _rows(name: str) -> list[dict[str, str]]:
    with (_FOLDER / f"published_{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def published() -> tuple[PublishedScore, ...]:
    """Every published score, by tracker in the order of the tables. A tracker may have one metric from two sources."""
    speeds: dict[str, list[PublishedSpeed]] = {}
    for row in _rows("speeds"):
        speed = PublishedSpeed(float(row["fps"]), row["bound"], row["device"], row["source"])
        speeds.setdefault(row["tracker"], []).append(speed)
    trackers = {row["tracker"]: row for row in _rows("trackers")}
    found = []
    for row in _rows("scores"):
        about = trackers[row["tracker"]]
        found.append(
            PublishedScore(
                row["tracker"],
                about["spec"],
                row["metric"],
                float(row["value"]),
                row["source"],
                row["note"],
                int(about["params"]) if about["params"] else None,
                int(about["macs"]) if about["macs"] else None,
                about["cost_source"],
                tuple(speeds.get(row["tracker"], ())),
            )
        )
    return tuple(found)
