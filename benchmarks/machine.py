"""What the benchmarks share: which machine this is, other work on it, and how a bar is judged."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Bursts of 50 ms and pauses of 30 ms: a neighbour that comes and goes, as real ones do.
_LOOP = """
import time
while True:
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        pass
    time.sleep(0.03)
"""


def describe(*packages: str) -> str:
    """The machine, its load and the versions that a number was taken with."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("bblab", *packages))
    return f"{model}, {os.cpu_count()} cores{load}; Python {platform.python_version()}, {versions}"


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many busy loops beside what is measured; ended however the block ends."""
    loops = [subprocess.Popen([sys.executable, "-c", _LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def judge(bars: dict[str, bool]) -> int:
    """Print each bar as met or missed; the exit code."""
    for text, is_met in bars.items():
        print(f"{'met   ' if is_met else 'MISSED'}  {text}")
    return 0 if all(bars.values()) else 1
