"""Start a training in processes of its own and watch it: one, or several by torchrun as mmengine's launcher expects.

A crash of the training (a segfault in a kernel, the kernel's memory killer) leaves the command alive to say so; the
end of the command ends the training.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bblab.errors import BblabError, RunError
from bblab.pretraining import record
from bblab.pretraining.record import History

LOG = "worker.log"
POLL_S = 0.1
Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Machines:
    """Which machines train together. `master` is HOST:PORT of the first; `rank` is this machine's place."""

    nodes: int = 1
    rank: int = 0
    master: str = ""

    def __post_init__(self) -> None:
        if self.nodes < 1 or not 0 <= self.rank < self.nodes:
            raise BblabError(
                f"machine {self.rank} of {self.nodes}", hint="--nodes N, and --node-rank from 0 to N - 1 on each"
            )
        host, _, port = self.master.rpartition(":")
        if self.nodes > 1 and (not host or not port.isdecimal()):
            raise BblabError(
                f"--master {self.master!r}: {self.nodes} machines need the first one's address",
                hint="the same --master HOST:PORT on each of them",
            )


def command(folder: Path, processes: int, machines: Machines) -> list[str]:
    """The command line of a training: this Python, alone or under torchrun with `processes` on this machine."""
    alone = [sys.executable, "-m", "bblab.pretraining.run", str(folder)]
    if processes == 1 and machines.nodes == 1:
        return alone
    where = ["--standalone"]
    if machines.nodes > 1:
        host, _, port = machines.master.rpartition(":")
        where = [f"--nnodes={machines.nodes}", f"--node-rank={machines.rank}"]
        where += [f"--master-addr={host}", f"--master-port={port}"]
    module = ["-m", "bblab.pretraining.run", str(folder)]
    return [sys.executable, "-m", "bblab.pretraining.launch", *where, f"--nproc-per-node={processes}", *module]


def environment(processes: int) -> dict[str, str]:
    """What a training runs with. Threads that wait in a loop take the cores from each other: on two cores that others
    use too, a training took 141 s with them and 22 s without (MobileOne's first stages, 48 px, batch 16)."""
    found = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    found.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if processes > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        found.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    return found


def train(
    folder: Path, *, processes: int = 1, machines: Machines | None = None, on_progress: Tell | None = None
) -> History:
    """Train the plan of a folder to its end, in other processes; its record.

    Ctrl-C is handed on, and waited for: the training saves first. A second one ends it at once. Raises RunError where
    the processes ended without a word (killed, crashed).
    """
    with suppress(OSError):
        (folder / record.PROGRESS).unlink(missing_ok=True)  # of an earlier start
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            command(folder, processes, machines or Machines()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(processes),
            start_new_session=True,  # Ctrl-C reaches it once, from here
        )
    code = _watch(process, folder, on_progress or (lambda _: None))
    history = History.of(folder)
    if history.end is None and (machines is None or machines.rank == 0):
        raise RunError(f"the training ended without a word: {_cause(code)}", hint=f"its output: {folder / LOG}")
    return history


def _watch(process: subprocess.Popen[bytes], folder: Path, tell: Tell) -> int:
    interrupts = 0
    while True:
        try:
            while process.poll() is None:
                tell(record.read_progress(folder))
                time.sleep(POLL_S)
            return process.returncode
        except KeyboardInterrupt:
            interrupts += 1
            with suppress(OSError):
                if interrupts == 1:
                    tell({**record.read_progress(folder), "doing": "saving, then stopping"})
                    process.send_signal(signal.SIGINT)
                else:
                    os.killpg(process.pid, signal.SIGKILL)
        except BaseException:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def _cause(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            name = signal.Signals(-code).name
            more = " (the kernel ends what takes too much memory)" if name == "SIGKILL" else ""
            return f"killed by {name}{more}"
    return f"exit code {code}"


def last_words(folder: Path, count: int = 12) -> str:
    """The end of what the processes printed."""
    try:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-count:])


def main(argv: Sequence[str] | None = None) -> None:
    """torchrun, which ends with the command that started it."""
    from torch.distributed.run import main as torchrun

    from bblab.pretraining.run import die_with_parent

    die_with_parent()
    torchrun(list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
