"""ncnn in bblab's own static program (`bblab runner build`): on this machine what a phone or board runs.

The same models as the runtime `ncnn`, in a process without Python: the source of the same release, but compiled here,
statically and without integer kernels. `ncnn-static-fp16` lets it store and compute in float16 where the CPU can;
what it used is in the precision of each timing.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError, RunError
from bblab.latency.runtimes import RUNTIMES
from bblab.latency.runtimes.ncnn import Ncnn

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from bblab.latency.runtimes import Loaded

LIMIT_S = 600.0


class _Program:
    """A model in the runner, one process a run: for comparing outputs, not for timing."""

    def __init__(self, command: Sequence[str], path: str, threads: int) -> None:
        self._command = (*command, "--threads", str(threads), "--compute", path)

    def run(self, x: np.ndarray) -> Sequence[np.ndarray]:
        import numpy as np

        with tempfile.TemporaryDirectory(prefix="bblab-runner-") as folder:
            source, target = Path(folder, "in"), Path(folder, "out")
            np.ascontiguousarray(x, np.float32).tofile(source)
            shape = ",".join(map(str, x.shape))
            try:
                done = subprocess.run(
                    [*self._command, shape, str(source), str(target)],
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=LIMIT_S,
                )
            except subprocess.TimeoutExpired:
                raise RunError(f"the runner computed for {LIMIT_S:g} s without an end, and was ended") from None
            said = [line for line in done.stdout.splitlines() if line.startswith("BBLAB {")]
            lines = [json.loads(line.removeprefix("BBLAB ")) for line in said]
            if done.returncode != 0:
                words = [line["message"] for line in lines if line["kind"] == "error"] or done.stderr.splitlines()[-3:]
                raise RunError(f"the runner failed (code {done.returncode}): {' / '.join(words)}")
            numbers = np.fromfile(target, np.float32)
        found, at = [], 0
        for line in lines:
            count = int(np.prod(line["shape"]))
            found.append(numbers[at : at + count].reshape(1, *line["shape"]))
            at += count
        return found


@RUNTIMES("ncnn-static")
class NcnnStatic:
    name = "ncnn-static"
    suffix = Ncnn.suffix
    precision = "float32"
    pip = Ncnn.pip

    def version(self) -> str:
        """Of this machine's runner, else of another's: the host need not be able to run it."""
        runner = _room()
        for arch in sorted(runner.ARCHES, key=lambda arch: arch != runner.host_arch()):
            if path := runner.built(arch):
                return str(runner.engine(path))
        raise self._missing()

    def settings(self) -> str:
        return Ncnn().settings()

    def convert(self, module: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
        Ncnn().convert(module, input_shape, path)

    def load(self, path: str, threads: int) -> Loaded:
        """In this machine's runner; where only a phone's was built, in the installed ncnn, for comparing outputs."""
        runner = _room()
        if runner.host_arch() in runner.ARCHES and runner.built(runner.host_arch()):
            return _Program(self.program(), path, threads)
        return Ncnn().load(path, threads)

    def program(self, arch: str = "") -> tuple[str, ...]:
        runner = _room()
        arch = arch or runner.host_arch()
        path = runner.built(arch)
        if path is None:
            raise self._missing(arch)
        return (str(path), *runner.arguments(precision=self.precision))

    def _missing(self, arch: str = "") -> BblabError:
        return BblabError(
            f"the runtime {self.name!r} needs bblab's runner{f' for {arch}' if arch else ''}, which is not built yet",
            hint=f"bblab runner build {arch}".rstrip(),
            exit_code=1,
        )


@RUNTIMES("ncnn-static-fp16")
class NcnnStatic16(NcnnStatic):
    name = "ncnn-static-fp16"
    precision = "float16"
    # With random weights aarch64's float16 was off by 0.01 in nanotrack and by 0.2 in mobileone_s0@s16, whose float32
    # was off by 2e-5; a wrong net is off by about the whole value.
    max_rel_error = 0.5


def _room() -> Any:  # the package bblab.latency.runner, loaded only where it is wanted
    try:
        from bblab.latency import runner
    except ImportError:  # in the worker on a board
        raise BblabError("the runner is a program of its own, no runtime of a worker in Python") from None
    return runner
