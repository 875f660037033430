"""What passes in and out of the latency room: candidates, a plan, and timings with every raw sample.

Nothing here holds a file, a process or a device. Derived numbers are properties, computed from the samples by the
pure functions of `stats.py`, so they cannot disagree with their source. Times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bblab.errors import BblabError, RunError
from bblab.latency import conditions, protocol, stats, wire

if TYPE_CHECKING:
    from torch import nn

    from bblab.latency.session import Measured

Form = Literal["train", "deploy"]

# JSON objects read from a device: their shape is the device's affair.
Conditions = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One net to be timed, in one form, at one input size.

    `key` names the content (spec hash, code version, form, input): two candidates with the same key are the same
    net, and a model converted once for a key is used again. `make_module` builds the net in eval mode, with
    calibrated BN statistics; it is called only if no converted model is remembered.
    """

    label: str
    spec: str
    form: Form
    input: tuple[int, int, int]  # channels, height, width
    key: str
    make_module: Callable[[], nn.Module] = field(compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.form not in ("train", "deploy"):
            raise BblabError(f"{self.label}: form {self.form!r}", hint="a form is 'train' or 'deploy'")
        if len(self.input) != 3 or any(not isinstance(n, int) or n < 1 for n in self.input):
            raise BblabError(
                f"{self.label}: input {self.input!r}", hint="give channels, height and width, for example (3, 255, 255)"
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. The defaults: 6 processes of 5 rounds, 5 warm-ups.

    `budget_s` bounds everything from the first conversion on, and is kept: fewer rounds, then fewer processes, and what
    was not reached is listed. `max_processes` above `processes` lets the measurement go on while the ranking has ties
    and, where a budget is set, time is left; whether it has is looked at after 6, 8, 11, 15, 20, ... processes only
    (see `stats.contest`). A worker that says nothing for `silence_s` is taken for hung. `pace_fps` times each net also
    at a camera's pace, as a tracker runs it: 30 fps cost MobileNetV3-small 31 %.
    """

    processes: int = 6
    rounds: int = 5
    warmups: int = 5
    threads: int = 1
    budget_s: float | None = None
    seed: int = 0
    max_processes: int | None = None
    pace_fps: float | None = None
    silence_s: float = 300.0

    def __post_init__(self) -> None:
        for name, least in (("processes", 1), ("rounds", 1), ("warmups", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise BblabError(f"plan: {name} is {getattr(self, name)}", hint=f"it must be at least {least}")
        if self.budget_s is not None and not 0 < self.budget_s < math.inf:
            raise BblabError(f"plan: budget_s is {self.budget_s}", hint="give seconds above 0, or leave it out")
        if self.pace_fps is not None and not 0 < self.pace_fps < math.inf:
            raise BblabError(f"plan: pace_fps is {self.pace_fps}", hint="give frames a second, or leave it out")
        if self.max_processes is not None and self.max_processes < self.processes:
            raise BblabError(
                f"plan: max_processes {self.max_processes} is below processes {self.processes}",
                hint="it is the upper bound for going on while the ranking has ties",
            )


@dataclass(frozen=True, slots=True)
class Samples:
    """Raw times of one net in one state: `wall_s[process][call]`, and the CPU time of the same calls (all threads).

    `per_round` calls in a row are of one round. `preempted` counts involuntary switches during each call; empty where
    the system does not say.
    """

    wall_s: stats.Series
    cpu_s: stats.Series
    per_round: int = 1
    preempted: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if tuple(map(len, self.wall_s)) != tuple(map(len, self.cpu_s)) or not all(self.wall_s):
            raise RunError("latency samples: every call has a wall and a CPU time, and every process a round")

    @property
    def processes(self) -> int:
        return len(self.wall_s)

    @property
    def rounds(self) -> int:
        """Rounds of the shortest process."""
        return min(map(len, self.wall_s)) // self.per_round

    @property
    def calls(self) -> int:
        return sum(map(len, self.wall_s))

    @property
    def wall_over_cpu(self) -> float:
        return stats.wall_over_cpu(self.wall_s, self.cpu_s)

    @property
    def cpu_by_round_s(self) -> stats.Series:
        """The smallest CPU time of each round."""
        k = self.per_round
        return tuple(tuple(min(p[i : i + k]) for i in range(0, len(p), k)) for p in self.cpu_s)


Sampled = Mapping[str, Samples]  # by state: "warm", "cold" and, where it was asked for, "paced"


@dataclass(frozen=True, slots=True)
class Timing:
    """One candidate's latency in one session, beside the reference that was timed in the same rounds.

    Where no state is named, a figure is of warm calls.
    """

    label: str
    spec: str
    form: Form
    input: tuple[int, int, int]
    key: str
    device: str
    runtime: str
    runtime_version: str
    precision: str
    threads: int
    warmups: int
    samples: Sampled
    reference: str  # the reference's spec; its form and input follow
    reference_form: Form
    reference_input: tuple[int, int, int]
    reference_key: str
    reference_samples: Sampled
    speedometer: Samples  # rounds + 1 a process: before each round and after the last
    speedometer_name: str
    model_sha256: str
    model_bytes: int
    conversion_rel_error: float  # largest |runtime - torch| over largest |torch|, seeded random input
    session: str  # timings of one session share their rounds
    pace_fps: float | None = None  # of the paced calls
    processor: str = "cpu"  # what computed: "cpu" or "cuda"
    pinned_cpus: tuple[int | None, ...] = ()  # the one core of each process; None where it was not held to one
    slice_s: float | None = None  # the time slice that the scheduler granted to all processes
    conditions_before: Conditions = field(default_factory=dict, compare=False, repr=False)
    conditions_after: Conditions = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = ()  # what the reader must know, such as a budget that ran out

    @property
    def is_reference(self) -> bool:
        return self.key == self.reference_key and self.samples == self.reference_samples

    @property
    def warm(self) -> Samples:
        return self.samples[wire.WARM]

    def has(self, state: str) -> bool:
        return state in self.samples

    # Size of the sample -------------------------------------------------------------------------------------

    @property
    def processes(self) -> int:
        return self.warm.processes

    @property
    def rounds(self) -> int:
        return self.warm.rounds

    # Absolute times -----------------------------------------------------------------------------------------

    @property
    def cpu_p10_s(self) -> float:
        return self.cpu_p10_interval_s.value

    @property
    def cpu_p10_interval_s(self) -> stats.Estimate:
        """95 % interval over processes."""
        return stats.p10_interval(self.warm.cpu_s)

    def wall_quantile_s(self, q: float, state: str = wire.WARM) -> float:
        """As measured; believe it only where `is_busy` is false."""
        return stats.quantile(stats.pooled(self.samples[state].wall_s), q)

    @property
    def wall_p50_s(self) -> float:
        return self.wall_quantile_s(0.5)

    @property
    def wall_p90_s(self) -> float:
        return self.wall_quantile_s(0.9)

    @property
    def wall_over_cpu(self) -> float:
        return self.warm.wall_over_cpu

    @property
    def is_busy(self) -> bool:
        """Whether other work held the machine, so that wall times are not this net's.

        With one thread the net's own wall/CPU tells; with more it cannot (CPU time adds up over threads), and the
        one-threaded speedometer between the rounds tells instead.
        """
        return protocol.is_busy(self.waiting)

    @property
    def waiting(self) -> float:
        """The wall/CPU that tells whether the machine was busy: the net's own, or the speedometer's."""
        return self.wall_over_cpu if self.is_one_cpu_thread else self.speedometer.wall_over_cpu

    @property
    def is_one_cpu_thread(self) -> bool:
        """Whether CPU time is a latency."""
        return self.threads == 1 and self.processor == "cpu"

    @property
    def speedometer_s(self) -> float:
        """Median CPU time of the fixed kernel: it follows the clock of the CPU and nothing else."""
        return stats.quantile(stats.pooled(self.speedometer.cpu_s), 0.5)

    # Against the reference ----------------------------------------------------------------------------------

    @property
    def drift(self) -> protocol.Drift | None:
        """What CUSUM says of the session's clock; None where the samples are too few to tell."""
        beside = self.reference_samples[wire.WARM].cpu_by_round_s if self.is_one_cpu_thread else None
        return protocol.session_drift(self.speedometer.cpu_s, beside)

    def functional(self, state: str = wire.WARM) -> stats.Functional:
        return stats.functional_of(state, self.threads, self.processor)

    def series(self, state: str = wire.WARM) -> stats.Series:
        """The times whose ratio is taken."""
        return _series(self.samples[state], self.functional(state))

    def ratio_in(self, state: str) -> stats.Estimate:
        """The ratio to the reference in that state, with its 95 % interval."""
        functional = self.functional(state)
        return stats.ratio_of(self.series(state), _series(self.reference_samples[state], functional), functional)

    @property
    def ratio(self) -> float:
        return self.ratio_in(wire.WARM).value

    @property
    def ratio_low(self) -> float:
        return self.ratio_in(wire.WARM).low

    @property
    def ratio_high(self) -> float:
        return self.ratio_in(wire.WARM).high

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the number is not steady; empty where it is."""
        # The reference's ratio is 1 by definition: judge its own time.
        relative = self.cpu_p10_interval_s if self.is_reference else self.ratio_in(wire.WARM)
        return protocol.doubts(self.processes, self.rounds, self.drift, relative)

    @property
    def steady(self) -> bool:
        return not self.doubts

    @property
    def steal_share(self) -> float | None:
        """Share of the machine's CPU time taken by the hypervisor while measuring; None where it cannot be read."""
        return conditions.steal_share(self.conditions_before, self.conditions_after)

    # For machines -------------------------------------------------------------------------------------------

    def state_json(self, state: str) -> dict[str, Any] | None:
        """The figures of one state; None where it was not measured. Wall times are null where the machine was busy."""
        if not self.has(state):
            return None
        own = self.samples[state]
        low, high = self.ratio_in(state).to_json()
        walls = {
            f"wall_p{round(100 * q)}_s": self.wall_quantile_s(q, state) if own.calls >= least else None
            for q, least in ((0.5, 1), (0.9, 1), (0.99, protocol.ENOUGH_FOR_P99))
        }
        return {
            "cpu_p10_s": stats.p10_interval(own.cpu_s).value,
            **{name: None if self.is_busy else value for name, value in walls.items()},
            "ratio": self.ratio_in(state).value,
            "ratio_low": low,
            "ratio_high": high,
            "calls": own.calls,
            "wall_over_cpu": own.wall_over_cpu,
            "functional": self.functional(state),
            "preempted_calls": sum(n > 0 for p in own.preempted for n in p) if own.preempted else None,
            **{f"measured_{name}": value for name, value in walls.items()},
        }

    def to_json(self) -> dict[str, Any]:
        """The keys of a `latency` element of `--json` (without the store's ids), then extras.

        `warm`, `cold` and `paced` (null where it was not asked for) are objects of the same keys; those at the top are
        warm's. `wall_p50_s`, `wall_p90_s` and `wall_p99_s` are null where the machine was busy, the last also for fewer
        than 100 calls; what was measured all the same is under `measured_wall_*`, and in `raw()`.
        """
        drift = self.drift
        by_state = {state: self.state_json(state) for state in wire.STATES}
        warm = by_state[wire.WARM]
        assert warm is not None
        p10_low, p10_high = self.cpu_p10_interval_s.to_json()
        return {
            "spec": self.spec,
            "device": self.device,
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "form": self.form,
            "precision": self.precision,
            "threads": self.threads,
            "input": list(self.input),
            "processes": self.processes,
            "rounds": self.rounds,
            "protocol": wire.PROTOCOL,
            "reference": self.reference,
            "drift": drift.verdict if drift else None,
            "steady": self.steady,
            **warm,
            **by_state,
            "label": self.label,
            "processor": self.processor,
            "speedometer_s": self.speedometer_s,
            "batch": 1,
            "warmups": self.warmups,
            "pace_fps": self.pace_fps,
            "cpu_p10_low_s": p10_low,
            "cpu_p10_high_s": p10_high,
            "is_busy": self.is_busy,
            "waiting": self.waiting,
            "is_reference": self.is_reference,
            "drift_detail": drift.to_json() if drift else None,
            "doubts": list(self.doubts),
            "notes": list(self.notes),
            "reference_form": self.reference_form,
            "reference_input": list(self.reference_input),
            "steal_share": self.steal_share,
            "pinned_cpus": list(self.pinned_cpus),
            "slice_s": self.slice_s,
            "model_sha256": self.model_sha256,
            "model_bytes": self.model_bytes,
            "conversion_rel_error": self.conversion_rel_error,
            "session": self.session,
        }

    def raw(self) -> dict[str, Any]:
        """Every sample behind the numbers, as [process][call], for the store; warm's have no prefix."""
        found: dict[str, Any] = {}
        for state, own in self.samples.items():
            prefix = "" if state == wire.WARM else f"{state}_"
            beside = self.reference_samples[state]
            found |= {
                f"{prefix}wall_s": own.wall_s,
                f"{prefix}cpu_s": own.cpu_s,
                f"{prefix}reference_wall_s": beside.wall_s,
                f"{prefix}reference_cpu_s": beside.cpu_s,
            }
            if own.preempted:
                found[f"{prefix}preempted"] = own.preempted
        return found | {
            "speedometer": self.speedometer_name,
            "speedometer_wall_s": self.speedometer.wall_s,
            "speedometer_cpu_s": self.speedometer.cpu_s,
        }


def _series(samples: Samples, functional: stats.Functional) -> stats.Series:
    return samples.wall_s if functional == "wall_paired" else samples.cpu_s


class Interrupted(BblabError):
    """Ctrl-C: `partial` holds the timings of the processes that had finished, `measured` the session so far."""

    exit_code = 1
    measured: Measured | None = None

    def __init__(self, partial: list[Timing]) -> None:
        self.partial = partial
        super().__init__(_kept("stopped", partial))


class Broken(RunError):
    """A worker failed: `partial` holds the timings of the finished processes, `measured` the session so far."""

    measured: Measured | None = None

    def __init__(self, cause: BblabError, partial: list[Timing]) -> None:
        self.partial = partial
        super().__init__(f"{cause.message}\n  {_kept('measurement ended early', partial)}", hint=cause.hint)


def _kept(what: str, partial: list[Timing]) -> str:
    if not partial:
        return f"{what}: no process had finished, nothing was measured"
    return f"{what}: {partial[0].processes} finished process(es) of {len(partial)} model(s) are kept"
