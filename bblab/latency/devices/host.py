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
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bblab.errors import BblabError, RunError
from bblab.latency import conditions, runtimes, wire
from bblab.latency.devices import DEVICES, talk
from bblab.latency.devices.cores import Choice, Cluster, choose, clusters, words
from bblab.latency.devices.lock import locked

FAREWELL_S = 10.0  # for a worker that has said its last word to exit

# -P: code is not loaded from where one happens to stand.
WORKER = (sys.executable, "-P", "-m", "bblab.latency.worker")


def _worker(request: wire.Request) -> tuple[str, ...]:
    """bblab's own worker, or the program that is the runtime."""
    return runtimes.program(request.runtime) or WORKER


@DEVICES("host")
class Host:
    """`command` replaces the worker, for tests and for runners in other languages.

    Workers are held to the fast cores of a hybrid processor; each then holds itself to one of them (`holding.py`).
    """

    name = "host"
    waits = False  # for another measurement on this machine to end, instead of refusing

    def __init__(self, address: str = "", *, command: Sequence[str] = ()) -> None:
        if address:
            raise BblabError(f"no device 'host:{address}'", hint="the host has no address: say 'host'")
        self._command = tuple(command)
        self._lock: IO[str] | None = None
        self.notes: list[str] = []

    def __enter__(self) -> Host:
        self.notes.clear()
        self._lock = locked("host", "this machine", waits=self.waits)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def choice(self, threads: int) -> Choice:
        """The cores of a worker with so many threads; none where all are alike."""
        found = topology()
        chosen = choose("big", found, threads)
        if chosen.cpus and not chosen.note:
            listed = ",".join(map(str, chosen.cpus))
            return Choice(chosen.cpus, f"held to the fast cores {listed} of {words(found)}")
        return chosen

    def send(self, path: Path) -> str:
        return str(path)

    def conditions(self) -> dict[str, Any]:
        return conditions.read()

    def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
        chosen = self.choice(request.threads)
        if chosen.note and chosen.note not in self.notes:
            self.notes.append(chosen.note)
        request = replace(request, cpus=chosen.cpus)
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


def topology(root: Path = Path("/")) -> tuple[Cluster, ...]:
    """This machine's cores that we may use, by kind; `root` stands for / so that a test can give other files."""
    folder = root / "sys/devices/system/cpu"
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def numbers(name: str) -> dict[int, int]:
        found = {}
        for cpu in allowed:
            with contextlib.suppress(OSError, ValueError):
                found[cpu] = int((folder / f"cpu{cpu}" / name).read_text(encoding="ascii"))
        return found

    hz = {cpu: khz * 1000 for cpu, khz in numbers("cpufreq/cpuinfo_max_freq").items()}
    return clusters(hz, numbers("cpu_capacity"), allowed)


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
