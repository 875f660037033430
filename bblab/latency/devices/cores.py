"""Which cores a worker may use: the clusters of a big.LITTLE processor, and a taskset mask of some of them.

Big cores are those of the highest maximal frequency; where frequencies cannot be read, of the highest `cpu_capacity`
(the kernel's own measure, Documentation/scheduler/sched-capacity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bblab.errors import BblabError

SAME_KIND = 0.1


@dataclass(frozen=True, slots=True)
class Cluster:
    """Cores of one kind. `max_hz` is 0 where it cannot be read, `capacity` too."""

    cpus: tuple[int, ...]
    max_hz: int = 0
    capacity: int = 0

    def words(self) -> str:
        clock = f" at {self.max_hz / 1e9:.2f} GHz" if self.max_hz else ""
        return f"{len(self.cpus)}{clock}"


def clusters(max_hz: Mapping[int, int], capacity: Mapping[int, int], online: Sequence[int]) -> tuple[Cluster, ...]:
    """Cores of the same kind together, the biggest cluster (the fastest cores) first.

    Only cores that are online. One cluster of unknown speed where neither can be read. Desktop processors name single
    cores of a kind that may clock a little higher: less than SAME_KIND apart in both is one kind.
    """
    found: list[tuple[tuple[int, int], list[int]]] = []
    for cpu in sorted(online, key=lambda cpu: (-max_hz.get(cpu, 0), -capacity.get(cpu, 0), cpu)):
        here = max_hz.get(cpu, 0), capacity.get(cpu, 0)
        if found and all(b > a * (1 - SAME_KIND) or a == b for a, b in zip(found[-1][0], here, strict=True)):
            found[-1][1].append(cpu)
        else:
            found.append((here, [cpu]))
    return tuple(Cluster(tuple(sorted(cpus)), hz, cap) for (hz, cap), cpus in found)


@dataclass(frozen=True, slots=True)
class Choice:
    """Cores for a worker; `cpus` empty means that it is not pinned. `note` says what the reader must know."""

    cpus: tuple[int, ...] = ()
    note: str = ""

    @property
    def mask(self) -> str:
        """As taskset of toybox, busybox and util-linux take it: hexadecimal without 0x."""
        return f"{sum(1 << cpu for cpu in self.cpus):x}"


def choose(cores: str, found: Sequence[Cluster], threads: int) -> Choice:
    """Cores for `threads` threads: "big", "little", "all", or a mask such as "f0".

    A cluster with fewer cores than threads is joined by the next one. "big" of a processor with one kind of core pins
    nothing. Raises BblabError for a mask without cores or with cores that are not there.
    """
    there = sorted(cpu for cluster in found for cpu in cluster.cpus)
    if cores == "all":
        return Choice()
    if cores in ("big", "little"):
        if len(found) < 2:
            if cores == "big":
                return Choice()
            return Choice(note="no little cores were found: all cores were used")
        picked: list[int] = []
        used = 0
        for cluster in found if cores == "big" else found[::-1]:
            if len(picked) >= threads:
                break
            picked += cluster.cpus
            used += 1
        note = f"{threads} threads are more than the {cores} cores: {used} kinds of core were used" if used > 1 else ""
        return Choice(tuple(sorted(picked)), note)
    mask = parse_mask(cores)
    wanted = tuple(cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1)
    if there and not set(wanted) <= set(there):
        listed = ",".join(map(str, there))
        raise BblabError(f"cores {cores!r} name cores that are not online there", hint=f"online: {listed}", exit_code=1)
    return Choice(wanted)


def check(cores: str) -> str:
    """The same text if `choose` takes it. Raises BblabError otherwise."""
    if cores not in ("big", "little", "all"):
        parse_mask(cores)
    return cores


def parse_mask(text: str) -> int:
    try:
        mask = int(str(text), 16)
    except ValueError:
        mask = 0
    if not 0 < mask < 1 << 1024:
        raise BblabError(
            f"cores {text!r}", hint="big, little, all, or a hexadecimal mask: f0 is cores 4 to 7, as for taskset"
        )
    return mask


def words(found: Sequence[Cluster]) -> str:
    """For example `1 at 2.99 GHz + 3 at 2.40 GHz + 4 at 1.80 GHz`."""
    return " + ".join(cluster.words() for cluster in found)


def to_json(found: Sequence[Cluster]) -> list[dict[str, Any]]:
    return [{"cpus": list(c.cpus), "max_hz": c.max_hz or None, "capacity": c.capacity or None} for c in found]


def parse_cpu_list(text: str) -> list[int]:
    """The kernel's `0-3,6` as numbers."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), int(last or first) + 1)
    return found
