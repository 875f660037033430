"""What the benchmarks share: which machine this is, and how a bar is judged."""

import importlib.metadata
import os
import platform
from pathlib import Path


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


def judge(bars: dict[str, bool]) -> int:
    """Print each bar as met or missed; the exit code."""
    for text, is_met in bars.items():
        print(f"{'met   ' if is_met else 'MISSED'}  {text}")
    return 0 if all(bars.values()) else 1
