"""Runtimes: what executes a model. One file each; a file that calls `@RUNTIMES("name")` is found by being here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bblab.catalogue import Catalogue
from bblab.errors import BblabError
from bblab.installing import how_to_install

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


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """One operator as the runtime runs it, after its fusions: seconds (wall) of each call so far.

    `module` is the path of the torch module that it came from ("s8.0.point.conv"), "" where nobody can say; `told_by`
    says how it is known: "name" (its own), "output" (the tensor that it writes) or "neighbour" (it moves or reshapes
    that one's data). `kernel` is the implementation chosen, where the runtime tells.
    """

    name: str
    op: str
    module: str
    told_by: str
    seconds: tuple[float, ...]
    kernel: str = ""


class Profiled(Protocol):
    """A model whose every run is timed operator by operator."""

    def run(self, x: np.ndarray) -> Sequence[np.ndarray]: ...

    def layers(self) -> Sequence[LayerTimes]:
        """What the runs so far took, in the order of execution. Ends the profile: no run may follow."""

    def overhead_s(self) -> float:
        """What being timed adds to each operator's own figure; 0 where it adds nothing or nobody knows."""


class Runtime(Protocol):
    """Files of this sort import neither torch nor their engine at the top: the worker must stay free of torch.

    A runtime that needs torch in the worker says `uses_torch = True`; one that computes elsewhere than on the CPU says
    so with `processor = "cuda"`, and is then compared by paired wall time (CPU time would be that of waiting).
    One that can time its operators has `profiled(path, threads) -> Profiled`.
    One that is a program of its own, speaking the wire, has `program(arch) -> tuple[str, ...]`: its
    path here, made for that architecture (empty: this one's), then its arguments. A device runs it in the place of
    bblab's worker.
    One that is less exact than float32 says how far its outputs may be off torch's with `max_rel_error`.
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


def can_profile(runtime: Runtime) -> bool:
    return hasattr(runtime, "profiled")


def refuse_silent(runtime: Runtime) -> None:
    """Raises BblabError, naming those that can, for a runtime whose operators this worker cannot time."""
    if not can_profile(runtime):
        able = [name for name in names() if hasattr(RUNTIMES[name], "profiled")]
        raise BblabError(
            f"{runtime.name} does not tell the times of its operators", hint="these do: " + ", ".join(able)
        )


def profiled(runtime: Runtime, path: str, threads: int) -> Profiled:
    """The model, ready to be timed operator by operator. Raises BblabError where the runtime cannot."""
    refuse_silent(runtime)
    made: Profiled = runtime.profiled(path, threads)  # type: ignore[attr-defined]  # an optional method
    return made


def program(runtime: str, arch: str = "") -> tuple[str, ...]:
    """The command that is this runtime on a machine of that architecture; empty for one in bblab's own worker.

    Raises BblabError, with the command that makes it, where the program is not there yet.
    """
    own = getattr(find(runtime), "program", None) if runtime in names() else None
    return tuple(own(arch)) if own else ()


def module_path(scope: str) -> str:
    """The torch module of a scoped ONNX name: "/s8/s8.0/point/Conv_output_0" is "s8.0.point.Conv_output_0".

    The exporter names a container and then its member in full; the last word is the operation.
    """
    path: list[str] = []
    for part in scope.removeprefix("fused ").strip("/").split("/"):
        if path and part.startswith(path[-1] + "."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)


def uses_torch(runtime: Runtime) -> bool:
    return bool(getattr(runtime, "uses_torch", False))


def processor(runtime: Runtime) -> str:
    """What computes: "cpu" or "cuda"."""
    return str(getattr(runtime, "processor", "cpu"))


@cache
def package_version(package: str) -> str | None:
    """None where it is not installed. Read once: every look parses the package's whole description (8 ms of CPU)."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def installed(runtime: str, *packages: str) -> str:
    """The version of the first of these packages that is there. Raises BblabError with the command that installs it."""
    for package in packages:
        if found := package_version(package):
            return found
    raise BblabError(
        f"the runtime {runtime!r} needs {packages[0]}, which is not installed",
        hint=how_to_install(packages[0]),
        exit_code=1,
    )
