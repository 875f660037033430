"""What a worker says, wherever it runs: lines in, messages out; foreign lines kept, silence and crashes told.

A device feeds `Lines` from a thread; `listen` reads it. `None` marks the end of the output.
"""

from __future__ import annotations

import queue
import signal
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field

from bblab.errors import RunError
from bblab.latency import wire

LAST_LINES = 12  # of standard error, shown when a worker fails


@dataclass(slots=True)
class Lines:
    """Output of one worker: its standard output line by line, the end of its standard error, what was not for us."""

    stdout: queue.Queue[str | None] = field(default_factory=queue.Queue)
    stderr: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    foreign: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    foreign_count: int = 0

    def last_words(self) -> str:
        said = "".join(f"\n  | {line}" for line in self.stderr)
        if self.foreign:
            said += "\n  on its standard output, not from bblab:" + "".join(f"\n  | {line}" for line in self.foreign)
        return ":" + said if said else " (it left no message)"


def listen(name: str, lines: Lines, silence_s: float) -> Generator[wire.Message, None, bool]:
    """The messages of a worker on the device `name` until its output ends; returns whether it said `end`.

    Raises RunError if it says nothing for `silence_s` or tells a failure, WireError if a tagged line is broken.
    Ending the worker is the device's affair.
    """
    ended = False
    while True:
        try:
            line = lines.stdout.get(timeout=silence_s)
        except queue.Empty:
            raise RunError(
                f"the worker on {name} said nothing for {silence_s:g} s and was ended" + lines.last_words(),
                hint="a very large net may need a longer silence_s in the plan",
            ) from None
        if line is None:
            return ended
        message = wire.parse(line)
        if message is None:
            lines.foreign.append(line)
            lines.foreign_count += 1
            continue
        if isinstance(message, wire.Failure):
            raise ToldFailure(name, message, lines)
        ended = ended or isinstance(message, wire.End)
        yield message


class ToldFailure(RunError):
    """The worker said itself what failed. Read it with `with_last_words` once its standard error has ended."""

    def __init__(self, name: str, failure: wire.Failure, lines: Lines) -> None:
        super().__init__(f"the worker on {name} failed: {failure.message}")
        self.failure, self.lines = failure, lines

    def with_last_words(self) -> RunError:
        if self.failure.model is not None:
            return ModelRefused(self.failure)
        return RunError(self.message + self.lines.last_words())


class ModelRefused(RunError):
    """The worker could not load or warm up one of its models, whose place in the request is `model`."""

    def __init__(self, failure: wire.Failure) -> None:
        assert failure.model is not None
        super().__init__(failure.message)
        self.model = failure.model


def ending(code: int) -> str:
    """An exit code in words. Negative, or above 128 as a shell tells it, is a signal."""
    number = -code if code < 0 else code - 128 if 128 < code < 160 else 0
    if number:
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    return f"exited with code {code} before it had finished"


def hint_for(code: int) -> str:
    return "out of memory is the usual reason for a killed worker" if code in (-9, 137) else ""
