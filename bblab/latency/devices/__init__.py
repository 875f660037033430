"""Devices: where a worker runs. One file each; a file that calls `@DEVICES("kind")` is found by being here.

A device is named `kind` or `kind:address`: "host", "ssh:pi@board", "adb:SERIAL".
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from bblab.catalogue import Catalogue
from bblab.errors import BblabError, near
from bblab.latency import wire

Tell = Callable[[str], None]  # what is going on, for a progress bar


class Device(Protocol):
    """Open it with `with`, as often as you like: what was copied to the device is gone afterwards.

    Three more methods are optional (`prepare`, `settle` and `notes` below call them where they are there):
    `prepare(runtime)` raises BblabError where the open device cannot run that runtime, before anything is converted;
    `settle(runtime, threads, tell)` waits until the device is fit for the next worker (a phone cools down), telling
    what it waits for; `notes` is a list of what the reader of the numbers must know.
    """

    name: str
    waits: bool  # for another measurement on the device to end, instead of refusing

    def __enter__(self) -> Device: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def send(self, path: Path) -> str:
        """Bring a model file to the device; the answer is its path there."""

    def conditions(self) -> dict[str, Any]:
        """The state of the device now; what cannot be read is listed under "absent". Does not raise."""

    def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
        """One worker process from start to end. Closing the generator ends the process.

        Raises RunError, with the worker's last words, if it crashes, says nothing for `silence_s` or speaks nonsense.
        """


DEVICES: Catalogue[Callable[..., Device]] = Catalogue("device")


def find(name: str, options: Mapping[str, Any] | None = None, *, known: Sequence[str] = ()) -> Device:
    """The device of that name, not yet opened; `options` are the keyword arguments that its kind takes.

    Raises BblabError, naming the near ones (`known` are names besides the kinds), for an unknown kind or option.
    """
    choice = kinds()
    kind, _, address = name.partition(":")
    if kind not in DEVICES:
        raise BblabError(f"no device {name!r}", hint=near(kind, [*choice, *known]))
    make = DEVICES[kind]
    taken = _options(kind)
    unknown = sorted(set(options or {}) - set(taken))
    if unknown:
        listed = near(unknown[0], taken) if taken else f"a device {kind!r} has none"
        raise BblabError(f"device {name}: no option {unknown[0]!r}", hint=listed)
    for option, value in (options or {}).items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not isinstance(value, str) if taken[option] == "str" else not is_number:
            wanted = "text, in quotes" if taken[option] == "str" else "a number"
            raise BblabError(f"device {name}: {option} is {value!r}", hint=f"it should be {wanted}")
    return make(address, **(options or {}))


def kinds() -> list[str]:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return list(DEVICES)


def _options(kind: str) -> dict[str, str]:
    """The keyword arguments of a kind of device that a lab.toml may give, and their types ("str", "float")."""
    parameters = inspect.signature(DEVICES[kind]).parameters.values()
    own = ("command", "link")  # for tests, no affair of a settings file
    return {p.name: str(p.annotation) for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in own}


# Optional methods -----------------------------------------------------------------------------------------------


def prepare(device: Device, runtime: str) -> None:
    """Raises BblabError where the open device cannot run this runtime."""
    if own := getattr(device, "prepare", None):
        own(runtime)


def settle(device: Device, runtime: str, threads: int, tell: Tell) -> None:
    """Wait until the device is fit to be measured."""
    if own := getattr(device, "settle", None):
        own(runtime, threads, tell)


def notes(device: Device) -> tuple[str, ...]:
    """What the reader of numbers from this device must know."""
    return tuple(getattr(device, "notes", ()))
