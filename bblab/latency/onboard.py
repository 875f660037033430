"""What a pushed worker starts with: `python3 worker.zip` works, `python3 worker.zip about` says what could work here.

Runs on boards with Pythons older than bblab's own (3.9 and later): keep it and what it imports free of newer syntax.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import sys


def _allow_slots() -> None:
    """Python before 3.10 knows no slots=True; without it a dataclass is the same, only larger."""
    original = dataclasses.dataclass

    def dataclass(cls=None, *, slots=False, **options):
        return original(cls, **options)

    dataclasses.dataclass = dataclass


def may_have_gpu() -> bool:
    """Whether an NVIDIA driver shows itself, a Jetson's too. Asking the runtimes instead would load torch."""
    places = ("/dev/nvidiactl", "/dev/nvhost-ctrl-gpu", "/dev/nvhost-gpu", "/dev/nvmap")
    return any(os.path.exists(place) for place in places) or shutil.which("nvidia-smi") is not None  # noqa: PTH110


def about() -> dict[str, object]:
    """Python's version, numpy's, and each runtime's version or the reason why it is none here."""
    from importlib.metadata import PackageNotFoundError, version

    from bblab.errors import BblabError
    from bblab.latency import runtimes

    found: dict[str, object] = {}
    missing: dict[str, str] = {}
    has_gpu = may_have_gpu()
    for name in runtimes.names():
        engine = runtimes.find(name)
        if runtimes.processor(engine) == "cuda" and not has_gpu:
            missing[name] = f"the runtime {name!r} needs an NVIDIA GPU; no driver of one is there"
            continue
        try:
            found[name] = engine.version()
        except BblabError as error:
            missing[name] = f"{error.message} ({error.hint})" if error.hint else error.message
        except Exception as error:  # a broken installation: any of them
            missing[name] = f"{type(error).__name__}: {error}"
    try:
        numpy: str | None = version("numpy")
    except PackageNotFoundError:
        numpy = None
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "numpy": numpy,
        "runtimes": found,
        "missing": missing,
    }


def main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036  on a board
        _allow_slots()
    if sys.argv[1:] == ["about"]:
        print("BBLAB-ABOUT " + json.dumps(about()))
        return
    import runpy

    runpy.run_module("bblab.latency.worker", run_name="__main__")
