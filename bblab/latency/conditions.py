"""The state of the machine, as far as it can be read without root. Everything is optional; absences are named.

Sources: proc(5), sysfs cpufreq and thermal, PSI (kernel documentation, accounting/psi), cgroup v1 and v2.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any


def read(root: Path = Path("/")) -> dict[str, Any]:
    """A record of now. `root` stands for / so that a test, or a copy of another machine's files, can be read."""
    record: dict[str, Any] = {}
    absent: list[str] = []
    for name, reader in _READERS.items():
        try:
            value = reader(root)
        except (OSError, ValueError, IndexError, KeyError, AttributeError, subprocess.SubprocessError):
            value = None
        if value is None or value == {} or value == []:
            absent.append(name)
        else:
            record[name] = value
    record["absent"] = absent
    return record


def steal_share(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """Share of the machine's CPU time that the hypervisor took in between; None where it cannot be read."""
    old, new = before.get("cpu_ticks"), after.get("cpu_ticks")
    if not old or not new or new["total"] <= old["total"]:
        return None
    return float((new["steal"] - old["steal"]) / (new["total"] - old["total"]))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _time(root: Path) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _os(root: Path) -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _python(root: Path) -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"


def _packages(root: Path) -> dict[str, str]:
    return dict(_installed())


@cache  # what is imported already does not change its version
def _installed() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "onnx", "onnxruntime", "ncnn", "pnnx", "openvino", "numpy", "bblab"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model(root: Path) -> str | None:
    try:
        for line in _text(root / "proc/cpuinfo").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Hardware", "Processor"):
                return value.strip()
    except OSError:
        if platform.system() == "Darwin":
            return _sysctl("machdep.cpu.brand_string")
        raise
    return None


def _sysctl(name: str) -> str:
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=True, timeout=5)
    return done.stdout.strip()


def _cores(root: Path) -> int | None:
    return os.cpu_count()


def _affinity(root: Path) -> list[int]:
    return sorted(os.sched_getaffinity(0))  # AttributeError on macOS: absent there


def _memory_bytes(root: Path) -> dict[str, int]:
    try:
        lines = dict(line.split(":", 1) for line in _text(root / "proc/meminfo").splitlines())
        wanted = {"total": "MemTotal", "available": "MemAvailable", "swap_free": "SwapFree"}
        return {ours: int(lines[theirs].split()[0]) * 1024 for ours, theirs in wanted.items() if theirs in lines}
    except OSError:
        if platform.system() == "Darwin":
            return {"total": int(_sysctl("hw.memsize"))}
        raise


def _load_average(root: Path) -> list[float]:
    try:
        return [float(x) for x in _text(root / "proc/loadavg").split()[:3]]
    except OSError:
        return list(os.getloadavg())


def _running_tasks(root: Path) -> int:
    return int(_text(root / "proc/loadavg").split()[3].split("/")[0])


def _pressure(root: Path) -> dict[str, dict[str, float]]:
    """Share of time (%, over 10 s) in which some task waited for CPU, memory or I/O, and the total in microseconds."""
    found = {}
    for kind in ("cpu", "memory", "io"):
        try:
            line = _text(root / "proc/pressure" / kind).splitlines()[0]
        except OSError:
            continue
        values = dict(part.split("=") for part in line.split()[1:])
        found[kind] = {"some_avg10_percent": float(values["avg10"]), "some_total_us": float(values["total"])}
    return found


def _cpu_ticks(root: Path) -> dict[str, int]:
    """Since boot, all cores: how much ran, idled and was taken by the hypervisor (steal)."""
    ticks = [int(x) for x in _text(root / "proc/stat").splitlines()[0].split()[1:9]]
    return {"total": sum(ticks), "idle": ticks[3] + ticks[4], "steal": ticks[7]}


def _per_cpu(root: Path, name: str) -> list[str]:
    folder = root / "sys/devices/system/cpu"
    cpus = sorted(folder.glob("cpu[0-9]*"), key=lambda p: int(p.name[3:]))
    return [_text(cpu / name) for cpu in cpus if (cpu / name).is_file()]


def _governor(root: Path) -> list[str]:
    return sorted(set(_per_cpu(root, "cpufreq/scaling_governor")))


def _frequencies_hz(root: Path) -> dict[str, list[int]]:
    names = {"now": "scaling_cur_freq", "max_allowed": "scaling_max_freq", "max": "cpuinfo_max_freq"}
    found = {ours: [int(x) * 1000 for x in _per_cpu(root, f"cpufreq/{theirs}")] for ours, theirs in names.items()}
    return {name: values for name, values in found.items() if values}


def _cpu_capacity(root: Path) -> list[int]:
    return [int(x) for x in _per_cpu(root, "cpu_capacity")]


def _thermal_c(root: Path) -> dict[str, float]:
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        try:
            found[f"{zone.name}:{_text(zone / 'type')}"] = int(_text(zone / "temp")) / 1000
        except (OSError, ValueError):
            continue
    return found


def _cpu_quota(root: Path) -> dict[str, float | str]:
    """A container's share: cores it may use, or "none", and how long it has been throttled."""
    group = root / "sys/fs/cgroup"
    if (group / "cpu.max").is_file():
        quota, period = _text(group / "cpu.max").split()
        cores: float | str = "none" if quota == "max" else int(quota) / int(period)
    else:
        quota = _text(group / "cpu/cpu.cfs_quota_us")
        cores = "none" if int(quota) < 0 else int(quota) / int(_text(group / "cpu/cpu.cfs_period_us"))
    found: dict[str, float | str] = {"cores": cores}
    try:
        folder = group if (group / "cpu.stat").is_file() else group / "cpu"
        stat = dict(line.split() for line in _text(folder / "cpu.stat").splitlines())
        if "throttled_usec" in stat:
            found["throttled_s"] = int(stat["throttled_usec"]) / 1e6
        elif "throttled_time" in stat:
            found["throttled_s"] = int(stat["throttled_time"]) / 1e9
    except (OSError, ValueError):
        pass  # the quota alone is worth having
    return found


_READERS: dict[str, Callable[[Path], Any]] = {
    "time_utc": _time,
    "os": _os,
    "python": _python,
    "packages": _packages,
    "cpu_model": _cpu_model,
    "cores": _cores,
    "affinity": _affinity,
    "memory_bytes": _memory_bytes,
    "load_average": _load_average,
    "running_tasks": _running_tasks,
    "pressure": _pressure,
    "cpu_ticks": _cpu_ticks,
    "governor": _governor,
    "frequencies_hz": _frequencies_hz,
    "cpu_capacity": _cpu_capacity,
    "thermal_c": _thermal_c,
    "cpu_quota": _cpu_quota,
}
