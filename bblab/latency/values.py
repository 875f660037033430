"""What passes in and out of the latency room: candidates, a plan, and timings with every raw sample.

Nothing here holds a file, a process or a device. Derived numbers are properties, computed from the samples by the
pure functions of `protocol.py`, so they cannot disagree with their source. Times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bblab.errors import BblabError, RunError
from bblab.latency import conditions, protocol

if TYPE_CHECKING:
    from torch import nn

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

    `budget_s` bounds the measuring (conversion is not counted): fewer rounds, then fewer processes, never below
    5 processes x 2 rounds unless even those would take three times the budget. `max_processes` above `processes`
    lets the measurement go on while the ranking has ties and, where a budget is set, time is left; whether it has is
    looked at after 6, 8, 11, 15, 20, ... processes only (see `protocol.contest`).
    A worker that says nothing for `silence_s` is taken for hung. `pace_fps` starts calls no faster than a camera's
    frames, as a tracker does: 30 fps cost MobileNetV3-small 31 % over back-to-back calls. None is back to back.
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
        if self.budget_s is not None and not self.budget_s > 0:
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
    """Raw times of one model: `wall_s[process][round]`, and the CPU time of the same calls (all threads)."""

    wall_s: protocol.Series
    cpu_s: protocol.Series

    def __post_init__(self) -> None:
        if tuple(map(len, self.wall_s)) != tuple(map(len, self.cpu_s)) or not all(self.wall_s):
            raise RunError("latency samples: every call has a wall and a CPU time, and every process a round")

    @property
    def processes(self) -> int:
        return len(self.wall_s)

    @property
    def rounds(self) -> int:
        """Rounds of the shortest process."""
        return min(map(len, self.wall_s))

    @property
    def calls(self) -> int:
        return sum(map(len, self.wall_s))


@dataclass(frozen=True, slots=True)
class Timing:
    """One candidate's latency in one session, beside the reference that was timed in the same rounds."""

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
    samples: Samples
    reference: str  # the reference's spec; its form and input follow
    reference_form: Form
    reference_input: tuple[int, int, int]
    reference_key: str
    reference_samples: Samples
    speedometer: Samples  # rounds + 1 a process: before each round and after the last
    speedometer_name: str
    model_sha256: str
    model_bytes: int
    conversion_rel_error: float  # largest |runtime - torch| over largest |torch|, seeded random input
    session: str  # timings of one session share their rounds
    pace_fps: float | None = None  # None: calls back to back
    processor: str = "cpu"  # what computed: "cpu" or "cuda"
    conditions_before: Conditions = field(default_factory=dict, compare=False, repr=False)
    conditions_after: Conditions = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = ()  # what the reader must know, such as a budget that ran out

    @property
    def is_reference(self) -> bool:
        return self.key == self.reference_key and self.samples == self.reference_samples

    # Size of the sample -------------------------------------------------------------------------------------

    @property
    def processes(self) -> int:
        return self.samples.processes

    @property
    def rounds(self) -> int:
        return self.samples.rounds

    # Absolute times -----------------------------------------------------------------------------------------

    @property
    def cpu_p10_s(self) -> float:
        return protocol.quantile(protocol.pooled(self.samples.cpu_s), 0.1)

    @property
    def cpu_p10_interval_s(self) -> tuple[float, float]:
        """95 % interval over processes."""
        return protocol.p10_interval(self.samples.cpu_s)

    @property
    def wall_p50_s(self) -> float:
        """As measured; believe it only where `is_busy` is false."""
        return protocol.quantile(protocol.pooled(self.samples.wall_s), 0.5)

    @property
    def wall_p90_s(self) -> float:
        return protocol.quantile(protocol.pooled(self.samples.wall_s), 0.9)

    @property
    def wall_p99_s(self) -> float:
        return protocol.quantile(protocol.pooled(self.samples.wall_s), 0.99)

    @property
    def wall_over_cpu(self) -> float:
        return protocol.wall_over_cpu(self.samples.wall_s, self.samples.cpu_s)

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
        if self.is_one_cpu_thread:
            return self.wall_over_cpu
        return protocol.wall_over_cpu(self.speedometer.wall_s, self.speedometer.cpu_s)

    @property
    def is_one_cpu_thread(self) -> bool:
        """Whether CPU time is a latency."""
        return self.threads == 1 and self.processor == "cpu"

    @property
    def speedometer_s(self) -> float:
        """Median CPU time of the fixed kernel: it follows the clock of the CPU and nothing else."""
        return protocol.quantile(protocol.pooled(self.speedometer.cpu_s), 0.5)

    # Against the reference ----------------------------------------------------------------------------------

    @property
    def drift(self) -> protocol.Drift | None:
        """What CUSUM says of the session's clock; None where the samples are too few to tell."""
        return protocol.session_drift(
            self.speedometer.cpu_s, self.reference_samples.cpu_s if self.is_one_cpu_thread else None
        )

    @property
    def estimator(self) -> protocol.Estimator:
        return protocol.choose_estimator(self.threads, self.drift, self.processor)

    @property
    def ratio(self) -> float:
        return self._estimate.value

    @property
    def ratio_low(self) -> float:
        return self._estimate.low

    @property
    def ratio_high(self) -> float:
        return self._estimate.high

    @property
    def _estimate(self) -> protocol.Estimate:
        return protocol.compare(self.series_for(self.estimator), self.reference_series, self.estimator)

    @property
    def reference_series(self) -> protocol.Series:
        return _series(self.reference_samples, self.estimator)

    def series_for(self, estimator: protocol.Estimator) -> protocol.Series:
        return _series(self.samples, estimator)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the number is not steady; empty where it is."""
        relative = self._estimate
        if self.is_reference:  # its ratio is 1 by definition: judge its own time
            own = self.reference_series
            relative = protocol.Estimate(protocol.quantile(protocol.pooled(own), 0.1), *protocol.p10_interval(own))
        return protocol.doubts(self.processes, self.rounds, self.drift, relative)

    @property
    def steady(self) -> bool:
        return not self.doubts

    @property
    def steal_share(self) -> float | None:
        """Share of the machine's CPU time taken by the hypervisor while measuring; None where it cannot be read."""
        return conditions.steal_share(self.conditions_before, self.conditions_after)

    # For machines -------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The keys of a `latency` element of `--json` (without the store's ids), then extras.

        `wall_p50_s`, `wall_p90_s` and `wall_p99_s` are null where the machine was busy; what was measured all the same
        stands under `measured_wall_*`, and in `raw()`.
        """
        drift, busy = self.drift, self.is_busy
        low, high = self.cpu_p10_interval_s
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
            "cpu_p10_s": self.cpu_p10_s,
            "wall_p50_s": None if busy else self.wall_p50_s,
            "wall_p90_s": None if busy else self.wall_p90_s,
            "wall_over_cpu": self.wall_over_cpu,
            "reference": self.reference,
            "ratio": self.ratio,
            "ratio_low": self.ratio_low,
            "ratio_high": self.ratio_high,
            "drift": drift.verdict if drift else None,
            "steady": self.steady,
            "label": self.label,
            "wall_p99_s": None if busy else self.wall_p99_s,
            "processor": self.processor,
            "speedometer_s": self.speedometer_s,
            "batch": 1,
            "warmups": self.warmups,
            "pace_fps": self.pace_fps,
            "calls": self.samples.calls,
            "cpu_p10_low_s": low,
            "cpu_p10_high_s": high,
            "measured_wall_p50_s": self.wall_p50_s,
            "measured_wall_p90_s": self.wall_p90_s,
            "measured_wall_p99_s": self.wall_p99_s,
            "is_busy": busy,
            "is_reference": self.is_reference,
            "estimator": self.estimator,
            "drift_detail": drift.to_json() if drift else None,
            "doubts": list(self.doubts),
            "notes": list(self.notes),
            "reference_form": self.reference_form,
            "reference_input": list(self.reference_input),
            "steal_share": self.steal_share,
            "model_sha256": self.model_sha256,
            "model_bytes": self.model_bytes,
            "conversion_rel_error": self.conversion_rel_error,
            "session": self.session,
        }

    def raw(self) -> dict[str, Any]:
        """Every sample behind the numbers, as [process][round], for the store."""
        return {
            "wall_s": self.samples.wall_s,
            "cpu_s": self.samples.cpu_s,
            "reference_wall_s": self.reference_samples.wall_s,
            "reference_cpu_s": self.reference_samples.cpu_s,
            "speedometer": self.speedometer_name,
            "speedometer_wall_s": self.speedometer.wall_s,
            "speedometer_cpu_s": self.speedometer.cpu_s,
        }


def _series(samples: Samples, estimator: protocol.Estimator) -> protocol.Series:
    return samples.wall_s if estimator == "wall_paired" else samples.cpu_s


class Interrupted(BblabError):
    """Ctrl-C: `partial` holds the timings of the processes that had finished."""

    exit_code = 1

    def __init__(self, partial: list[Timing]) -> None:
        self.partial = partial
        super().__init__(_kept("stopped", partial))


class Broken(RunError):
    """A worker failed: `partial` holds the timings of the processes that had finished before."""

    def __init__(self, cause: BblabError, partial: list[Timing]) -> None:
        self.partial = partial
        super().__init__(f"{cause.message}\n  {_kept('measurement ended early', partial)}", hint=cause.hint)


def _kept(what: str, partial: list[Timing]) -> str:
    if not partial:
        return f"{what}: no process had finished, nothing was measured"
    return f"{what}: {partial[0].processes} finished process(es) of {len(partial)} model(s) are kept"
