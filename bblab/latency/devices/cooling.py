"""Is a phone cool enough to be measured? Two signs: Android's own thermal status, and our speedometer.

Thermal status 0 says that nothing is throttled for heat (android.os.PowerManager, Android 10 and later); on older
phones, and where a maker reports little, the clock itself tells: a fixed kernel takes longer than it did when cold.
The cold value of a device is the best it ever showed at status 0, kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bblab.errors import BblabError
from bblab.latency.devices import Tell, state
from bblab.latency.devices.remote import Lost, Remote, speedometer_s
from bblab.latency.protocol import DRIFT_SIZE
from bblab.rooms import cache_dir

EVERY_S = 10.0  # between two looks: a look itself warms a little
TOLERANCE = DRIFT_SIZE  # what a session calls a drift


def too_warm(status: int | None, now_s: float | None, cold_s: float | None) -> str:
    """Why the phone is not yet fit; empty where it is."""
    if status:
        named = state.THERMAL_STATUS[status] if status < len(state.THERMAL_STATUS) else "unknown"
        return f"thermal status {status} ({named})"
    if now_s is not None and cold_s is not None and now_s > cold_s * (1 + TOLERANCE):
        return f"its clock is slow: the speedometer takes {now_s * 1e3:.3g} ms, {cold_s * 1e3:.3g} ms when cold"
    return ""


@dataclass(slots=True)
class Cooling:
    """Waits before each worker; `limit_s` is for all the waits of one measurement together."""

    key: str  # device and cores
    limit_s: float
    read_status: Callable[[Remote], int | None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    _left: dict[str, float] = field(default_factory=dict)  # by folder: each opening has its own

    def __call__(self, remote: Remote, runtime: str, tell: Tell) -> None:
        """Raises Lost where the device is gone; a speedometer that fails leaves the thermal status alone to tell."""
        if self.limit_s <= 0:
            return
        left = self._left.pop(remote.folder, self.limit_s)
        self._left.clear()
        began = self.clock()
        while True:
            reason = self._look(remote, runtime)
            spent = self.clock() - began
            if not reason:
                break
            if spent >= left:
                remote.remark(f"measured warm: after cooling down for {self.limit_s:.0f} s, {reason}")
                break
            tell(f"cooling down ({left - spent:.0f} s at most): {reason}")
            self.sleep(min(EVERY_S, max(0.1, left - spent)))
        self._left[remote.folder] = max(0.0, left - (self.clock() - began))

    def _look(self, remote: Remote, runtime: str) -> str:
        status = self.read_status(remote)
        if reason := too_warm(status, None, None):
            return reason
        try:
            name, now_s = speedometer_s(remote, runtime)
        except Lost:
            raise
        except BblabError as error:
            remote.remark(f"cool-down by thermal status only, as the speedometer failed: {error.message}")
            return ""
        if status is None:
            remote.remark("the phone tells no thermal status: only the speedometer says whether it is cool")
        cold_s = self._cold(name, now_s)
        return too_warm(status, now_s, cold_s)

    # What it took when cold ---------------------------------------------------------------------------------

    def _cold(self, speedometer: str, now_s: float) -> float:
        """The best value of this device, this one included. The first one ever is cold by definition."""
        path = self._path(speedometer)
        try:
            known = float(json.loads(path.read_text(encoding="utf-8"))["cold_s"])
        except (OSError, ValueError, KeyError, TypeError):
            known = float("inf")
        if now_s < known:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            record = {"device": self.key, "speedometer": speedometer, "cold_s": now_s}
            partial.write_text(json.dumps(record), encoding="utf-8")
            partial.replace(path)
        return min(known, now_s)

    def _path(self, speedometer: str) -> Path:
        name = hashlib.sha256(f"{self.key}/{speedometer}".encode()).hexdigest()[:16]
        return cache_dir() / "devices" / f"{name}.json"
