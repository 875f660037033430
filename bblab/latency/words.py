"""A timing in one line that a person can trust: what was timed, how, against what, and what not to believe."""

from __future__ import annotations

from collections.abc import Sequence

from bblab.latency import protocol
from bblab.latency.values import Timing

_RUNTIME_NAMES = {"ort": "ORT"}
_ESTIMATOR_WORDS = {
    "cpu_p10": "",
    "cpu_paired": " (median of rounds, as the clock drifted)",
    "wall_paired": " (wall time, median of rounds)",
}


def sentence(timing: Timing) -> str:
    """For example:

    6.62 ms CPU (p10) · 0.183 x resnet18 [0.180, 0.187] · deploy, ORT 1.32 float32, 1 thread, host, 1x3x255x255 ·
    machine busy (wall/CPU 2.3): wall time not shown
    """
    parts = [time_words(timing), ratio_words(timing), how_words(timing), wall_words(timing)]
    if timing.doubts:
        parts.append("not steady: " + "; ".join(timing.doubts))
    if timing.form == "train":
        parts.append("unfused: the deploy form is what a tracker runs")
    parts.extend(timing.notes)
    return " · ".join(part for part in parts if part)


def time_words(timing: Timing) -> str:
    """CPU time, which is no latency with more than one thread and is then not called one."""
    if timing.threads == 1:
        return f"{milliseconds(timing.cpu_p10_s)} CPU (p10)"
    return f"{milliseconds(timing.cpu_p10_s)} CPU over {timing.threads} threads (p10, no latency)"


def ratio_words(timing: Timing) -> str:
    if timing.is_reference:
        return "the reference"
    span = f"[{significant(timing.ratio_low)}, {significant(timing.ratio_high)}]"
    return f"{significant(timing.ratio)} x {timing.reference} {span}{_ESTIMATOR_WORDS[timing.estimator]}"


def how_words(timing: Timing) -> str:
    """Everything that a number must name, the batch included."""
    version = ".".join(timing.runtime_version.split(".")[:2])
    runtime = f"{_RUNTIME_NAMES.get(timing.runtime, timing.runtime)} {version}"
    pace = f", paced at {timing.pace_fps:g} fps" if timing.pace_fps else ""
    threads = "1 thread" if timing.threads == 1 else f"{timing.threads} threads"
    channels, height, width = timing.input
    shape = f"1x{channels}x{height}x{width}"
    return f"{timing.form}, {runtime} {timing.precision}, {threads}, {timing.device}, {shape}{pace}"


def wall_words(timing: Timing) -> str:
    """Wall time only where nothing else held the machine."""
    if timing.is_busy:
        ratio = timing.wall_over_cpu
        if timing.threads > 1:
            ratio = protocol.wall_over_cpu(timing.speedometer.wall_s, timing.speedometer.cpu_s)
        shown = f"{ratio:.1f}" if ratio >= 1.15 else f"{ratio:.2f}"
        return f"machine busy (wall/CPU {shown}): wall time not shown"
    return f"{milliseconds(timing.wall_p50_s)} wall (median; p90 {milliseconds(timing.wall_p90_s)})"


def ranking(timings: Sequence[Timing]) -> str:
    """Fastest first; "=" where the measurement does not settle the order."""
    groups = protocol.rank(timings)
    return " < ".join(" = ".join(t.label for t in group) for group in groups)


def milliseconds(seconds: float) -> str:
    return f"{significant(seconds * 1e3)} ms"


def significant(value: float, digits: int = 3) -> str:
    """Three significant digits, without an exponent: 0.0123, 6.62, 36.2, 1240."""
    if value == 0:
        return "0"
    from math import floor, log10

    decimals = digits - 1 - floor(log10(abs(value)))
    rounded = round(value, decimals)
    if rounded:
        decimals = digits - 1 - floor(log10(abs(rounded)))  # 9.996 -> 10.0, not 10.00
    return f"{rounded:.{max(0, decimals)}f}"
