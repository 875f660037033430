"""What a pushed worker starts with: `python3 worker.zip` works, `python3 worker.zip about` says what could work here.

Runs on boards with Pythons older than bblab's own (3.9 and later): keep it and what it imports free of newer syntax.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys


def _allow_slots() -> None:
    """Python before 3.10 knows no slots=True; without it a dataclass is the same, only larger."""
    original = dataclasses.dataclass

    def dataclass(cls=None, *, slots=False, **options):
        return original(cls, **options)

    dataclasses.dataclass = dataclass


def about() -> dict[str, object]:
    """Python's version, numpy's, and each runtime's version or the reason why it is none here."""
    from importlib.metadata import PackageNotFoundError, version

    from bblab.errors import BblabError
    from bblab.latency import runtimes

    found: dict[str, object] = {}
    missing: dict[str, str] = {}
    for name in runtimes.names():
        try:
            found[name] = runtimes.find(name).version()
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
