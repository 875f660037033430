"""Devices: where a worker runs. One file each; a file that calls `@DEVICES("kind")` is found by being here.

A device is named `kind` or `kind:address` ("host", later "ssh:pi@board", "adb:SERIAL").
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from bblab.catalogue import Catalogue
from bblab.errors import BblabError
from bblab.latency import wire


class Device(Protocol):
    """Open it with `with`: what was copied to the device is gone afterwards."""

    name: str

    def __enter__(self) -> Device: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def send(self, path: Path) -> str:
        """Bring a model file to the device; the answer is its path there."""

    def conditions(self) -> dict[str, Any]:
        """The state of the device now; what cannot be read is listed under "absent"."""

    def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
        """One worker process from start to end. Closing the generator ends the process.

        Raises RunError, with the worker's last words, if it crashes, says nothing for `silence_s` or speaks nonsense.
        """


DEVICES: Catalogue[Callable[[str], Device]] = Catalogue("device")


def find(name: str) -> Device:
    """The device of that name, not yet opened. Raises BblabError, naming the near ones, for an unknown kind."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    kind, _, address = name.partition(":")
    if not kind:
        raise BblabError(f"no device {name!r}", hint="known: " + ", ".join(DEVICES))
    return DEVICES[kind](address)
