"""A device that is reached by a shell: what boards (ssh) and phones (adb) have in common.

    lock -> connect -> clear leftovers -> folder of our own -> files -> state -> worker, line by line -> state
    -> end the worker, remove the folder -> disconnect

Whatever happens in between (Ctrl-C, a crash of the worker, a cable pulled out), the way out is taken: the worker is
ended by its process group and the folder removed, or, where the device does not answer any more, at the next
connection. A folder's name says which user of which machine made it, so that nobody clears another one's.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from bblab.errors import BblabError, RunError
from bblab.latency import runtimes, wire
from bblab.latency.devices import Tell, bundle, state, talk
from bblab.latency.devices.cores import Choice, Cluster, choose, words
from bblab.latency.devices.lock import locked, owner

SHORT_S = 30.0  # for commands that only look
GOODBYE_S = 8.0  # for the way out: a device that is gone must not hold us
CLEARED, ARCH = "#bblab-cleared ", "#bblab-arch "
SPENT = 24 * 60  # minutes after which a folder of another machine is a leftover


class Lost(RunError):
    """The connection broke: nothing more can be asked of the device."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command on the device printed, and its exit code."""

    code: int
    out: str
    err: str = ""

    def reason(self) -> str:
        """The last line of complaint."""
        lines = [line for line in (self.err + "\n" + self.out).splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else f"exit code {self.code}"


class Process(Protocol):
    """A running command: a thread of the link feeds `lines` until the output ends."""

    lines: talk.Lines

    def wait(self, timeout_s: float) -> int | None:
        """The exit code; None where the connection broke before it came."""

    def close(self) -> None: ...


class Link(Protocol):
    """One connection to a device. All its methods raise Lost when the device is gone, none waits for ever."""

    def open(self) -> None:
        """Raises RunError, saying what to do, where the device cannot be reached or does not let us in."""

    def close(self) -> None: ...

    def sh(self, command: str, timeout_s: float = SHORT_S) -> Said: ...

    def put(self, data: bytes, path: str) -> None:
        """Write a file. Raises RunError where the device's disk is full."""

    def start(self, command: str) -> Process: ...


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs a request on the device: a command line, without the cores and the request."""

    command: str
    note: str = ""
    speedometer: str = ""  # its kernel's name, where the command with --speedometer N says N `speed` lines


@dataclass(frozen=True, slots=True)
class About:
    """A device in words for a list: what it is, its cores, the runtimes it can run now, what would give it more."""

    words: str
    cores: str
    runtimes: tuple[str, ...]
    remedy: str = ""


@dataclass(slots=True, kw_only=True)
class Remote:
    """The flow; what a kind of device does its own way are `base`, `engine_for` and the link."""

    name: str
    link: Link
    base: str  # folder on the device in which ours is made
    lock_name: str
    cores: str = "big"
    is_phone: bool = False
    waits: bool = False  # for another measurement on the device to end, instead of refusing
    tools: Mapping[str, str] = field(default_factory=dict)  # benchmark programs of the user's, by name: files here
    engine_for: Callable[[Remote, str], Engine]
    read_state: Callable[[Remote], dict[str, Any]]
    describe: Callable[[Remote], About]
    cool: Callable[[Remote, str, Tell], None] | None = None
    remarks: list[str] = field(default_factory=list)
    foreign_lines: int = 0
    folder: str = ""
    arch: str = ""
    _lock: IO[str] | None = None
    _engines: dict[str, Engine] = field(default_factory=dict)
    _sent: dict[Path, str] = field(default_factory=dict)
    _topology: tuple[Cluster, ...] | None = None
    _choices: dict[int, Choice] = field(default_factory=dict)

    # In and out ---------------------------------------------------------------------------------------------

    def __enter__(self) -> Remote:
        self.remarks.clear()
        self.foreign_lines = 0
        self._engines.clear()
        self._sent.clear()
        self._topology = None
        self._choices.clear()
        self._lock = locked(self.lock_name, self.name, waits=self.waits)
        try:
            self.link.open()
            self._settle_in()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.folder:
                with suppress(BblabError):
                    self.link.sh(_end_and_remove(shlex.quote(self.folder)), GOODBYE_S)
        finally:
            self.folder = ""
            try:
                with suppress(BblabError):
                    self.link.close()
            finally:
                if self._lock is not None:
                    self._lock.close()
                    self._lock = None

    def _settle_in(self) -> None:
        """Clear leftovers and make our folder, in one command: each costs a round trip.

        Leftovers are ours of an earlier run that could not clean up (we hold the lock, so nobody uses them), and those
        of this user there that nobody has touched for a day.
        """
        base, name = shlex.quote(self.base), f"bblab-{owner()}-{uuid.uuid4().hex[:8]}"
        hexes = "[0-9a-f]" * 8
        old = f"-user $(id -u) -name 'bblab-{hexes}-{hexes}' -mmin +{SPENT}"
        clear = _end_and_remove('"$d"')
        made = self.link.sh(
            f"for d in {base}/bblab-{owner()}-{hexes} $(find {base} -maxdepth 1 -type d {old} 2>/dev/null); do "
            # The pattern again, as a blank in a path splits what find has printed.
            f'case "$d" in *[!/]/bblab-{hexes}-{hexes}) [ -d "$d" ] && {{ {clear}; echo "{CLEARED}$d"; }};; esac; '
            f'done; echo "{ARCH}$(uname -m)"; mkdir -p {base} && mkdir -m 700 {base}/{name}'
        )
        told = made.out.splitlines()
        self.arch = next((line[len(ARCH) :].strip() for line in told if line.startswith(ARCH)), "")
        cleared = sum(line.startswith(CLEARED) for line in told)
        if cleared:
            self.remark(f"cleared {cleared} folder(s) that an earlier run had left on the device")
        if made.code != 0:
            reason = Said(made.code, "\n".join(x for x in told if not x.startswith("#bblab")), made.err).reason()
            raise RunError(
                f"{self.name}: no folder can be made in {self.base}: {reason}",
                hint="free some space there, or name another folder with --folder",
            )
        self.folder = f"{self.base}/{name}"

    # What measuring asks ------------------------------------------------------------------------------------

    @property
    def notes(self) -> list[str]:
        passed = f"{self.foreign_lines} line(s) on the workers' output were not bblab's and were passed over"
        return [*self.remarks, *([passed] if self.foreign_lines else [])]

    def remark(self, text: str) -> None:
        if text and text not in self.remarks:
            self.remarks.append(text)

    def prepare(self, runtime: str) -> None:
        """Raises BblabError where the open device cannot run this runtime."""
        self._engine(runtime)

    def settle(self, runtime: str, threads: int, tell: Tell) -> None:
        """Wait until the device has cooled down, where its kind knows how to tell."""
        if self.cool is not None:
            self.cool(self, runtime, tell)

    def about(self) -> About:
        """Of the open device."""
        return self.describe(self)

    def send(self, path: Path) -> str:
        if path not in self._sent:
            name = f"m{len(self._sent)}-{path.name}"  # from where the worker stands
            self.link.put(path.read_bytes(), f"{self.folder}/{name}")
            self._sent[path] = name
        return self._sent[path]

    def conditions(self) -> dict[str, Any]:
        try:
            return self.read_state(self)
        except BblabError:
            return state.lost()

    def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
        engine = self._engine(request.runtime)
        self.remark(engine.note)
        folder = shlex.quote(self.folder)
        self.link.put((wire.encode_request(request) + "\n").encode(), f"{self.folder}/request.json")
        # The shell becomes the worker, so that the number it wrote down is the worker's.
        process = self.link.start(
            f"cd {folder} && echo $$ > pid && export OMP_NUM_THREADS={request.threads} PYTHONUNBUFFERED=1 "
            f"PYTHONDONTWRITEBYTECODE=1 && exec {self.pinning(request.threads)}{engine.command} < request.json"
        )
        lines = process.lines
        try:
            try:
                ended = yield from talk.listen(self.name, lines, silence_s)
            except talk.ToldFailure as told:
                process.wait(GOODBYE_S)
                raise told.with_last_words() from None
            code = process.wait(GOODBYE_S)
            if code is None and not ended:
                raise Lost(
                    f"the connection to {self.name} broke while it measured" + lines.last_words(),
                    hint="what is left on the device is cleared at the next connection",
                )
            if code or not ended:
                raise RunError(
                    f"the worker on {self.name} {talk.ending(code or 0)}" + lines.last_words(),
                    hint=talk.hint_for(code or 0),
                )
        finally:
            self.foreign_lines += lines.foreign_count
            with suppress(BblabError):
                self.link.sh(_end(folder), GOODBYE_S)
            process.close()

    # Cores --------------------------------------------------------------------------------------------------

    def topology(self) -> tuple[Cluster, ...]:
        if self._topology is None:
            self._topology = state.topology(state.parse_files(self.link.sh(state.COMMAND).out))
        return self._topology

    def choice(self, threads: int) -> Choice:
        """The cores of a worker with so many threads; none, with a note, where the device cannot pin."""
        if threads not in self._choices:
            chosen = choose(self.cores, self.topology(), threads)
            if chosen.cpus:
                tried = self.link.sh(f"taskset {chosen.mask} true")
                if tried.code != 0:
                    why = f"the device cannot pin to the cores {chosen.mask} ({tried.reason()})"
                    chosen = Choice(note=f"{why}: the worker ran on any core")
            self._choices[threads] = chosen
        return self._choices[threads]

    def pinning(self, threads: int) -> str:
        """The beginning of a command line that pins, with its blank; empty for none."""
        chosen = self.choice(threads)
        self.remark(chosen.note)
        return f"taskset {chosen.mask} " if chosen.cpus else ""

    def _engine(self, runtime: str) -> Engine:
        if runtime not in self._engines:
            self._engines[runtime] = self.engine_for(self, runtime)
        return self._engines[runtime]


# Speedometer alone ----------------------------------------------------------------------------------------------


def speedometer_s(remote: Remote, runtime: str, readings: int = 20, silence_s: float = 60.0) -> tuple[str, float]:
    """The fixed kernel's name and its CPU seconds on the device now, the best of `readings`.

    The best, since an idle phone's clock takes some milliseconds to rise. A program has an option for it; the worker in
    Python is given rounds without models.
    """
    engine = remote._engine(runtime)
    name, heard = engine.speedometer, []
    if name:
        pinned = f"{remote.pinning(1)}{engine.command} --speedometer {readings}"
        said = remote.link.sh(f"cd {shlex.quote(remote.folder)} && {pinned}", silence_s)
        if said.code != 0:
            raise RunError(f"the speedometer on {remote.name} {talk.ending(said.code)}: {said.reason()}")
        heard = [wire.parse(line) for line in said.out.splitlines()]
    else:
        request = wire.Request(runtime, 1, 3, 0, (), ((),) * readings)
        with contextlib.closing(remote.run(request, silence_s=silence_s)) as messages:
            heard = list(messages)
        name = next((m.speedometer for m in heard if isinstance(m, wire.Hello)), "")
    found = [m.cpu_s for m in heard if isinstance(m, wire.Speed)]
    if not found:
        raise RunError(f"the worker on {remote.name} gave no speedometer")
    return name, min(found)


# The runner and the worker --------------------------------------------------------------------------------------

STAND_IN = {"ncnn": "ncnn-static"}  # where no Python is, the same models in bblab's own program
UNVERIFIED = "bblab's runner has not been verified on a real phone yet: see bblab devices"


def static_runner(remote: Remote, runtime: str) -> Engine:
    """The program that is this runtime for the device's processor, pushed. Raises BblabError where there is none."""
    if not is_program(runtime):
        able = [*STAND_IN, *(name for name in runtimes.names() if is_program(name))]
        raise BblabError(
            f"{remote.name} cannot run {runtime!r}: it runs programs, no worker in Python",
            hint="--runtime " + " or ".join(dict.fromkeys(able)),
            exit_code=1,
        )
    path, *arguments = static_program(runtime, remote.arch)
    command = shlex.join([pushed_program(remote, Path(path), f"runner-{runtime}"), *arguments])
    said = remote.link.sh(f"cd {shlex.quote(remote.folder)} && {command} --about")
    told = [json.loads(line[len(wire.TAG) :]) for line in said.out.splitlines() if line.startswith(wire.TAG + "{")]
    if said.code != 0 or not told:
        raise RunError(
            f"{remote.name} does not run {Path(path).name}, built for {normal_arch(remote.arch)}: {said.reason()}",
            hint="see whether programs may start from its folder, or build it again: "
            f"bblab runner build {normal_arch(remote.arch)}",
        )
    wire.check_protocol(told[-1], f"{remote.name} ({Path(path).name})")
    return Engine(command, UNVERIFIED if remote.is_phone else "", str(told[-1].get("speedometer", "")))


def is_program(runtime: str) -> bool:
    """Whether a device without Python could run it."""
    return runtime in STAND_IN or hasattr(runtimes.find(runtime), "program")


def static_program(runtime: str, machine: str) -> tuple[str, ...]:
    """Its path here and its arguments, for `uname -m`. Raises BblabError, with the command that builds it."""
    return runtimes.program(STAND_IN.get(runtime, runtime), normal_arch(machine))


def programs(machine: str) -> tuple[list[str], str]:
    """The runtimes that are programs built for `uname -m`, and where there is none the command that builds them."""
    found, remedy = [], ""
    for name in [*STAND_IN, *(n for n in runtimes.names() if is_program(n) and n not in STAND_IN)]:
        try:
            static_program(name, machine)
            found.append(name)
        except BblabError as error:
            remedy = remedy or error.hint
    return found, "" if found else remedy


def pushed_program(remote: Remote, path: Path, name: str) -> str:
    """A program on the device, ready to be started. Raises RunError where the device will not start programs there."""
    place = f"{remote.folder}/{name}"
    if path in remote._sent:
        return remote._sent[path]
    remote.link.put(path.read_bytes(), place)
    done = remote.link.sh(f"chmod 700 {shlex.quote(place)} && [ -x {shlex.quote(place)} ]")
    if done.code != 0:
        raise RunError(
            f"{remote.name} does not let programs start from {remote.base}: {done.reason()}",
            hint="its folder is mounted noexec: name another with --folder",
        )
    remote._sent[path] = f"./{name}"
    return remote._sent[path]


def cores_words(remote: Remote) -> str:
    """For example `2 at 2.85 GHz + 4 at 1.80 GHz; measures on 6,7`."""
    found = words(remote.topology())
    pinned = remote.choice(1).cpus
    return found + (f"; measures on {','.join(map(str, pinned))}" if pinned else "")


def normal_arch(machine: str) -> str:
    return {"arm64": "aarch64", "armv8l": "aarch64", "amd64": "x86_64"}.get(machine, machine)


@dataclass(frozen=True, slots=True)
class OnBoard:
    """What the Python on a board said of itself."""

    python: str = ""  # version; empty where there is none
    command: str = "python3"
    numpy: str | None = None
    runtimes: tuple[tuple[str, str], ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    problem: str = ""


def look_at_python(remote: Remote, python: str) -> OnBoard:
    """Push the worker and ask the board's Python what it could run."""
    quoted = shlex.quote(python)
    said = remote.link.sh(f"{quoted} -c 'import sys; print(\"BBLAB-PYTHON\", *sys.version_info[:3])'")
    found = [line.split()[1:] for line in said.out.splitlines() if line.startswith("BBLAB-PYTHON ")]
    if said.code != 0 or not found:
        return OnBoard(problem=f"no usable Python there ({python}: {said.reason()})")
    version = ".".join(found[-1])
    if tuple(map(int, found[-1][:2])) < bundle.LEAST_PYTHON:
        least = ".".join(map(str, bundle.LEAST_PYTHON))
        return OnBoard(version, python, problem=f"its {python} is Python {version}; the worker needs {least} or later")
    place = f"{remote.folder}/worker.zip"
    remote.link.put(bundle.worker(), place)
    asked = remote.link.sh(f"PYTHONDONTWRITEBYTECODE=1 {quoted} {shlex.quote(place)} about", 120.0)
    for line in asked.out.splitlines():
        if line.startswith("BBLAB-ABOUT "):
            with suppress(ValueError, KeyError):
                told = json.loads(line.partition(" ")[2])
                return OnBoard(
                    version,
                    python,
                    told["numpy"],
                    tuple(sorted(told["runtimes"].items())),
                    tuple(sorted(told["missing"].items())),
                )
    return OnBoard(version, python, problem=f"the worker does not start on its Python {version}: {asked.reason()}")


# Small things ---------------------------------------------------------------------------------------------------


def _end(folder: str) -> str:
    """End the worker of a (quoted) folder and all that it started: it leads a group of its own on sshd and adbd."""
    return (
        f'p=$(cat {folder}/pid 2>/dev/null) && [ -n "$p" ] && '
        '{ kill -9 "-$p" || kill -9 -- "-$p" || kill -9 "$p"; } 2>/dev/null; rm -f ' + f"{folder}/pid"
    )


def _end_and_remove(folder: str) -> str:
    return f"{_end(folder)}; rm -rf {folder}"
