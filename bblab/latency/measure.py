"""Measure: candidates and a reference in, timings out, by the protocol of `protocol.py`.

    convert (or remember) every model -> conditions -> worker processes, one after another -> conditions -> timings

Each process holds all the models and runs them in rounds of shuffled order. Nothing is printed or stored here.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from bblab.errors import BblabError, RunError
from bblab.latency import devices, models, protocol, runtimes, wire
from bblab.latency.devices import Device
from bblab.latency.models import Model
from bblab.latency.runtimes import Runtime
from bblab.latency.values import Broken, Candidate, Conditions, Interrupted, Plan, Samples, Timing

# done and total (rounds), seconds left (None before the first process has shown its pace), what is going on
Progress = Callable[[int, int, float | None, str], None]

# A budget that even the smallest honest measurement exceeds this often is taken at its word, and the result says so.
ABSURD = 3.0


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """What one worker process measured: `calls[model][round]` and `speed[round]` as (wall, CPU) seconds."""

    hello: wire.Hello
    calls: tuple[tuple[tuple[float, float], ...], ...]
    speed: tuple[tuple[float, float], ...]
    seconds: float  # from start to exit
    round_seconds: float  # mean length of a round


def measure(
    candidates: Sequence[Candidate],
    reference: Candidate,
    *,
    device: str | Device = "host",
    runtime: str | Runtime = "ort",
    plan: Plan = Plan(),  # noqa: B008  frozen
    on_progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Timing]:
    """One Timing a candidate, in their order, and the reference's (ratio 1) last, unless it is a candidate itself.

    Raises `Interrupted` on Ctrl-C and `Broken` if a worker fails: both carry the timings of the processes that had
    finished. Raises BblabError for a wrong request, and RunError if a model cannot be converted faithfully.
    """
    nets = _nets(candidates, reference)
    opened = devices.find(device) if isinstance(device, str) else device
    engine = runtimes.find(runtime) if isinstance(runtime, str) else runtime
    tell = on_progress or (lambda done, total, seconds_left, text: None)
    session = _Session(nets, nets.index(reference), engine, opened, plan, tell, clock)
    try:
        with opened:  # first: what cannot be reached, or cannot run this, is not worth converting for
            devices.prepare(opened, engine.name)
            session.convert()
            session.run()
    except KeyboardInterrupt:  # while connecting or leaving
        raise Interrupted(session.timings() if session.results else []) from None
    return session.timings()


def _nets(candidates: Sequence[Candidate], reference: Candidate) -> list[Candidate]:
    nets = list(candidates)
    if reference not in nets:
        nets.append(reference)
    seen: set[str] = set()
    for net in nets:
        if net.label in seen:
            raise BblabError(f"two candidates are called {net.label!r}", hint="give each its own label")
        seen.add(net.label)
    return nets


@dataclass(slots=True)
class _Session:
    """The running state of one `measure`."""

    nets: list[Candidate]
    reference_at: int
    runtime: Runtime
    device: Device
    plan: Plan
    tell: Progress
    clock: Callable[[], float]
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    files: list[Model] = field(default_factory=list)
    results: list[ProcessResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    before: Conditions = field(default_factory=dict)
    after: Conditions = field(default_factory=dict)

    def convert(self) -> None:
        total = self.plan.processes * self.plan.rounds
        try:
            for net in self.nets:
                if not models.is_remembered(net, self.runtime):
                    self.tell(0, total, None, f"converting {net.label} for {self.runtime.name}")
                self.files.append(models.converted(net, self.runtime))
        except KeyboardInterrupt:
            raise Interrupted([]) from None

    def run(self) -> None:
        try:
            self._run()
        except KeyboardInterrupt:
            raise Interrupted(self._partial("stopped by hand")) from None
        except RunError as error:
            raise Broken(error, self._partial("a worker failed")) from error

    def _partial(self, why: str) -> list[Timing]:
        if not self.results:
            return []
        self.notes.append(f"{why} after {len(self.results)} process(es)")
        self.after = self.device.conditions()
        return self.timings()

    def _run(self) -> None:
        paths = [self.device.send(model.path) for model in self.files]
        self.before = self.device.conditions()
        started = self.clock()
        for number, rounds in enumerate(self._schedule(started)):
            self.results.append(self._process(number, rounds, paths, started))
        self.after = self.device.conditions()
        done = sum(len(r.speed) - 1 for r in self.results)
        self.tell(done, done, 0.0, "measured")

    # How much -----------------------------------------------------------------------------------------------

    def _schedule(self, started: float) -> Iterator[int]:
        """Rounds of each next process, decided from the pace of the finished ones, until it is enough."""
        plan = self.plan
        budget = plan.budget_s
        while True:
            done = len(self.results)
            if done >= plan.processes and (done >= (plan.max_processes or 0) or self._has_separated(done)):
                return
            if budget is None or done == 0:
                # A budget may forbid many rounds before the pace is known: the first process shows it with few.
                yield plan.rounds if budget is None else min(plan.rounds, protocol.ENOUGH_ROUNDS)
                continue
            left = budget - (self.clock() - started)
            start_s, round_s = self._pace()
            floor_s = start_s + min(plan.rounds, protocol.ENOUGH_ROUNDS) * round_s
            needed = min(plan.processes, protocol.ENOUGH_PROCESSES)
            if done < needed:
                absurd = floor_s * needed > ABSURD * budget
                if absurd and left < floor_s:
                    self._note_budget(done)
                    return
                # Processes beat rounds: share what is left so that the planned processes all fit, with fewer rounds.
                wanted = max(needed, min(plan.processes, done + int(left / floor_s))) - done
            else:
                if left < floor_s:
                    if done < plan.processes:
                        self._note_budget(done)
                    return
                wanted = max(1, min(plan.processes - done, int(left / floor_s)))
            fits = int((left / wanted - start_s) / round_s)
            yield max(min(plan.rounds, protocol.ENOUGH_ROUNDS), min(plan.rounds, fits))

    def _note_budget(self, done: int) -> None:
        self.notes.append(
            f"the budget of {self.plan.budget_s:.3g} s ended it after {done} of {self.plan.processes} processes"
        )

    def _pace(self) -> tuple[float, float]:
        """Mean seconds of a process's start, and of a round."""
        starts = [r.seconds - r.round_seconds * (len(r.speed) - 1) for r in self.results]
        rounds = [r.round_seconds for r in self.results]
        return max(0.0, sum(starts) / len(starts)), max(1e-9, sum(rounds) / len(rounds))

    def _has_separated(self, done: int) -> bool:
        """Looked at at the agreed numbers of processes only: each look is a chance to be wrong."""
        return protocol.is_look(done) and not protocol.ties(self.timings())

    # One process --------------------------------------------------------------------------------------------

    def _process(self, number: int, rounds: int, paths: list[str], started: float) -> ProcessResult:
        orders = protocol.orders(len(self.nets), rounds, self.plan.seed, number)
        loaded = protocol.load_order(len(self.nets), self.plan.seed, number)
        request = wire.Request(
            runtime=self.runtime.name,
            threads=self.plan.threads,
            warmups=self.plan.warmups,
            seed=self.plan.seed,
            models=tuple(wire.ModelFile(self.nets[at].label, paths[at], (1, *self.nets[at].input)) for at in loaded),
            orders=tuple(map(tuple, orders)),
            pace_s=1 / self.plan.pace_fps if self.plan.pace_fps else 0.0,
        )
        planned = max(self.plan.processes, number + 1)
        done_before = sum(len(r.speed) - 1 for r in self.results)
        total = done_before + rounds + (planned - number - 1) * rounds
        text = f"process {number + 1} of {planned}, {len(self.nets)} models on {self.device.name}"
        self.tell(done_before, total, self._seconds_left(planned - number, rounds, started), text)

        devices.settle(
            self.device,
            self.runtime.name,
            self.plan.threads,
            lambda what: self.tell(done_before, total, None, f"process {number + 1} of {planned}, {what}"),
        )
        begin = self.clock()
        ready_at = last_at = begin
        hello: wire.Hello | None = None
        calls: dict[tuple[int, int], tuple[float, float]] = {}
        speed: dict[int, tuple[float, float]] = {}
        # Closing the generator ends the worker, whatever happens here (Ctrl-C included).
        with closing(self.device.run(request, silence_s=self.plan.silence_s)) as messages:
            for message in messages:
                match message:
                    case wire.Hello():
                        hello = message
                    case wire.Ready():
                        ready_at = last_at = self.clock()
                    case wire.Speed():
                        speed[message.round] = (message.wall_s, message.cpu_s)
                        if message.round:
                            last_at = self.clock()
                            left = self._seconds_left(planned - number, rounds, started)
                            self.tell(done_before + message.round, total, left, text)
                    case wire.Call():
                        if message.model < len(loaded):
                            calls[loaded[message.model], message.round] = (message.wall_s, message.cpu_s)
        return _complete(
            hello, calls, speed, len(self.nets), rounds, self.clock() - begin, (last_at - ready_at) / rounds
        )

    def _seconds_left(self, processes: int, rounds: int, started: float) -> float | None:
        if not self.results:
            return None
        start_s, round_s = self._pace()
        whole = (len(self.results) + processes) * (start_s + rounds * round_s)
        left = max(0.0, whole - (self.clock() - started))
        budget = self.plan.budget_s
        return left if budget is None else min(left, max(0.0, budget - (self.clock() - started)))

    # Results ------------------------------------------------------------------------------------------------

    def timings(self) -> list[Timing]:
        reference = self.nets[self.reference_at]
        reference_samples = self._samples(self.reference_at)
        speedometer = Samples(
            tuple(tuple(wall for wall, _ in r.speed) for r in self.results),
            tuple(tuple(cpu for _, cpu in r.speed) for r in self.results),
        )
        hello = self.results[0].hello
        return [
            Timing(
                label=net.label,
                spec=net.spec,
                form=net.form,
                input=net.input,
                key=net.key,
                device=self.device.name,
                runtime=hello.runtime,
                runtime_version=hello.runtime_version,
                precision=hello.precision,
                threads=self.plan.threads,
                warmups=self.plan.warmups,
                samples=self._samples(at),
                reference=reference.spec,
                reference_form=reference.form,
                reference_input=reference.input,
                reference_key=reference.key,
                reference_samples=reference_samples,
                speedometer=speedometer,
                speedometer_name=hello.speedometer,
                model_sha256=file.sha256,
                model_bytes=file.bytes,
                conversion_rel_error=file.rel_error,
                session=self.name,
                pace_fps=self.plan.pace_fps,
                processor=runtimes.processor(self.runtime),
                conditions_before=self.before,
                conditions_after=self.after,
                notes=(*self.notes, *devices.notes(self.device)),
            )
            for at, (net, file) in enumerate(zip(self.nets, self.files, strict=True))
        ]

    def _samples(self, at: int) -> Samples:
        return Samples(
            tuple(tuple(wall for wall, _ in r.calls[at]) for r in self.results),
            tuple(tuple(cpu for _, cpu in r.calls[at]) for r in self.results),
        )


def _complete(
    hello: wire.Hello | None,
    calls: dict[tuple[int, int], tuple[float, float]],
    speed: dict[int, tuple[float, float]],
    num_models: int,
    rounds: int,
    seconds: float,
    round_seconds: float,
) -> ProcessResult:
    """Every call asked for, once. A worker that left some out is refused: which ones it lost is no accident."""
    missing = num_models * rounds - len(calls) + rounds + 1 - len(speed)
    if hello is None or missing:
        raise RunError(
            f"the worker left out {missing} of its measurements" if hello else "the worker did not introduce itself",
            hint="it is of another bblab version, or was cut off; run it again",
        )
    return ProcessResult(
        hello,
        tuple(tuple(calls[model, r] for r in range(rounds)) for model in range(num_models)),
        tuple(speed[r] for r in range(rounds + 1)),
        seconds,
        round_seconds,
    )
