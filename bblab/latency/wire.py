"""What a worker says: one tagged JSON line a message, so that a C++ runner on a phone can say it too.

    BBLAB {"kind": "hello", "wire": 1, "runtime": "ort", "runtime_version": "1.32.0", "precision": "float32",
           "speedometer": "python-xorshift64-15000"}
    BBLAB {"kind": "ready", "models": 3}
    BBLAB {"kind": "speed", "round": 0, "wall_s": 0.0031, "cpu_s": 0.0031}
    BBLAB {"kind": "call", "round": 0, "model": 2, "wall_s": 0.0123, "cpu_s": 0.0122}
    ...                                    (speed, one call a model; after the last round one more speed)
    BBLAB {"kind": "layer", "round": 0, "model": 2, "place": 0, "name": "conv_12", "type": "Convolution",
           "wall_s": 0.000412}             (only where the request has per_layer: after each call, its layers)
    BBLAB {"kind": "end", "rounds": 5}
    BBLAB {"kind": "error", "message": "..."}      (instead of the rest, followed by an exit code other than 0)

Each on one line. `round` and `model` count from 0; `model` is the place in the request's list; `wall_s` is a steady
clock, `cpu_s` the process's CPU time over all threads, both in seconds. `speed` of round r is taken just before
round r, that of round `rounds` after the last. Lines may be written in a batch after each round, never during a call.

The request is one JSON line on standard input: {"wire": 1, "runtime", "threads", "warmups", "seed",
"models": [{"label", "path", "input": [1, 3, 255, 255]}], "orders": [[2, 0, 1], ...]}: one list of model places a
round, and "pace_s", the least time from the start of one call to the start of the next (0: back to back), spent
asleep and outside every time. The seed fills the inputs. A worker shuffles nothing itself: it does as it is told.
`"per_layer": true` asks for the times of layers; a worker that cannot tell them says `error`.

A `layer` is one that ran during the call before it, `place` its turn from 0, `name` and `type` the engine's own,
`wall_s` its time alone, without the layers it waited for: over a call they sum to less than the call. Taking them
costs time, so calls with layers are not compared with calls without. The runner adds `output`, the layer's map as
[C, H, W], empty where it has several inputs. Keys that a reader does not know are passed over.

Other lines (a library that prints) are foreign: they are kept for the error message and otherwise passed over. A
tagged line that cannot be read is an error, never skipped: a lost sample is not a fast one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Union

from bblab.errors import RunError

TAG = "BBLAB "
VERSION = 1


@dataclass(frozen=True, slots=True)
class Hello:
    kind: ClassVar[str] = "hello"
    runtime: str
    runtime_version: str
    precision: str
    speedometer: str
    wire: int = VERSION


@dataclass(frozen=True, slots=True)
class Ready:
    kind: ClassVar[str] = "ready"
    models: int


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
    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Layer:
    kind: ClassVar[str] = "layer"
    round: int
    model: int
    place: int
    name: str
    type: str
    wall_s: float


@dataclass(frozen=True, slots=True)
class End:
    kind: ClassVar[str] = "end"
    rounds: int


@dataclass(frozen=True, slots=True)
class Failure:
    kind: ClassVar[str] = "error"
    message: str


Message = Union[Hello, Ready, Speed, Call, Layer, End, Failure]  # noqa: UP007  read by Pythons before 3.10 on boards
_KINDS: dict[str, type[Message]] = {cls.kind: cls for cls in (Hello, Ready, Speed, Call, Layer, End, Failure)}


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
    pace_s: float = 0.0  # least time from the start of a call to the start of the next
    per_layer: bool = False
    wire: int = VERSION

    @property
    def rounds(self) -> int:
        return len(self.orders)


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
    return cls(**_checked(cls, record, line))


def _checked(cls: type[Message], record: Mapping[str, Any], line: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in fields(cls):
        if field.name not in record:
            raise _broken(line, f"{cls.kind!r} without {field.name!r}")
        value = record[field.name]
        # Annotations are strings here; the wire knows three types.
        wanted: tuple[type, ...] = {"int": (int,), "float": (int, float), "str": (str,)}[str(field.type)]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise _broken(line, f"{field.name!r} is {value!r}, not {field.type}")
        if isinstance(value, (int, float)) and (not math.isfinite(value) or value < 0):
            raise _broken(line, f"{field.name!r} is {value!r}")
        values[field.name] = value
    if cls is Hello and values["wire"] != VERSION:
        raise _broken(line, f"the worker speaks version {values['wire']} of this format, bblab version {VERSION}")
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
        models = tuple(ModelFile(m["label"], m["path"], tuple(m["input"])) for m in record["models"])
        orders = tuple(tuple(order) for order in record["orders"])
        request = Request(
            record["runtime"],
            record["threads"],
            record["warmups"],
            record["seed"],
            models,
            orders,
            record["pace_s"],
            bool(record.get("per_layer", False)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(line, f"not a request ({type(error).__name__}: {error})") from None
    if any(sorted(order) != list(range(len(models))) for order in orders):
        raise _broken(line, "a round must run every model once")
    return request
