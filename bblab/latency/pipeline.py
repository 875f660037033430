"""Where a tracker's frame goes: pre-processing, backbone, head, decoding; back to back and at a camera's pace."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bblab.latency import conditions, models, protocol, runtimes, tasks
from bblab.latency.measure import Progress
from bblab.latency.pipeworker import FRAME, TEMPLATE
from bblab.latency.values import Candidate, Conditions

PROCESSES, SEQUENCES, FRAMES, WARMUPS = 5, 6, 10, 5
LIMIT_S = 300.0
WHOLE = "whole frame"


@dataclass(frozen=True, slots=True)
class Tracker:
    """A tracker to be timed: its nets and the sizes of their maps."""

    template: Candidate
    search: Candidate
    head: Candidate
    channels: int
    template_map: tuple[int, int]
    search_map: tuple[int, int]
    stride: int


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage at one pace: `[process][frame]`. `is_per_frame` is false for what is done once a target."""

    name: str
    pace_fps: float | None
    wall_s: protocol.Series
    cpu_s: protocol.Series
    is_per_frame: bool = True

    def quantile(self, q: float, *, cpu: bool) -> float:
        return protocol.quantile(protocol.pooled(self.cpu_s if cpu else self.wall_s), q)


@dataclass(frozen=True, slots=True)
class Split:
    """A net's pipeline: every stage at every pace, the whole frames, and how many frames came too late."""

    tracker: Tracker
    runtime: str
    runtime_version: str
    precision: str
    threads: int
    stages: tuple[StageTime, ...]
    wholes: tuple[StageTime, ...]
    late: Mapping[float, int]
    photo: str
    resized_by: str
    frame: tuple[int, int]
    speedometer_cpu_s: protocol.Series
    rel_errors: Mapping[str, float]
    session: str
    conditions_before: Conditions = field(default_factory=dict, compare=False, repr=False)
    conditions_after: Conditions = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def wall_over_cpu(self) -> float:
        """Of whole frames back to back: what other work on the machine took."""
        first = self.wholes[0]
        return protocol.wall_over_cpu(first.wall_s, first.cpu_s)

    @property
    def is_by_cpu(self) -> bool:
        """Whether shares are of CPU time: one thread, and other work held the machine."""
        return self.threads == 1 and protocol.is_busy(self.wall_over_cpu)

    def to_json(self) -> dict[str, Any]:
        c = self.tracker.search
        by_cpu = self.is_by_cpu
        return {
            "spec": c.spec,
            "device": "host",
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "form": c.form,
            "precision": self.precision,
            "threads": self.threads,
            "template_px": self.tracker.template.input[1],
            "search_px": c.input[1],
            "template_map": list(self.tracker.template_map),
            "search_map": list(self.tracker.search_map),
            "channels": self.tracker.channels,
            "head": self.tracker.head.spec,
            "photo": self.photo,
            "resized_by": self.resized_by,
            "frame": list(self.frame),
            "processes": len(self.wholes[0].wall_s),
            "frames": sum(map(len, self.wholes[0].wall_s)),
            "wall_over_cpu": self.wall_over_cpu,
            "is_busy": protocol.is_busy(self.wall_over_cpu) and self.threads == 1,
            "times_are": "cpu" if by_cpu else "wall",
            "stages": [self._stage_json(s, by_cpu) for s in self.stages],
            "whole": [self._stage_json(s, by_cpu) for s in self.wholes],
            "late_frames": {f"{fps:g}": count for fps, count in self.late.items()},
            "speedometer_s": protocol.quantile(protocol.pooled(self.speedometer_cpu_s), 0.5),
            "conversion_rel_errors": dict(self.rel_errors),
            "session": self.session,
            "notes": list(self.notes),
        }

    def _stage_json(self, stage: StageTime, by_cpu: bool) -> dict[str, Any]:
        of_frame = sum(
            s.quantile(0.5, cpu=by_cpu) for s in self.stages if s.is_per_frame and s.pace_fps == stage.pace_fps
        )
        own = stage.quantile(0.5, cpu=by_cpu)
        return {
            "stage": stage.name,
            "pace_fps": stage.pace_fps,
            "is_per_frame": stage.is_per_frame,
            "p50_s": own,
            "p90_s": stage.quantile(0.9, cpu=by_cpu),
            "share": own / of_frame if stage.is_per_frame and of_frame else None,
            "wall_p50_s": stage.quantile(0.5, cpu=False),
            "wall_p90_s": stage.quantile(0.9, cpu=False),
            "cpu_p50_s": stage.quantile(0.5, cpu=True),
            "cpu_p90_s": stage.quantile(0.9, cpu=True),
            "samples": sum(map(len, stage.wall_s)),
        }

    def raw(self) -> dict[str, protocol.Series]:
        """Every sample; series are named stage, pace, clock."""
        found: dict[str, protocol.Series] = {"speedometer_cpu_s": self.speedometer_cpu_s}
        for stage in (*self.stages, *self.wholes):
            pace = f"{stage.pace_fps:g} fps" if stage.pace_fps else "back to back"
            found[f"{stage.name}, {pace}, wall_s"] = stage.wall_s
            found[f"{stage.name}, {pace}, cpu_s"] = stage.cpu_s
        return found


def measure(
    tracker: Tracker,
    *,
    runtime: str = "ort",
    threads: int = 1,
    fps: float = 30.0,
    processes: int = PROCESSES,
    sequences: int = SEQUENCES,
    on_progress: Progress | None = None,
    ask: Callable[..., Mapping[str, Any]] = tasks.ask,
) -> Split:
    """Both paces over several processes. Raises CannotConvert for a net that the runtime cannot take."""
    engine = runtimes.find(runtime)
    tell = on_progress or (lambda done, total, seconds_left, text: None)
    nets = {"template": tracker.template, "search": tracker.search, "head": tracker.head}
    files = {}
    for name, net in nets.items():
        if not models.is_remembered(net, engine):
            tell(0, processes, None, f"converting {net.label} ({name}) for {runtime}")
        files[name] = models.converted(net, engine)
    before = conditions.read()
    answers: list[Mapping[str, Any]] = []
    notes: list[str] = []
    began = time.monotonic()
    try:
        for number in range(processes):
            spent = time.monotonic() - began
            left = spent / number * (processes - number) if number else None
            tell(number, processes, left, f"{tracker.search.spec}: pipeline, process {number + 1} of {processes}")
            request = {
                "runtime": runtime,
                "threads": threads,
                "models": {name: {"path": str(f.path)} for name, f in files.items()},
                "template_px": tracker.template.input[1],
                "search_px": tracker.search.input[1],
                "template_map": tracker.template_map,
                "search_map": tracker.search_map,
                "channels": tracker.channels,
                "stride": tracker.stride,
                "paces": [None, fps],
                "sequences": sequences,
                "frames": FRAMES,
                "warmups": WARMUPS,
                "seed": number,
            }
            answers.append(
                ask("bblab.latency.pipeworker", request, limit_s=LIMIT_S + sequences * FRAMES / fps, threads=threads)
            )
    except KeyboardInterrupt:
        if not answers:
            raise
        notes.append(f"stopped by hand after {len(answers)} of {processes} processes")
    first = answers[0]
    paces: list[float | None] = [None, fps]
    stages = [
        _stage(name, pace, [a["samples"][_key(pace)][name] for a in answers], name in FRAME)
        for pace in paces
        for name in (*FRAME, *TEMPLATE)
    ]
    wholes = [_stage(WHOLE, pace, [a["whole"][_key(pace)] for a in answers], True) for pace in paces]
    return Split(
        tracker,
        runtime,
        first["runtime_version"],
        first["precision"],
        threads,
        tuple(stages),
        tuple(wholes),
        {fps: sum(a["late"].get(_key(fps), 0) for a in answers)},
        first["photo"],
        first["resized_by"],
        (first["frame"][0], first["frame"][1]),
        tuple(tuple(a["speedometer_cpu_s"]) for a in answers),
        {name: f.rel_error for name, f in files.items()},
        uuid.uuid4().hex,
        before,
        conditions.read(),
        tuple(notes),
    )


def _key(pace: float | None) -> str:
    return f"{pace:g}" if pace else ""


def _stage(
    name: str, pace: float | None, samples: Sequence[Sequence[Sequence[float]]], is_per_frame: bool
) -> StageTime:
    wall = tuple(tuple(call[0] for call in process) for process in samples)
    cpu = tuple(tuple(call[1] for call in process) for process in samples)
    return StageTime(name, pace, wall, cpu, is_per_frame)
