"""Every test has a lab of its own and shares one cache: nothing of the person who runs the tests is read or written."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

# A shell that runs the tests in the background has Ctrl-C ignored, which every child would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """BBLAB_CACHE for the whole session: what one test recorded the others remember."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("BBLAB_CACHE", str(folder))
        patch.setenv("BBLAB_LAB", str(tmp_path_factory.mktemp("lab")))
        # Another's measurement on this machine is no affair of the tests.
        locks = tmp_path_factory.mktemp("locks")
        patch.setattr("bblab.latency.devices.lock.folder", lambda: locks)
        patch.setenv("TMPDIR", str(locks))  # for those that are processes of their own
        yield folder


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """BBLAB_LAB for this test: an empty folder."""
    folder = tmp_path / "lab"
    folder.mkdir()
    monkeypatch.setenv("BBLAB_LAB", str(folder))
    return folder


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def bblab(lab: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command in this process, in this test's lab. An exception that it lets through fails the test."""
    from bblab.cli import main

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        code = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ran(code, out, err)

    return run


@pytest.fixture
def spec_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a spec and give its path."""

    def write(text: str | bytes, name: str = "net") -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write
