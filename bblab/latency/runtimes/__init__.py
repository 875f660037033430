"""Runtimes: what executes a model. One file each; a file that calls `@RUNTIMES("name")` is found by being here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bblab.catalogue import Catalogue
from bblab.errors import BblabError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


class Loaded(Protocol):
    """A model ready to run, in the worker."""

    def run(self, x: np.ndarray) -> Sequence[np.ndarray]:
        """One inference: float32 B, C, H, W in, all outputs out, in the order of the module's.

        A model on an accelerator may also have `seconds() -> float`: how long the last run took on the accelerator's
        own clock, which then takes the place of wall time.
        """


class Runtime(Protocol):
    """Files of this sort import neither torch nor their engine at the top: the worker must stay free of torch.

    A runtime that needs torch in the worker says `uses_torch = True`; one that computes elsewhere than on the CPU says
    so with `processor = "cuda"`, and is then compared by paired wall time (CPU time would be that of waiting).
    """

    name: str
    suffix: str  # of its model files, with the dot
    precision: str  # actually computed with, such as "float32"
    pip: str  # what to install where it is missing

    def version(self) -> str:
        """The engine's own version. Raises BblabError with the install command where it is missing."""

    def settings(self) -> str:
        """Whatever else decides what `convert` writes (exporter, opset): part of the cache key."""

    def convert(self, module: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
        """Write the eval-mode module as a model file; `input_shape` includes the batch."""

    def load(self, path: str, threads: int) -> Loaded: ...


RUNTIMES: Catalogue[Callable[[], Runtime]] = Catalogue("runtime")


def find(name: str) -> Runtime:
    """Raises BblabError, naming the near ones, for an unknown runtime."""
    names()
    return RUNTIMES[name]()


def names() -> list[str]:
    """Every runtime that there is a file for, installed or not."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return list(RUNTIMES)


def uses_torch(runtime: Runtime) -> bool:
    return bool(getattr(runtime, "uses_torch", False))


def processor(runtime: Runtime) -> str:
    """What computes: "cpu" or "cuda"."""
    return str(getattr(runtime, "processor", "cpu"))


def installed(runtime: str, *packages: str) -> str:
    """The version of the first of these packages that is there. Raises BblabError with the command that installs it."""
    from importlib.metadata import PackageNotFoundError, version

    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    raise BblabError(
        f"the runtime {runtime!r} needs {packages[0]}, which is not installed",
        hint=f"pip install {packages[0]}",
        exit_code=1,
    )
