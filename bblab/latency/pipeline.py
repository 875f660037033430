"""Where a tracker's frame goes: pre-processing, backbone, head, decoding; warm (no pause) and at a camera's pace."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bblab.errors import BblabError, RunError
from bblab.latency import protocol, session, stats, wire
from bblab.latency.devices import Device
from bblab.latency.session import Measured, ProcessResult, Progress
from bblab.latency.stageworker import FRAME, TEMPLATE, WHOLE
from bblab.latency.values import Candidate, Conditions, Plan

SEQUENCES, FRAMES = 6, 10  # of each pace in a process; of a sequence
PLAN = Plan(processes=5, rounds=2 * SEQUENCES)


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
    wall_s: stats.Series
    cpu_s: stats.Series
    is_per_frame: bool = True

    def quantile(self, q: float, *, cpu: bool) -> float:
        return stats.quantile(stats.pooled(self.cpu_s if cpu else self.wall_s), q)


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
    speedometer_cpu_s: stats.Series
    rel_errors: Mapping[str, float]
    session: str
    conditions_before: Conditions = field(default_factory=dict, compare=False, repr=False)
    conditions_after: Conditions = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def wall_over_cpu(self) -> float:
        """Of whole frames without a pause: what other work on the machine took."""
        first = self.wholes[0]
        return stats.wall_over_cpu(first.wall_s, first.cpu_s)

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
            "protocol": wire.PROTOCOL,
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
            "speedometer_s": stats.quantile(stats.pooled(self.speedometer_cpu_s), 0.5),
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
            "state": wire.PACED if stage.pace_fps else wire.WARM,
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

    def raw(self) -> dict[str, stats.Series]:
        """Every sample; series are named stage, pace, clock."""
        found: dict[str, stats.Series] = {"speedometer_cpu_s": self.speedometer_cpu_s}
        for stage in (*self.stages, *self.wholes):
            pace = f"{stage.pace_fps:g} fps" if stage.pace_fps else wire.WARM
            found[f"{stage.name}, {pace}, wall_s"] = stage.wall_s
            found[f"{stage.name}, {pace}, cpu_s"] = stage.cpu_s
        return found


def measure(
    tracker: Tracker,
    *,
    device: str | Device = "host",
    runtime: str = "ort",
    threads: int = 1,
    fps: float = 30.0,
    plan: Plan = PLAN,
    on_progress: Progress | None = None,
) -> tuple[Split | None, BblabError | None]:
    """Both paces over several processes on this machine as far as they were measured, and what ended it early."""
    nets = {"template": tracker.template, "search": tracker.search, "head": tracker.head}
    candidates = [replace(net, label=name) for name, net in nets.items()]

    def ask(request: wire.Request, number: int) -> wire.Request:
        paces = [wire.WARM, wire.PACED] * (request.rounds // 2) + [wire.WARM] * (request.rounds % 2)
        random.Random(number).shuffle(paces)
        options = {
            "template_px": tracker.template.input[1],
            "search_px": tracker.search.input[1],
            "template_map": tracker.template_map,
            "search_map": tracker.search_map,
            "channels": tracker.channels,
            "stride": tracker.stride,
            "frames": FRAMES,
            "paces": paces,
        }
        return replace(request, probe="stages", options=options)

    measured, problem = session.attempt(
        candidates,
        candidates[0],
        device=device,
        runtime=runtime,
        plan=replace(plan, threads=threads, pace_fps=fps),
        ask=ask,
        on_progress=on_progress,
    )
    if measured is None:
        return None, problem
    try:
        return split(tracker, measured, threads, fps), problem
    except RunError as too_short:
        return None, problem or too_short


def split(tracker: Tracker, measured: Measured, threads: int, fps: float) -> Split:
    """From what the processes of a session with the probe `stages` said. Raises RunError where stages are missing."""
    processes = [_by_stage(result) for result in measured.results]
    hello, first = measured.results[0].hello, measured.results[0]
    notes = {m.name: m.text for m in first.told if isinstance(m, wire.Note)}
    stages: list[StageTime] = []
    wholes: list[StageTime] = []
    for state, pace in ((wire.WARM, None), (wire.PACED, fps)):
        for name in (*FRAME, *TEMPLATE, WHOLE):
            found = [p[state, name] for p in processes if (state, name) in p]
            if not found:
                raise RunError(f"the session ended before a {state} {name}", hint="give a larger --budget, or none")
            wall = tuple(tuple(m.wall_s for m in process) for process in found)
            cpu = tuple(tuple(m.cpu_s for m in process) for process in found)
            time = StageTime(name, pace, wall, cpu, name not in TEMPLATE)
            (wholes if name == WHOLE else stages).append(time)
    height, width = map(int, notes["frame"].split())
    return Split(
        tracker=tracker,
        runtime=hello.runtime,
        runtime_version=hello.runtime_version,
        precision=hello.precision,
        threads=threads,
        stages=tuple(stages),
        wholes=tuple(wholes),
        late={fps: sum(s > 1 / fps for s in stats.pooled(wholes[-1].wall_s))},
        photo=notes["photo"],
        resized_by=notes["resized_by"],
        frame=(height, width),
        speedometer_cpu_s=tuple(tuple(s.cpu_s for s in r.speed) for r in measured.results),
        rel_errors=dict(zip(("template", "search", "head"), (f.rel_error for f in measured.files), strict=True)),
        session=measured.name,
        conditions_before=measured.before,
        conditions_after=measured.after,
        notes=measured.notes,
    )


def _by_stage(result: ProcessResult) -> dict[tuple[str, str], Sequence[wire.Stage]]:
    found: dict[tuple[str, str], list[wire.Stage]] = {}
    for message in result.told:
        if isinstance(message, wire.Stage):
            found.setdefault((message.state, message.name), []).append(message)
    return {**found}
