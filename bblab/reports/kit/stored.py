"""What a report reads: frozen rows, each with the run it came from. `bblab.lab.reporting` makes them from the notebook.

A latency belongs to a `Setting`, an accuracy to a `Scale`; numbers of different settings or scales are never compared.
Times are seconds, accuracies as stored (0..1 for top-1), counts plain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SourceKind = Literal["own", "recorded", "published"]


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """All that must be equal before two latencies may be compared."""

    device: str
    machine: str  # what the device says its processor is; "" where it does not
    runtime: str
    runtime_version: str
    processor: str  # "cpu" or "cuda"
    precision: str
    threads: int
    input: tuple[int, ...]  # channels, height, width
    batch: int
    pace_fps: float | None  # of paced calls
    state: str = "warm"  # "cold" or "paced": which calls of a session
    protocol: int = 2

    @property
    def size_px(self) -> int:
        return self.input[-1] if self.input else 0

    @property
    def has_wall_times(self) -> bool:
        """CPU time is a latency of one thread of a CPU only, and of calls without a pause."""
        return self.threads > 1 or self.processor != "cpu" or (self.state == "paced" and self.protocol > 1)

    @property
    def title(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        pace = f", {self.state}" + ("" if self.pace_fps is None else f" at {self.pace_fps:g} fps")
        if self.protocol == 1:
            pace = ", protocol 1 (cold, mixed)" + ("" if self.pace_fps is None else f" at {self.pace_fps:g} fps")
        batch = "" if self.batch == 1 else f", batch {self.batch}"
        where = f"{self.device} ({self.machine})" if self.machine else self.device
        size = "×".join(map(str, self.input))
        return f"{where}, {self.runtime} {self.runtime_version}, {self.precision}, {threads}, {size}{batch}{pace}"


@dataclass(frozen=True, slots=True, order=True)
class Scale:
    """What an accuracy is measured in: the metric, the data and their split. `is_share`: 0..1, shown in percent.

    `is_loss`: less is better (VOT's lost number).
    """

    metric: str
    data: str = ""
    split: str = ""
    is_share: bool = True
    is_loss: bool = False
    is_bounded: bool = True  # between 0 and 1: a share, or a score that is one (EAO)

    @property
    def title(self) -> str:
        where = " ".join(word for word in (self.data, self.split) if word)
        return f"{self.metric}, {where}" if where else self.metric


@dataclass(frozen=True, slots=True)
class TimingRow:
    """One net's latency in one session and state, with the log ratio to the reference of each process."""

    run_id: int
    created_utc: str
    spec_id: str
    name: str
    form: str
    setting: Setting
    session: str
    reference: tuple[str, str, tuple[int, ...]]  # spec, form, input
    is_reference: bool
    time_s: float  # p10 of CPU time, or the wall median where that is the latency
    reference_s: float  # the same of the reference
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    logs: tuple[float, ...]  # one a process; empty where samples are missing
    is_steady: bool
    is_busy: bool
    doubts: tuple[str, ...]
    before: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    after: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class AccuracyRow:
    """One accuracy of one net. `protocol` is how it came about (recipe and epochs): what must be equal to compete."""

    run_id: int | None
    created_utc: str
    spec_id: str
    name: str
    scale: Scale
    kind: SourceKind
    protocol: str
    value: float
    low: float | None = None
    high: float | None = None
    seed: int | None = None
    citation: str = ""  # of a published figure
    remark: str = ""  # what the reader must know, such as that it is the whole net's


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """The last profile of a spec: its JSON as stored (`bblab profile --json`)."""

    run_id: int | None  # None: computed for this report
    spec_id: str
    name: str
    result: Mapping[str, Any] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One training run's curve. `options`: what `bblab pretrain SPEC` needs to train so again, but for the seed."""

    run_id: int
    created_utc: str
    spec_id: str
    name: str
    recipe: str
    data: str
    seed: int | None
    epochs: int | None
    curve: tuple[Mapping[str, Any], ...] = field(compare=False, repr=False)
    is_from_log: bool = False
    options: str = ""


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A figure from a paper or a repository of a whole tracker, as printed there."""

    name: str
    scale: Scale
    value: float
    source: str
    params: float | None = None  # of the whole tracker, as is `macs`
    macs: float | None = None
    speeds: str = ""  # each with its device
    speed_source: str = ""
    cost_source: str = ""


@dataclass(frozen=True, slots=True)
class OperatorsRow:
    """Where the time of one net goes: (name, kind, seconds, share) of each row of its spec, and of each sort of op."""

    run_id: int
    created_utc: str
    spec_id: str
    name: str
    form: str
    setting: str
    parts: tuple[tuple[str, str, float, float], ...]
    ops: tuple[tuple[str, str, float, float], ...]


@dataclass(frozen=True, slots=True)
class FieldRow:
    """The effective receptive field of a net's last tap: gradient of each pixel over the largest."""

    spec_id: str
    rows: tuple[tuple[float, ...], ...] = field(repr=False)
    centre: tuple[float, float]
    side_95_px: int
    images: int


@dataclass(frozen=True, slots=True)
class Stored:
    """Everything that a report may draw on, already selected. `about` says from where and under which selection."""

    timings: tuple[TimingRow, ...] = ()
    older: tuple[TimingRow, ...] = ()  # by an older protocol: never beside the others
    accuracies: tuple[AccuracyRow, ...] = ()
    profiles: Mapping[str, ProfileRow] = field(default_factory=dict)
    trainings: tuple[TrainingRow, ...] = ()
    published: tuple[PublishedRow, ...] = ()
    families: Mapping[str, str] = field(default_factory=dict)  # by spec_id
    spec_texts: Mapping[str, str] = field(default_factory=dict)  # by spec_id
    about: tuple[str, ...] = ()
    made_utc: str = ""
    operators: tuple[OperatorsRow, ...] = ()
    fields: Mapping[str, FieldRow] = field(default_factory=dict)  # by spec_id; computed for spec cards only
