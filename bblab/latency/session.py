"""The one measuring session: candidates and references in, timings and what a probe heard out.

    convert (or remember) every model -> conditions -> worker processes, one after another -> conditions -> timings

Each process holds all the models and visits them in rounds of shuffled order (`protocol.py`). A probe is a function of
the worker (`worker.PROBES`), an `ask` that changes what each process is asked, and what reads the messages it heard
(`ProcessResult.told`): see `perop.py` and `pipeline.py`. Nothing is printed or stored here. A budget bounds all of it:
a conversion is stopped, and a process that is over it is ended after the round that it has finished.
"""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from bblab.errors import BblabError, RunError
from bblab.latency import devices, models, protocol, runtimes, stats, wire
from bblab.latency.devices import Device, talk
from bblab.latency.models import Model
from bblab.latency.runtimes import Runtime
from bblab.latency.values import Broken, Candidate, Conditions, Interrupted, Plan, Sampled, Samples, Timing

# done and total (rounds), seconds left (None before the first process has shown its pace), what is going on
Progress = Callable[[int, int, float | None, str], None]

# A probe's changes to the request of a process, given its number
Ask = Callable[[wire.Request, int], wire.Request]

CONVERTING_SHARE = 0.6  # of a budget: what is not converted by then is left out, so that something is measured


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """What one worker process measured: `calls[model, state]` in the order of the rounds, `speed[round]`.

    `told` are the messages of a probe, `complete` whether all the rounds it was asked for are there.
    """

    hello: wire.Hello
    ready: wire.Ready
    calls: Mapping[tuple[int, str], tuple[wire.Call, ...]]
    speed: tuple[wire.Speed, ...]
    told: tuple[wire.Message, ...]
    seconds: float  # from start to exit
    round_seconds: float  # mean length of a round

    @property
    def rounds(self) -> int:
        return len(self.speed) - 1


@dataclass(frozen=True, slots=True)
class Measured:
    """A whole session: timings in the candidates' order, the processes behind them, nets the budget did not reach."""

    timings: tuple[Timing, ...]
    results: tuple[ProcessResult, ...]
    files: tuple[Model, ...]
    not_reached: tuple[str, ...]
    name: str
    before: Conditions
    after: Conditions
    notes: tuple[str, ...]


def measure(candidates: Sequence[Candidate], reference: Candidate | Sequence[Candidate], **how: Any) -> list[Timing]:
    """One Timing a candidate, in their order, and the references' last, unless they are candidates themselves.

    A net's reference is the one of its own input size, else the first. Keywords as of `run`.
    """
    return list(run(candidates, reference, **how).timings)


def run(
    candidates: Sequence[Candidate],
    reference: Candidate | Sequence[Candidate],
    *,
    device: str | Device = "host",
    runtime: str | Runtime = "ort",
    plan: Plan = Plan(),  # noqa: B008  frozen
    ask: Ask | None = None,
    on_progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Measured:
    """The session; `ask` is a probe's.

    Raises `Interrupted` on Ctrl-C and `Broken` if a worker fails: both carry the timings of the processes that had
    finished. Raises BblabError for a wrong request, and RunError if a model cannot be converted faithfully.
    """
    references = [reference] if isinstance(reference, Candidate) else list(reference)
    nets = _nets(candidates, references)
    opened = devices.find(device) if isinstance(device, str) else device
    engine = runtimes.find(runtime) if isinstance(runtime, str) else runtime
    tell = on_progress or (lambda done, total, seconds_left, text: None)
    session = _Session(nets, references, engine, opened, plan, tell, clock, ask or (lambda request, number: request))
    try:
        with opened:  # first: what cannot be reached, or cannot run this, is not worth converting for
            devices.prepare(opened, engine.name)
            session.convert()
            session.run()
    except (Interrupted, Broken) as stopped:
        stopped.measured = session.measured() if session.results else None
        raise
    except KeyboardInterrupt:  # while connecting or leaving
        raise Interrupted(session.timings()) from None
    return session.measured()


def attempt(*args: Any, **how: Any) -> tuple[Measured | None, BblabError | None]:
    """What `run` measured as far as it came, and what ended it early. Raises BblabError for a wrong request only."""
    try:
        return run(*args, **how), None
    except (Interrupted, Broken) as stopped:
        return stopped.measured, stopped
    except RunError as failed:
        return None, failed


def _nets(candidates: Sequence[Candidate], references: Sequence[Candidate]) -> list[Candidate]:
    nets = [*candidates, *(r for r in references if r not in candidates)]
    seen: set[str] = set()
    for net in nets:
        if net.label in seen:
            raise BblabError(f"two candidates are called {net.label!r}", hint="give each its own label")
        seen.add(net.label)
    return nets


class TimeUp(BaseException):
    """The budget's end, in the midst of a conversion. As KeyboardInterrupt, so that nobody's `except` swallows it."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises TimeUp inside after so many seconds, in the main thread of systems that have an alarm; else never.

    An import is let finish first: torch, half imported, can be used no more. Somebody else's alarm goes on afterwards.
    """
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def up(number: int, frame: FrameType | None) -> None:
        at = frame
        while at is not None:
            if at.f_code.co_filename == "<frozen importlib._bootstrap>":
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                return
            at = at.f_back
        raise TimeUp

    old, began = signal.signal(signal.SIGALRM, up), time.monotonic()
    theirs_s, again_s = signal.setitimer(signal.ITIMER_REAL, max(1e-3, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        if theirs_s:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, theirs_s - (time.monotonic() - began)), again_s)


@dataclass(slots=True)
class _Session:
    """The running state of one `run`."""

    nets: list[Candidate]
    references: list[Candidate]
    runtime: Runtime
    device: Device
    plan: Plan
    tell: Progress
    clock: Callable[[], float]
    ask: Ask
    began: float = field(init=False)
    measuring_since: float = 0.0
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    files: list[Model] = field(default_factory=list)
    results: list[ProcessResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    not_reached: list[str] = field(default_factory=list)
    before: Conditions = field(default_factory=dict)
    after: Conditions = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def left_s(self) -> float | None:
        """Of the budget; None without one."""
        return None if self.plan.budget_s is None else self.plan.budget_s - (self.clock() - self.began)

    # Models -------------------------------------------------------------------------------------------------

    def convert(self) -> None:
        """Every model; the references first. Nets that the budget does not reach are left out and listed."""
        total = self.plan.processes * self.plan.rounds
        made: dict[int, Model] = {}
        try:
            for at in sorted(range(len(self.nets)), key=lambda at: self.nets[at] not in self.references):
                net, left = self.nets[at], self.left_s()
                is_remembered = models.is_remembered(net, self.runtime)
                limit = None if left is None or is_remembered else left - (1 - CONVERTING_SHARE) * self._budget()
                if not is_remembered:
                    self.tell(0, total, None, f"converting {net.label} for {self.runtime.name}")
                try:
                    if limit is not None and limit <= 0:
                        raise TimeUp
                    with time_limit(limit):
                        made[at] = models.converted(net, self.runtime)
                except TimeUp:
                    if net in self.references:
                        raise RunError(
                            f"a budget of {self._budget():.3g} s is too short to convert the reference {net.label} for "
                            f"{self.runtime.name}",
                            hint="give a larger --budget once: converted models are remembered",
                        ) from None
                    self.not_reached.append(net.label)
        except KeyboardInterrupt:
            raise Interrupted([]) from None
        self.nets = [net for at, net in enumerate(self.nets) if at in made]
        self.files = [made[at] for at in sorted(made)]
        if self.not_reached:
            why = f"not reached in {self._budget():.3g} s (not converted for {self.runtime.name})"
            self.notes.append(f"{why}: {', '.join(self.not_reached)}")

    def _budget(self) -> float:
        return self.plan.budget_s or 0.0

    # Processes ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._run()
        except KeyboardInterrupt:
            raise Interrupted(self._partial("stopped by hand")) from None
        except RunError as error:
            if isinstance(error, models.CannotConvert) and not self.results:
                raise  # nothing is lost: the others are measured without it
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
        self.measuring_since = self.clock()
        for number, rounds in enumerate(self._schedule()):
            result = self._process(number, rounds, paths)
            if result is not None:
                self.results.append(result)
            if result is None or result.rounds < rounds:  # the budget ended in it
                break
        if not self.results:
            raise RunError(
                f"a budget of {self._budget():.3g} s is below one round of these {len(self.nets)} nets on "
                f"{self.device.name}: nothing was measured",
                hint="give more time, or fewer nets",
            )
        done = len(self.results)
        if self.plan.budget_s is not None and done < self.plan.processes:
            self.notes.append(
                f"the budget ended it after {done} of {self.plan.processes} processes "
                f"({self._budget():.3g} s were left for this session)"
            )
        self.after = self.device.conditions()
        rounds = sum(r.rounds for r in self.results)
        self.tell(rounds, rounds, 0.0, "measured")

    def _schedule(self) -> Iterator[int]:
        """Rounds of each next process, decided from the pace of the finished ones, until it is enough."""
        plan = self.plan
        least = min(plan.rounds, protocol.ENOUGH_ROUNDS)
        while True:
            done, left = len(self.results), self.left_s()
            if done >= plan.processes and (done >= (plan.max_processes or 0) or self._has_separated(done)):
                return
            if left is None or done == 0:
                # A budget may forbid many rounds before the pace is known: the first process shows it with few.
                yield plan.rounds if left is None else least
                continue
            start_s, round_s = self._pace()
            floor_s = start_s + least * round_s
            if left < floor_s:
                return
            # Processes beat rounds: share what is left so that the planned processes all fit, with fewer rounds.
            wanted = max(1, min(plan.processes - done, int(left / floor_s)))
            yield max(least, min(plan.rounds, int((left / wanted - start_s) / round_s)))

    def _pace(self) -> tuple[float, float]:
        """Mean seconds of a process's start, and of a round."""
        starts = [r.seconds - r.round_seconds * r.rounds for r in self.results]
        rounds = [r.round_seconds for r in self.results]
        return max(0.0, sum(starts) / len(starts)), max(1e-9, sum(rounds) / len(rounds))

    def _has_separated(self, done: int) -> bool:
        """Looked at at the agreed numbers of processes only: each look is a chance to be wrong."""
        return stats.is_look(done) and protocol.has_separated(self.timings())

    # One process --------------------------------------------------------------------------------------------

    def request(self, number: int, rounds: int, paths: Sequence[str]) -> tuple[wire.Request, list[int]]:
        """What a process is asked, and which of our nets each of its models is."""
        plan = self.plan
        loaded = protocol.load_order(len(self.nets), plan.seed, number)
        request = wire.Request(
            runtime=self.runtime.name,
            threads=plan.threads,
            warmups=plan.warmups,
            seed=plan.seed + number,
            models=tuple(wire.ModelFile(self.nets[at].label, paths[at], (1, *self.nets[at].input)) for at in loaded),
            orders=tuple(map(tuple, protocol.orders(len(self.nets), rounds, plan.seed, number))),
            pace_s=1 / plan.pace_fps if plan.pace_fps else 0.0,
            paced_calls=wire.PACED_CALLS if plan.pace_fps else 0,
        )
        return self.ask(request, number), loaded

    def _process(self, number: int, rounds: int, paths: Sequence[str]) -> ProcessResult | None:
        """One worker from start to end; the rounds that it finished where the budget ended it, None for none."""
        request, loaded = self.request(number, rounds, paths)
        planned = max(self.plan.processes, number + 1)
        done_before = sum(r.rounds for r in self.results)
        total = done_before + (planned - number) * rounds
        text = f"process {number + 1} of {planned}, {len(self.nets)} models on {self.device.name}"
        self.tell(done_before, total, self._seconds_left(planned - number, rounds), text)
        devices.settle(
            self.device,
            self.runtime.name,
            self.plan.threads,
            lambda what: self.tell(done_before, total, None, f"process {number + 1} of {planned}, {what}"),
        )
        begin = self.clock()
        heard = _Heard(request, loaded, begin)
        left = self.left_s()
        silence_s = self.plan.silence_s if left is None else max(0.05, min(self.plan.silence_s, left))
        # Closing the generator ends the worker, whatever happens here (Ctrl-C included).
        with closing(self.device.run(request, silence_s=silence_s)) as messages:
            try:
                for message in messages:
                    if heard.take(message, self.clock()):
                        self.tell(done_before + heard.rounds, total, self._seconds_left(planned - number, rounds), text)
                        left = self.left_s()
                        if left is not None and left <= 0:
                            break
            except RunError as error:
                left = self.left_s()
                if left is None or left > 0:
                    if isinstance(error, talk.ModelRefused) and error.model < len(loaded):
                        label = self.nets[loaded[error.model]].label
                        text = f"{label}: the worker of {self.runtime.name} on {self.device.name} cannot run it"
                        raise models.CannotConvert(label, f"{text} ({error.message})", hint=error.hint) from error
                    raise
        if left is not None and left <= 0 and not heard.is_whole:
            return heard.result(self.clock()) if heard.rounds else None
        heard.check()
        return heard.result(self.clock())

    def _seconds_left(self, processes: int, rounds: int) -> float | None:
        if not self.results:
            return None
        start_s, round_s = self._pace()
        whole = (len(self.results) + processes) * (start_s + rounds * round_s)
        estimate = max(0.0, whole - (self.clock() - self.measuring_since))
        left = self.left_s()
        return estimate if left is None else min(estimate, max(0.0, left))

    # Results ------------------------------------------------------------------------------------------------

    def measured(self) -> Measured:
        return Measured(
            tuple(self.timings()), tuple(self.results), tuple(self.files), tuple(self.not_reached), self.name,
            self.before, self.after, tuple(self.notes),
        )  # fmt: skip

    def reference_of(self, net: Candidate) -> Candidate:
        same = [r for r in self.references if r.input == net.input]
        return (same or self.references)[0]

    def timings(self) -> list[Timing]:
        """Of the nets, where the processes timed nets one by one."""
        if not self.results or not self.results[0].calls:
            return []
        sampled = {net.label: self._sampled(at) for at, net in enumerate(self.nets)}
        speedometer = Samples(
            tuple(tuple(s.wall_s for s in r.speed) for r in self.results),
            tuple(tuple(s.cpu_s for s in r.speed) for r in self.results),
        )
        hello = self.results[0].hello
        slices = [r.ready.slice_s for r in self.results]
        notes = (*self.notes, *devices.notes(self.device))
        found = []
        for net, file in zip(self.nets, self.files, strict=True):
            reference = self.reference_of(net)
            found.append(
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
                    samples=sampled[net.label],
                    reference=reference.spec,
                    reference_form=reference.form,
                    reference_input=reference.input,
                    reference_key=reference.key,
                    reference_samples=sampled[reference.label],
                    speedometer=speedometer,
                    speedometer_name=hello.speedometer,
                    model_sha256=file.sha256,
                    model_bytes=file.bytes,
                    conversion_rel_error=file.rel_error,
                    session=self.name,
                    pace_fps=self.plan.pace_fps,
                    processor=runtimes.processor(self.runtime),
                    pinned_cpus=tuple(r.ready.cpu for r in self.results),
                    slice_s=slices[0] if len(set(slices)) == 1 else None,
                    conditions_before=self.before,
                    conditions_after=self.after,
                    notes=notes,
                )
            )
        return found

    def _sampled(self, at: int) -> Sampled:
        found: dict[str, Samples] = {}
        for state in wire.STATES:
            calls = [r.calls.get((at, state), ()) for r in self.results]
            if not all(calls):
                continue
            counts = tuple(tuple(c.preempted for c in p if c.preempted is not None) for p in calls)
            found[state] = Samples(
                tuple(tuple(c.wall_s for c in process) for process in calls),
                tuple(tuple(c.cpu_s for c in process) for process in calls),
                len(calls[0]) // self.results[0].rounds,
                counts if list(map(len, counts)) == list(map(len, calls)) else (),
            )
        return found


@dataclass(slots=True)
class _Heard:
    """What a process has said so far."""

    request: wire.Request
    loaded: Sequence[int]  # which of our nets each of its models is
    begin: float
    hello: wire.Hello | None = None
    ready: wire.Ready | None = None
    ready_at: float = 0.0
    last_at: float = 0.0
    calls: dict[tuple[int, str], list[wire.Call]] = field(default_factory=lambda: defaultdict(list))
    speed: list[wire.Speed] = field(default_factory=list)
    told: list[wire.Message] = field(default_factory=list)
    is_whole: bool = False

    @property
    def rounds(self) -> int:
        return max(0, len(self.speed) - 1)

    def take(self, message: wire.Message, now: float) -> bool:
        """Whether a round has ended."""
        if isinstance(message, wire.Hello):
            self.hello = message
        elif isinstance(message, wire.Ready):
            self.ready, self.ready_at, self.last_at = message, now, now
        elif isinstance(message, wire.Speed):
            self.speed.append(message)
            self.last_at = now
            return message.round > 0
        elif isinstance(message, wire.Call):
            if message.model < len(self.loaded):
                self.calls[self.loaded[message.model], message.state].append(message)
        elif isinstance(message, wire.End):
            self.is_whole = True
        else:
            self.told.append(message)
        return False

    def check(self) -> None:
        """Every call asked for. A worker that left some out is refused: which ones it lost is no accident."""
        request = self.request
        missing = request.rounds + 1 - len(self.speed)
        if request.probe != "stages":
            for net in self.loaded:
                for state in (*wire.STATES, wire.PROFILED):
                    missing += abs(request.rounds * request.visit.count(state) - len(self.calls[net, state]))
        if self.hello is None or self.ready is None or missing:
            raise RunError(
                f"the worker left out {missing} of its measurements"
                if self.hello
                else "the worker did not introduce itself",
                hint="it is of another bblab version, or was cut off; run it again",
            )

    def result(self, now: float) -> ProcessResult:
        """With the whole rounds only."""
        assert self.hello is not None and self.ready is not None
        rounds = self.rounds
        calls = {key: tuple(c for c in calls if c.round < rounds) for key, calls in self.calls.items()}
        return ProcessResult(
            self.hello,
            self.ready,
            {key: found for key, found in calls.items() if found},
            tuple(self.speed[: rounds + 1]),
            tuple(m for m in self.told if getattr(m, "round", -1) < rounds),
            now - self.begin,
            (self.last_at - self.ready_at) / max(1, rounds),
        )
