"""Several measurements in a row: one session a runtime, number of threads, pace and input size.

Sessions share a budget and lose nothing of each other: a net that one runtime cannot take is left out there and said
so, a worker that crashes ends its own session only, Ctrl-C ends all and keeps what was finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from bblab.errors import BblabError
from bblab.latency import protocol
from bblab.latency.devices import Device
from bblab.latency.measure import Progress, measure
from bblab.latency.models import CannotConvert
from bblab.latency.protocol import Estimate
from bblab.latency.values import Broken, Candidate, Interrupted, Plan, Timing

# Two nets alone: processes until it is clear, for two minutes at most. More rounds than in a bench, since a round of
# two nets costs little beside the start of a process.
DUEL = Plan(processes=protocol.FIRST_LOOK, rounds=10, max_processes=200, budget_s=120.0)


@dataclass(frozen=True, slots=True)
class Race:
    """One session to come: these nets beside that reference. `pace_fps` None is back to back."""

    candidates: tuple[Candidate, ...]
    reference: Candidate
    runtime: str = "ort"
    threads: int = 1
    pace_fps: float | None = None

    @property
    def title(self) -> str:
        pace = f", {self.pace_fps:g} fps" if self.pace_fps else ""
        return f"{self.runtime}, {self.threads} thread{'s' * (self.threads > 1)}{pace}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a race: the timings as far as they go, the nets left out with the reason, what ended it early."""

    race: Race
    timings: tuple[Timing, ...] = ()
    left_out: tuple[str, ...] = ()
    problem: BblabError | None = None


def run(
    races: Sequence[Race],
    *,
    device: str | Device = "host",
    plan: Plan = Plan(),  # noqa: B008  frozen
    on_progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Outcome]:
    """Measure each race. `plan.budget_s` is for all of them; what one leaves over, the next ones share."""
    spent = 0.0
    for place, race in enumerate(races):
        left = len(races) - place
        share = None if plan.budget_s is None else max(1e-3, (plan.budget_s - spent) / left)
        own = replace(plan, threads=race.threads, pace_fps=race.pace_fps, budget_s=share)
        tell = _Teller(on_progress, race, place, len(races), clock)
        outcome = _outcome(race, device, own, tell, clock)
        spent += tell.measuring_s()
        yield outcome
        if isinstance(outcome.problem, Interrupted):
            return


def _outcome(race: Race, device: str | Device, plan: Plan, tell: _Teller, clock: Callable[[], float]) -> Outcome:
    candidates = list(race.candidates)
    left_out: list[str] = []
    while True:
        try:
            timings = measure(
                candidates,
                race.reference,
                device=device,
                runtime=race.runtime,
                plan=plan,
                on_progress=tell,
                clock=clock,
            )
            return Outcome(race, tuple(timings), tuple(left_out))
        except (Interrupted, Broken) as stopped:
            return Outcome(race, tuple(stopped.partial), tuple(left_out), stopped)
        except CannotConvert as refused:
            rest = [c for c in candidates if c.label != refused.label]
            if refused.label == race.reference.label or not rest:
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
        if text.startswith("process") and self._began is None:
            self._began = self._clock()
        if self._tell is None:
            return
        many = self._total > 1
        if many and seconds_left is not None:
            whole = self.measuring_s() + seconds_left  # the others will take about as long
            seconds_left += (self._total - self._place - 1) * whole
        prefix = f"session {self._place + 1} of {self._total}, {self._race.title}: " if many else ""
        self._tell(done, total, seconds_left, prefix + text)

    def measuring_s(self) -> float:
        """Since the first process began; conversions are not counted."""
        return 0.0 if self._began is None else self._clock() - self._began


# What came out --------------------------------------------------------------------------------------------------


def places(timings: Sequence[Timing]) -> dict[str, tuple[int, list[str]]]:
    """For each label of one session its rank (1 is fastest; a group of ties shares one) and what it is tied with."""
    tied: dict[str, list[str]] = {t.label: [] for t in timings}
    for a, b in protocol.ties(timings):
        tied[a.label].append(b.label)
        tied[b.label].append(a.label)
    found = {}
    rank = 1
    for group in protocol.rank(timings):
        for t in group:
            found[t.label] = (rank, tied[t.label])
        rank += len(group)
    return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of a duel: the ratio B / A with the interval that allows for every look, and what it says."""

    a: Timing
    b: Timing
    ratio: Estimate

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
