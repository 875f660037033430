"""What a worker says: one tagged JSON line a message, so that a C++ runner on a phone can say it too.

    BBLAB {"kind": "hello", "wire": 2, "protocol": 2, "runtime": "ort", "runtime_version": "1.32.0",
           "precision": "float32", "speedometer": "python-xorshift64-15000"}
    BBLAB {"kind": "ready", "models": 3, "cpu": 1, "slice_s": 0.1}
    BBLAB {"kind": "speed", "round": 0, "wall_s": 0.0031, "cpu_s": 0.0031}
    BBLAB {"kind": "call", "round": 0, "model": 2, "state": "cold", "wall_s": 0.0123, "cpu_s": 0.0122, "preempted": 0}
    BBLAB {"kind": "call", "round": 0, "model": 2, "state": "warm", "wall_s": 0.0101, "cpu_s": 0.0101, "preempted": 0}
    ...                                    (speed, one visit a model; after the last round one more speed)
    BBLAB {"kind": "end", "rounds": 5}
    BBLAB {"kind": "error", "message": "...", "model": 2}   (instead of the rest, followed by an exit code other than 0;
                                                             `model` where one could not be loaded or warmed up)

Each on one line. `round` and `model` count from 0; `model` is the place in the request's list; `wall_s` is a steady
clock, `cpu_s` the process's CPU time over all threads, both in seconds; `preempted` is how often the system took the
core away during the call (getrusage, ru_nivcsw), null where it does not say. `speed` of round r is taken just before
round r, that of round `rounds` after the last. Lines may be written in a batch after each round, never during a call.
`ready` names the one core that the process is held to and the time slice that the scheduler granted it, null for none.

The request is one JSON line on standard input: {"wire": 2, "runtime", "threads", "warmups", "seed",
"models": [{"label", "path", "input": [1, 3, 255, 255]}], "orders": [[2, 0, 1], ...], "probe", "warm_calls", "fill_s",
"pace_s", "paced_calls", "cpus", "slice_s", "options"}. `orders` has one list of model places a round; a worker shuffles
nothing itself. The seed fills the inputs. A visit of a model in a round is

    one call, timed as `cold`, as other work came before it; calls that nobody times until `fill_s` have passed since
    that call began; `warm_calls` calls timed as `warm`; `paced_calls` calls timed as `paced`, each at the next beat
    of a camera of period `pace_s`, asleep in between

A process of one thread holds itself to the core it stands on when everything is loaded, and asks for time slices of
`slice_s` (Linux 6.12 and later). `cpus` are the cores it may use at all, empty for any.

`probe` says what is measured besides. "rounds": nothing. "layers": after its other calls each visit runs the model
`warm_calls` times with the clock on every operator: calls of the state `profiled`, and
    BBLAB {"kind": "layer", "round": 0, "model": 2, "call": 0, "place": 0, "name": "conv_12", "type": "Convolution",
           "wall_s": 0.000412, "module": "s8.0.point", "told_by": "name", "kernel": ""}
for each operator of such a call, `place` its turn from 0, `name` and `type` the engine's own, `wall_s` its time alone;
the last three may be left out. Taking them costs time, so profiled calls are not compared with others. "stages": see
`stageworker.py`, whose messages are `stage` and `note`. A worker that does not know a probe says `error`.

Other lines (a library that prints) are foreign: they are kept for the error message and otherwise passed over. A
tagged line that cannot be read is an error, never skipped: a lost sample is not a fast one. Keys that a reader does
not know are passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar, Union

from bblab.errors import RunError

TAG = "BBLAB "
VERSION = 2  # of this format
PROTOCOL = 2  # of measuring: what a visit of a model is. Numbers of two protocols are never compared.

COLD, WARM, PACED, PROFILED = "cold", "warm", "paced", "profiled"
STATES = (WARM, COLD, PACED)  # a net's latency is of one of these
WARM_CALLS, FILL_S, PACED_CALLS, SLICE_S = 3, 0.006, 3, 0.1


@dataclass(frozen=True, slots=True)
class Hello:
    kind: ClassVar[str] = "hello"
    runtime: str
    runtime_version: str
    precision: str
    speedometer: str
    wire: int = VERSION
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Ready:
    kind: ClassVar[str] = "ready"
    models: int
    cpu: int | None = None
    slice_s: float | None = None


@dataclass(frozen=True, slots=True)
class Speed:
    kind: ClassVar[str] = "speed"
    round: int
    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Call:
    kind: ClassVar[str] = "call"
    round: int
    model: int
    state: str
    wall_s: float
    cpu_s: float
    preempted: int | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    kind: ClassVar[str] = "layer"
    round: int
    model: int
    call: int
    place: int
    name: str
    type: str
    wall_s: float
    module: str = ""
    told_by: str = ""
    kernel: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a tracker's frame; `state` is "warm" for frames without a pause, "paced" at a camera's pace."""

    kind: ClassVar[str] = "stage"
    round: int
    state: str
    name: str
    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a probe's reader must know, such as the photo that it worked on."""

    kind: ClassVar[str] = "note"
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class End:
    kind: ClassVar[str] = "end"
    rounds: int


@dataclass(frozen=True, slots=True)
class Failure:
    kind: ClassVar[str] = "error"
    message: str
    model: int | None = None  # which one could not be loaded or run; None where it is not one model's fault


Message = Union[Hello, Ready, Speed, Call, Layer, Stage, Note, End, Failure]  # noqa: UP007  Pythons before 3.10
_KINDS: dict[str, type[Message]] = {
    cls.kind: cls for cls in (Hello, Ready, Speed, Call, Layer, Stage, Note, End, Failure)
}
# Annotations are strings here; the wire knows few types.
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "int | None": (int, type(None)),
    "float | None": (int, float, type(None)),
}


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model as the worker sees it: a path on its own device, and the batched input shape."""

    label: str
    path: str
    input: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Request:
    runtime: str
    threads: int
    warmups: int
    seed: int
    models: tuple[ModelFile, ...]
    orders: tuple[tuple[int, ...], ...]
    probe: str = "rounds"
    warm_calls: int = WARM_CALLS
    fill_s: float = FILL_S
    pace_s: float = 0.0  # from a paced call to the next
    paced_calls: int = 0
    cpus: tuple[int, ...] = ()
    slice_s: float = SLICE_S
    options: Mapping[str, Any] = field(default_factory=dict)  # JSON: a probe's own affair
    wire: int = VERSION

    @property
    def rounds(self) -> int:
        return len(self.orders)

    @property
    def visit(self) -> tuple[str, ...]:
        """The states of the calls that are timed in one visit of a model, in order."""
        profiled = (PROFILED,) * self.warm_calls if self.probe == "layers" else ()
        return (COLD, *(WARM,) * self.warm_calls, *(PACED,) * self.paced_calls, *profiled)


class WireError(RunError):
    """A tagged line that does not say what it should."""


def encode(message: Message) -> str:
    return TAG + json.dumps({"kind": message.kind, **asdict(message)}, allow_nan=False)


def parse(line: str) -> Message | None:
    """The message of a line; None for a foreign line. Raises WireError on a broken one.

    The tag may stand after other text: a library that prints without a newline glues its words to ours.
    """
    at = line.find(TAG + "{")
    if at < 0:
        if line.startswith(TAG.strip()):
            raise _broken(line, "no JSON object follows the tag")
        return None
    try:
        record = json.loads(line[at + len(TAG) :])
    except ValueError:
        raise _broken(line, "the line is cut off or is not JSON") from None
    cls = _KINDS.get(record.pop("kind", None))
    if cls is None:
        raise _broken(line, f"its kind is none of {', '.join(sorted(_KINDS))}")
    if cls is Hello:
        check_protocol(record, str(record.get("runtime", "this runtime")))
    return cls(**_checked(cls, record, line))


def check_protocol(record: Mapping[str, Any], program: str) -> None:
    """Raises WireError, in words, where a worker or runner says that it is of another protocol than this bblab."""
    told = (record.get("wire"), record.get("protocol", record.get("wire")))
    if told != (VERSION, PROTOCOL):
        raise WireError(
            f"the worker of {program} measures by protocol {told[1]} (wire {told[0]}), "
            f"this bblab by protocol {PROTOCOL} (wire {VERSION}): their numbers cannot be compared",
            hint="build it again: bblab runner build (without BBLAB_RUNNER_..., which names one of your own)",
        )


def _checked(cls: type[Message], record: Mapping[str, Any], line: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for each in fields(cls):
        if each.name not in record:
            if each.default is MISSING:
                raise _broken(line, f"{cls.kind!r} without {each.name!r}")
            continue
        value = record[each.name]
        if not isinstance(value, _TYPES[str(each.type)]) or isinstance(value, bool):
            raise _broken(line, f"{each.name!r} is {value!r}, not {each.type}")
        if isinstance(value, (int, float)) and (not math.isfinite(value) or value < 0):
            raise _broken(line, f"{each.name!r} is {value!r}")
        values[each.name] = value
    return values


def _broken(line: str, why: str) -> WireError:
    shown = line.strip() if len(line) < 200 else line.strip()[:200] + " ..."
    return WireError(
        f"the worker's line cannot be read: {why}\n  {shown}",
        hint="the worker was probably cut off, or is of another bblab version; run it again",
    )


def encode_request(request: Request) -> str:
    return json.dumps(asdict(request), allow_nan=False)


def parse_request(line: str) -> Request:
    """Raises WireError where the request is cut off or of another version."""
    try:
        record = json.loads(line)
        if record["wire"] != VERSION:
            raise _broken(line, f"the request is of version {record['wire']}, this worker speaks version {VERSION}")
        record["models"] = tuple(ModelFile(m["label"], m["path"], tuple(m["input"])) for m in record["models"])
        record["orders"] = tuple(tuple(order) for order in record["orders"])
        record["cpus"] = tuple(record["cpus"])
        request = Request(**{each.name: record[each.name] for each in fields(Request)})
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(line, f"not a request ({type(error).__name__}: {error})") from None
    if any(sorted(order) != list(range(len(request.models))) for order in request.orders):
        raise _broken(line, "a round must run every model once")
    return request
