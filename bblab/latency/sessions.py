"""Several measurements in a row: one session a runtime and number of threads.

Sessions share a budget and lose nothing of each other: a net that one runtime cannot take is left out there and said
so, a worker that crashes ends its own session only, Ctrl-C ends all and keeps what was finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bblab.errors import BblabError
from bblab.latency import protocol, session, stats, wire
from bblab.latency.devices import Device
from bblab.latency.models import CannotConvert
from bblab.latency.session import Measured, Progress
from bblab.latency.stats import Estimate
from bblab.latency.values import Broken, Candidate, Interrupted, Plan, Timing

# Two nets alone: processes until it is clear, for two minutes at most. More rounds than in a bench, since a round of
# two nets costs little beside the start of a process.
DUEL = Plan(processes=stats.FIRST_LOOK, rounds=10, max_processes=200, budget_s=120.0)


@dataclass(frozen=True, slots=True)
class Race:
    """One session to come: these nets beside the reference of their input size."""

    candidates: tuple[Candidate, ...]
    references: tuple[Candidate, ...]
    runtime: str = "ort"
    threads: int = 1

    @property
    def title(self) -> str:
        return f"{self.runtime}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a race: the timings as far as they go, the nets left out with the reason, what ended it early.

    `measured` is the whole session where it came to its end; `not_reached` are labels that the budget did not reach.
    """

    race: Race
    timings: tuple[Timing, ...] = ()
    left_out: tuple[str, ...] = ()
    problem: BblabError | None = None
    measured: Measured | None = None
    not_reached: tuple[str, ...] = ()


def run(
    races: Sequence[Race],
    *,
    device: str | Device = "host",
    plan: Plan = Plan(),  # noqa: B008  frozen
    on_progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
    spent_s: float = 0.0,
) -> Iterator[Outcome]:
    """Measure each race. `plan.budget_s`, of which `spent_s` are gone, is for all of them and all that they need.

    What one leaves over, the next ones share. A race that the budget does not reach is told as such.
    """
    began = clock() - spent_s
    for place, race in enumerate(races):
        left = len(races) - place
        share = None if plan.budget_s is None else (plan.budget_s - (clock() - began)) / left
        if share is not None and share <= 0:
            yield Outcome(race, not_reached=tuple(c.label for c in race.candidates))
            continue
        own = replace(plan, threads=race.threads, budget_s=share)
        outcome = _outcome(race, device, own, _Teller(on_progress, race, place, len(races), clock), clock)
        yield outcome
        if isinstance(outcome.problem, Interrupted):
            return


def _outcome(race: Race, device: str | Device, plan: Plan, tell: _Teller, clock: Callable[[], float]) -> Outcome:
    candidates = list(race.candidates)
    left_out: list[str] = []
    began = clock()
    while True:
        left = None if plan.budget_s is None else max(1e-3, plan.budget_s - (clock() - began))
        try:
            measured = session.run(
                candidates,
                race.references,
                device=device,
                runtime=race.runtime,
                plan=replace(plan, budget_s=left),
                on_progress=tell,
                clock=clock,
            )
            return Outcome(race, measured.timings, tuple(left_out), None, measured, measured.not_reached)
        except (Interrupted, Broken) as stopped:
            return Outcome(race, tuple(stopped.partial), tuple(left_out), stopped)
        except CannotConvert as refused:
            rest = [c for c in candidates if c.label != refused.label]
            if refused.label in [r.label for r in race.references] or not rest:
                return Outcome(race, (), tuple(left_out), refused)
            candidates = rest
            left_out.append(refused.message)
        except BblabError as problem:
            return Outcome(race, (), tuple(left_out), problem)


class _Teller:
    """Progress of one session told as that of all: which one it is, and the time left for it and the ones to come."""

    def __init__(self, tell: Progress | None, race: Race, place: int, total: int, clock: Callable[[], float]) -> None:
        self._tell, self._race, self._place, self._total, self._clock = tell, race, place, total, clock
        self._began: float | None = None

    def __call__(self, done: int, total: int, seconds_left: float | None, text: str) -> None:
        if self._tell is None:
            return
        if text.startswith("process") and self._began is None:
            self._began = self._clock()
        many = self._total > 1
        if many and seconds_left is not None:
            spent = 0.0 if self._began is None else self._clock() - self._began
            whole = spent + seconds_left  # the others will take about as long
            seconds_left += (self._total - self._place - 1) * whole
        prefix = f"session {self._place + 1} of {self._total}, {self._race.title}: " if many else ""
        self._tell(done, total, seconds_left, prefix + text)


# What came out --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Placed:
    """A net's place in its session's ranking; `rank` is None where there is none, as one process gives no interval.

    1 is fastest, a group of ties shares a rank. `turned` are nets that are the other way round in another state.
    """

    rank: int | None
    tied_with: tuple[str, ...] = ()
    turned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        turned = {state: list(labels) for state, labels in self.turned.items()}
        return {"rank": self.rank, "tied_with": list(self.tied_with), "turned": turned}


def places(timings: Sequence[Timing]) -> dict[str, Placed]:
    """For each label of one session its place among them."""
    if not timings or timings[0].processes < 2:
        return {t.label: Placed(None) for t in timings}
    tied: dict[str, list[str]] = {t.label: [] for t in timings}
    for a, b in protocol.ties(timings):
        tied[a.label].append(b.label)
        tied[b.label].append(a.label)
    turned: dict[str, dict[str, tuple[str, ...]]] = {t.label: {} for t in timings}
    for state, faster, slower in protocol.turned(timings):
        turned[faster.label][state] = (*turned[faster.label].get(state, ()), slower.label)
    found = {}
    rank = 1
    for group in protocol.rank(timings):
        for t in group:
            found[t.label] = Placed(rank, tuple(tied[t.label]), turned[t.label])
        rank += len(group)
    return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of a duel: the ratio B / A with the interval that allows for every look, and what it says."""

    a: Timing
    b: Timing
    ratio: Estimate

    @property
    def others(self) -> dict[str, Estimate]:
        """The same ratio, with a plain 95 % interval, of the cold calls and, where there are, the paced ones."""
        states = [s for s in wire.STATES if s != wire.WARM and self.a.has(s) and self.b.has(s)]
        return {state: protocol.ratio_between(self.b, self.a, state) for state in states}

    @property
    def turned(self) -> list[str]:
        """States in which the other one is faster, beyond doubt in both."""
        return [state for state, ratio in self.others.items() if ratio.sign * self.ratio.sign < 0]

    @property
    def faster(self) -> str | None:
        """The label of the faster one; None where the measurement cannot tell."""
        if self.ratio.high < 1.0:
            return self.b.label
        return self.a.label if self.ratio.low > 1.0 else None

    @property
    def bound(self) -> float:
        """How far apart the two can be at most, relative: 0.02 is 2 %. Infinite where nothing is known."""
        low = self.ratio.low
        return max(self.ratio.high - 1.0, 1.0 / low - 1.0 if low > 0 else float("inf"))


def verdict(a: Timing, b: Timing) -> Verdict:
    return Verdict(a, b, protocol.settled(b, a))
