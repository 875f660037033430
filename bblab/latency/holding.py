"""Holding a worker to one core with a long time slice, and how often the system took that core away.

A small net pays for a refill of its caches each time it was switched out or moved, which load does often. Both need no
rights; where the system takes neither, nothing changes and `ready` says so. What they help: benchmarks/latency_load.py.
Linux: sched_setaffinity(2); sched_setattr(2), whose sched_runtime is the slice of an ordinary task from 6.12 on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Sequence

from bblab.latency import wire

_SETATTR = {"x86_64": (314, 315), "aarch64": (274, 275), "armv7l": (380, 381)}  # sched_setattr, sched_getattr
_OTHER = 0  # SCHED_OTHER


class _Attributes(ctypes.Structure):
    """struct sched_attr, first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def preempted() -> int | None:
    """Involuntary context switches of this process so far; None where the system does not count them."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def allow(cpus: Sequence[int]) -> None:
    """Hold this process to these cores, as far as the system allows; to none where there are none."""
    if cpus and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # a cpuset has other ideas: `ready` says where we are
            os.sched_setaffinity(0, cpus)


def hold(request: wire.Request) -> tuple[int | None, float | None]:
    """The one core that this process is held to from now on, and the slice it was granted; None for what was not.

    The core is the one it stands on: the scheduler has put it there, while it loaded and warmed up, as on the least
    busy one. With more threads there is no one core.
    """
    cpu = _pinned() if request.threads == 1 else None
    return cpu, _long_slice(request.slice_s) if request.slice_s > 0 else None


def _pinned() -> int | None:
    try:
        cpu = ctypes.CDLL(None).sched_getcpu()
        if cpu < 0:
            return None
        os.sched_setaffinity(0, {cpu})
        return cpu if os.sched_getaffinity(0) == {cpu} else None
    except (OSError, AttributeError, TypeError):
        return None


def _long_slice(seconds: float) -> float | None:
    """What the scheduler says that it granted; older kernels take the wish and forget it."""
    numbers = _SETATTR.get(platform.machine())
    if numbers is None or platform.system() != "Linux":
        return None
    try:
        call = ctypes.CDLL(None, use_errno=True).syscall
        attributes = _Attributes(size=ctypes.sizeof(_Attributes))
        size = ctypes.sizeof(attributes)
        if call(numbers[1], 0, ctypes.byref(attributes), size, 0) != 0 or attributes.policy != _OTHER:
            return None
        attributes.runtime = round(seconds * 1e9)
        if call(numbers[0], 0, ctypes.byref(attributes), 0) != 0:
            return None
        attributes.runtime = 0
        if call(numbers[1], 0, ctypes.byref(attributes), size, 0) != 0 or not attributes.runtime:
            return None
        return float(attributes.runtime) / 1e9
    except (OSError, AttributeError, TypeError):
        return None
