"""The state of a device that is reached by a shell, in the form that `conditions.read` gives it for the host.

One command prints every file as `path:line` (one process: a fork for each of hundreds of sysfs files would warm a
phone); what it printed is laid out in a scratch folder and read by the host's own readers. Sources of what Android
adds: `dumpsys thermalservice` (frameworks/base, ThermalManagerService), `dumpsys battery` (BatteryService).
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bblab.latency import conditions
from bblab.latency.devices.cores import Cluster, clusters, parse_cpu_list

_CPU = "/sys/devices/system/cpu"
FILES = (
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/stat",
    "/proc/self/status",
    "/proc/pressure/cpu",
    "/proc/pressure/memory",
    "/proc/pressure/io",
    f"{_CPU}/online",
    *(
        f"{_CPU}/cpu[0-9]*/cpufreq/{name}"
        for name in ("scaling_governor", "scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq")
    ),
    f"{_CPU}/cpu[0-9]*/cpu_capacity",
    "/sys/class/thermal/thermal_zone*/type",
    "/sys/class/thermal/thermal_zone*/temp",
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/cpu.stat",
)
KERNEL = "#bblab-kernel "
# /dev/null lets grep name its files even where only one pattern matches; -s passes over what may not be read.
COMMAND = f"grep -s '' {' '.join(FILES)} /dev/null | grep -v '^/proc/stat:intr'; echo \"{KERNEL}$(uname -srm)\""

# Of the machine that runs bblab, not of the one asked.
_OURS = ("os", "python", "packages", "cores", "affinity")
_FALLS_BACK = {"load_average": "/proc/loadavg", "cpu_model": "/proc/cpuinfo", "memory_bytes": "/proc/meminfo"}


def parse_files(text: str) -> dict[str, str]:
    """`path:line` lines as {path: content}; other lines are passed over."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        path, colon, content = line.partition(":")
        if colon and path.startswith(("/proc/", "/sys/")):
            found.setdefault(path, []).append(content)
    return {path: "\n".join(lines) for path, lines in found.items()}


def record(text: str) -> dict[str, Any]:
    """What COMMAND printed, as a condition record; what it did not print is under "absent"."""
    files = parse_files(text)
    with tempfile.TemporaryDirectory(prefix="bblab-state-") as folder:
        root = Path(folder)
        for path, content in files.items():
            if ".." in path:
                continue
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content + "\n", encoding="utf-8")
        found = conditions.read(root)
    for name in _OURS:
        found.pop(name, None)
    for name, path in _FALLS_BACK.items():
        if path not in files and found.pop(name, None) is not None:
            found["absent"].append(name)
    kernel = [line[len(KERNEL) :] for line in text.splitlines() if line.startswith(KERNEL)]
    if kernel:
        found["os"] = kernel[-1].strip()
    groups = topology(files)
    online = sorted(cpu for group in groups for cpu in group.cpus)
    if online:
        found["cores"] = len(online)
    allowed = re.search(r"^Cpus_allowed_list:\s*(\S+)", files.get("/proc/self/status", ""), re.M)
    if allowed:
        found["affinity"] = parse_cpu_list(allowed.group(1))
    found["absent"] = sorted({*found["absent"], *(n for n in ("os", "cores", "affinity") if n not in found)})
    return found


def topology(files: Mapping[str, str]) -> tuple[Cluster, ...]:
    """Clusters of the online cores, biggest first; empty where not even their number can be read."""
    max_hz, capacity = {}, {}
    for path, content in files.items():
        at = re.fullmatch(rf"{_CPU}/cpu(\d+)/(cpufreq/cpuinfo_max_freq|cpu_capacity)", path)
        if at and content.strip().isdigit():
            if at.group(2) == "cpu_capacity":
                capacity[int(at.group(1))] = int(content)
            else:
                max_hz[int(at.group(1))] = int(content) * 1000
    online = parse_cpu_list(files.get(f"{_CPU}/online", ""))
    if not online:
        stat = re.findall(r"^cpu(\d+) ", files.get("/proc/stat", ""), re.M)
        online = [int(n) for n in stat] or sorted({*max_hz, *capacity})
    return clusters(max_hz, capacity, online)


# Android --------------------------------------------------------------------------------------------------------

PROPERTIES = {
    "manufacturer": "ro.product.manufacturer",
    "model": "ro.product.model",
    "soc_manufacturer": "ro.soc.manufacturer",
    "soc_model": "ro.soc.model",
    "platform": "ro.board.platform",
    "hardware": "ro.hardware",
    "abi": "ro.product.cpu.abi",
    "android": "ro.build.version.release",
    "sdk": "ro.build.version.sdk",
    "fingerprint": "ro.build.fingerprint",
}
THERMAL_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")  # android.os.PowerManager


def properties(text: str) -> dict[str, str]:
    """What `getprop` prints (`[key]: [value]`), those of PROPERTIES that are set."""
    given = dict(re.findall(r"^\[([^\]]+)\]: \[(.*?)\]\r?$", text, re.M))
    return {ours: given[theirs] for ours, theirs in PROPERTIES.items() if given.get(theirs)}


def thermal(text: str) -> dict[str, Any]:
    """`dumpsys thermalservice`: status 0 to 6, and temperatures by name. Empty where the phone has no such service.

    Temperatures are of the HAL where the dump has them, else the cached ones; 0.0 is no reading.
    """
    found: dict[str, Any] = {}
    status = re.search(r"^\s*Thermal Status:\s*(\d+)", text, re.M)
    if status:
        found["status"] = int(status.group(1))
    _, current, rest = text.partition("Current temperatures from HAL:")
    part = rest.partition("Current cooling devices")[0] if current else text.partition("Current cooling devices")[0]
    temperatures = {}
    for value, name in re.findall(r"Temperature\{mValue=([-\d.]+),[^}]*?mName=([^,}]+)", part):
        if float(value) != 0.0:
            temperatures[name.strip()] = float(value)
    if temperatures:
        found["temperatures_c"] = temperatures
    return found


def battery(text: str) -> dict[str, Any]:
    """`dumpsys battery`: level in percent, temperature in degrees (the service says tenths), what charges it."""
    values = dict(re.findall(r"^\s+([A-Za-z ]+): (\S+)\s*$", text, re.M))
    found: dict[str, Any] = {}
    if values.get("level", "").isdigit():
        found["level_percent"] = int(values["level"])
    if re.fullmatch(r"-?\d+", values.get("temperature", "")):
        found["temperature_c"] = int(values["temperature"]) / 10
    plugs = [n for n in ("AC", "USB", "Wireless", "Dock") if values.get(f"{n} powered") == "true"]
    if any(f"{n} powered" in values for n in ("AC", "USB", "Wireless")):
        found["plugged"] = [p.lower() for p in plugs]
    return found


def lost() -> dict[str, Any]:
    """The record of a device that does not answer any more."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"time_utc": now, "absent": ["everything: the device did not answer"]}
