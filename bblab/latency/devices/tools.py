"""Benchmark programs of others on a device: ncnn's `benchncnn` and LiteRT's `benchmark_model`, built by the user.

They follow their own protocol, not bblab's: one model after another, wall time only, no reference in the same rounds,
no state of the device. bblab runs them in turns of shuffled order and keeps what each turn said, so that one sees how
far the same program on the same model disagrees with itself; it does not make of it what `bblab bench` gives.

Outputs as in ncnn's benchmark/README.md (milliseconds) and in tensorflow/lite/tools/benchmark (microseconds).
`benchncnn` loads no weights: it fills them with a constant, which is slow or fast as zeros and denormals are.
"""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bblab.errors import BblabError, RunError, near
from bblab.latency.devices.remote import Remote, pushed_program
from bblab.latency.devices.talk import ending

CAVEAT = "by {tool}'s own protocol, not bblab's: wall time only, no reference in the same rounds, no drift test"


@dataclass(frozen=True, slots=True)
class Turn:
    """What a program said of one model once. `median_s` is None where it does not tell one."""

    min_s: float
    avg_s: float
    max_s: float
    calls: int
    median_s: float | None = None


@dataclass(frozen=True, slots=True)
class ToolTimes:
    """A model's turns by one program."""

    model: str
    tool: str
    device: str
    threads: int
    turns: tuple[Turn, ...]

    @property
    def avg_s(self) -> float:
        """Median over turns of the averages that the program printed."""
        return statistics.median(t.avg_s for t in self.turns)

    @property
    def min_s(self) -> float:
        return min(t.min_s for t in self.turns)

    @property
    def disagreement(self) -> float:
        """Largest over smallest average of the turns: 1.3 is 30 % apart."""
        averages = [t.avg_s for t in self.turns]
        return max(averages) / min(averages) if min(averages) > 0 else float("inf")

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "tool": self.tool,
            "device": self.device,
            "threads": self.threads,
            "follows_protocol": False,
            "wall_avg_s": self.avg_s,
            "wall_min_s": self.min_s,
            "turns_max_over_min": self.disagreement,
            "calls": sum(t.calls for t in self.turns),
            "turns": len(self.turns),
        }


# Outputs --------------------------------------------------------------------------------------------------------


def parse_benchncnn(text: str) -> Turn:
    """`  NAME  min =  36.25  max =  38.47  avg =  37.28`, in milliseconds; the last such line."""
    number = r"([\d.]+(?:e[+-]?\d+)?)"
    found = re.findall(rf"min\s*=\s*{number}\s+max\s*=\s*{number}\s+avg\s*=\s*{number}", text)
    if not found:
        raise _nothing("benchncnn", text)
    low, high, mean = (float(x) / 1e3 for x in found[-1])
    loops = re.search(r"^loop_count\s*=\s*(\d+)", text, re.M)
    return _sane("benchncnn", Turn(low, mean, high, int(loops.group(1)) if loops else 1), text)


def parse_benchmark_model(text: str) -> Turn:
    """`count=50 first=39456 curr=38512 min=38001 max=41000 avg=38900 std=500`, in microseconds; the last such line.

    The one before is of the warm-up. One call alone is printed as `count=1 curr=39456`.
    """
    lines = re.findall(r"\bcount=\d+ .*", text)
    if not lines:
        raise _nothing("benchmark_model", text)
    values = {k: float(v) for k, v in re.findall(r"(\w+)=([\d.]+(?:e[+-]?\d+)?)", lines[-1])}
    only = values.get("curr", 0.0)
    low, mean, high = (values.get(k, only) / 1e6 for k in ("min", "avg", "max"))
    middle = values.get("median", values.get("p50"))
    turn = Turn(low, mean, high, int(values["count"]), None if middle is None else middle / 1e6)
    return _sane("benchmark_model", turn, text)


def _sane(tool: str, turn: Turn, text: str) -> Turn:
    # The average is rounded, so it may lie beside min and max by a last digit.
    if not 0 < turn.min_s <= turn.max_s or not turn.min_s * 0.99 <= turn.avg_s <= turn.max_s * 1.01:
        raise _nothing(tool, text)
    return turn


def _nothing(tool: str, text: str) -> RunError:
    lines = [line for line in text.splitlines() if line.strip()][-6:]
    said = "".join(f"\n  | {line[:200]}" for line in lines) or " (it printed nothing)"
    return RunError(
        f"no times can be read from what {tool} printed:{said}", hint="see whether it runs this model by hand"
    )


# Programs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tool:
    """How a program is started on a model file with an input shape (C, H, W), and read."""

    suffix: str
    arguments: Callable[[str, tuple[int, int, int] | None, int, int], Sequence[str]]
    parse: Callable[[str], Turn]


def _benchncnn(model: str, shape: tuple[int, int, int] | None, threads: int, calls: int) -> Sequence[str]:
    assert shape is not None
    channels, height, width = shape
    # All cores (we pin ourselves), no GPU, no pause of ten seconds.
    return (str(calls), str(threads), "0", "-1", "0", f"param={model}", f"shape=[{width},{height},{channels}]")


def _benchmark_model(model: str, shape: tuple[int, int, int] | None, threads: int, calls: int) -> Sequence[str]:
    return (f"--graph={model}", f"--num_threads={threads}", f"--num_runs={calls}", "--warmup_runs=5", "--min_secs=0")


TOOLS = {
    "benchncnn": Tool(".param", _benchncnn, parse_benchncnn),
    "benchmark_model": Tool(".tflite", _benchmark_model, parse_benchmark_model),
}


def find(name: str) -> Tool:
    """Raises BblabError, naming those there are."""
    if name not in TOOLS:
        raise BblabError(f"no tool {name!r}", hint=near(name, TOOLS))
    return TOOLS[name]


def run(
    device: Remote,
    name: str,
    program: Path,
    model: Path,
    shape: tuple[int, int, int] | None,
    *,
    threads: int = 1,
    calls: int = 10,
    limit_s: float = 300.0,
) -> Turn:
    """One turn of a model on the open device. Raises RunError where the program fails, hangs or prints no times."""
    tool = find(name)
    start = pushed_program(device, program, name)
    place = device.send(model)
    words = shlex.join([start, *tool.arguments(place, shape, threads, calls)])
    said = device.link.sh(
        f"cd {shlex.quote(device.folder)} && echo $$ > pid && exec {device.pinning(threads)}{words}", limit_s
    )
    printed = f"{said.out}\n{said.err}"  # benchncnn prints its times on standard error
    if said.code != 0:
        raise RunError(f"{name} on {device.name} {ending(said.code)}: {said.reason()}")
    return tool.parse(printed)
