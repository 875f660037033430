"""The machine that bblab runs on: workers are its child processes."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bblab.errors import BblabError, RunError
from bblab.latency import conditions, runtimes, wire
from bblab.latency.devices import DEVICES, talk

FAREWELL_S = 10.0  # for a worker that has said its last word to exit

# -P: code is not loaded from where one happens to stand.
WORKER = (sys.executable, "-P", "-m", "bblab.latency.worker")


def _worker(request: wire.Request) -> tuple[str, ...]:
    """bblab's own worker, or the program that is the runtime."""
    return runtimes.program(request.runtime) or WORKER


@DEVICES("host")
class Host:
    """`command` replaces the worker, for tests and for runners in other languages."""

    name = "host"

    def __init__(self, address: str = "", *, command: Sequence[str] = ()) -> None:
        if address:
            raise BblabError(f"no device 'host:{address}'", hint="the host has no address: say 'host'")
        self._command = tuple(command)

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def send(self, path: Path) -> str:
        return str(path)

    def conditions(self) -> dict[str, Any]:
        return conditions.read()

    def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
        process = subprocess.Popen(
            self._command or _worker(request),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "OMP_NUM_THREADS": str(request.threads), "PYTHONUNBUFFERED": "1"},
            # Its own group: Ctrl-C reaches us alone, and we end the worker with whatever it has started.
            start_new_session=True,
        )
        assert process.stdin and process.stdout and process.stderr
        lines = talk.Lines()
        readers = [
            threading.Thread(target=_listen, args=(process.stdout, lines.stdout), daemon=True),
            threading.Thread(target=_drain, args=(process.stderr, lines.stderr.append), daemon=True),
        ]
        try:
            for reader in readers:
                reader.start()
            # A worker that died before listening: its exit code and last words tell more than our broken pipe.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(wire.encode_request(request) + "\n")
                process.stdin.close()
            try:
                ended = yield from talk.listen(self.name, lines, silence_s)
            except talk.ToldFailure as told:
                readers[1].join(FAREWELL_S)
                raise told.with_last_words() from None
            code = process.wait(FAREWELL_S)
            readers[1].join(FAREWELL_S)
            if code != 0 or not ended:
                raise RunError(
                    f"the worker on {self.name} {talk.ending(code)}" + lines.last_words(), hint=talk.hint_for(code)
                )
        except subprocess.TimeoutExpired:
            raise RunError(f"the worker on {self.name} closed its output but did not exit; it was ended") from None
        finally:
            _end(process)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            for reader, pipe in zip(readers, (process.stdout, process.stderr), strict=True):
                # A child that left the group may hold the pipe open for ever, and closing would wait for the reader.
                if reader.ident is not None:
                    reader.join(1.0)
                if not reader.is_alive():
                    pipe.close()


def _listen(pipe: IO[str], lines: queue.Queue[str | None]) -> None:
    """Read standard output in a thread, so that a silent worker cannot hold us; None marks its end."""
    _drain(pipe, lines.put)
    lines.put(None)


def _drain(pipe: IO[str], put: Callable[[str], None]) -> None:
    with contextlib.suppress(ValueError):  # closed under us while ending
        for line in pipe:
            put(line.rstrip("\n"))


def _end(process: subprocess.Popen[str]) -> None:
    """End the worker and everything it started."""
    # Gone already is fine; macOS says PermissionError for a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
