"""A timing in one line that a person can trust: what was timed, how, against what, and what not to believe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bblab.latency import wire
from bblab.latency.conditions import steal_share
from bblab.latency.protocol import LOADED_WALL_OVER_CPU, is_busy, rank
from bblab.latency.stats import Estimate
from bblab.latency.values import Timing

if TYPE_CHECKING:
    from bblab.latency.sessions import Verdict

# Of one process the spread over processes is unknown: no interval, not an infinitely wide one.
NO_INTERVAL_WORDS = "no interval: 1 process was measured, at least 2 are needed (--budget: more seconds, or none)"
WIDE = 10.0  # a difference "below 1000 %" tells nobody anything
_RUNTIME_NAMES = {"ort": "ORT", "openvino": "OpenVINO"}
STATE_WORDS = {
    wire.WARM: "warm (three calls in a row, after 6 ms of the same net)",
    wire.COLD: "cold (the first call after other work)",
    wire.PACED: "paced (at a camera's beat)",
}


def sentence(timing: Timing) -> str:
    """For example:

    6.62 ms CPU (p10), warm · 0.183 x resnet18 [0.180, 0.187] warm, 0.191 [0.186, 0.196] cold · deploy, ORT 1.32
    float32, 1 thread, host, 1x3x255x255 · machine busy (wall/CPU 1.3); wall time not shown
    """
    parts = [time_words(timing), ratio_words(timing), how_words(timing), wall_words(timing)]
    if timing.doubts:
        parts.append("not steady: " + "; ".join(timing.doubts))
    if timing.form == "train":
        parts.append("unfused: the deploy form is what a tracker runs")
    parts.extend(timing.notes)
    return " · ".join(part for part in parts if part)


def time_words(timing: Timing) -> str:
    """CPU time of warm calls, which is not a latency with more than one thread and is then not called one."""
    shown = milliseconds(timing.cpu_p10_s)
    if timing.is_one_cpu_thread:
        return f"{shown} CPU (p10), warm"
    if timing.processor != "cpu":
        return f"{shown} CPU beside {timing.processor} (p10, warm; not a latency)"
    return f"{shown} CPU over {timing.threads} threads (p10, warm; not a latency)"


def ratio_words(timing: Timing) -> str:
    """The ratio to the reference in each state, with its interval."""
    if timing.is_reference:
        return "the reference"
    parts: list[str] = []
    for state in wire.STATES:
        if timing.has(state):
            beside = f" x {timing.reference}" if not parts else ""
            parts.append(f"{ratio_span(timing.ratio_in(state), beside)} {state}")
    return ", ".join(parts) + (f" ({NO_INTERVAL_WORDS})" if timing.processes < 2 else "")


def ratio_span(ratio: Estimate, beside: str = "", digits: int = 3) -> str:
    """0.183 x resnet18 [0.180, 0.187]; without the interval where one process gives none."""
    value = f"{significant(ratio.value, digits)}{beside}"
    if not ratio.is_known:
        return value
    return f"{value} [{significant(ratio.low, digits)}, {significant(ratio.high, digits)}]"


def how_words(timing: Timing) -> str:
    """Everything that a number must name, the batch included."""
    version = ".".join(timing.runtime_version.split(".")[:2])
    runtime = f"{_RUNTIME_NAMES.get(timing.runtime, timing.runtime)} {version}"
    pace = f", paced calls at {timing.pace_fps:g} fps" if timing.pace_fps else ""
    threads = "1 thread" if timing.threads == 1 else f"{timing.threads} threads"
    channels, height, width = timing.input
    shape = f"1x{channels}x{height}x{width}"
    return f"{timing.form}, {runtime} {timing.precision}, {threads}, {timing.device}, {shape}{pace}"


def wall_words(timing: Timing) -> str:
    """Wall time only where nothing else held the machine."""
    if timing.is_busy:
        return f"{busy_words(timing.waiting)}; wall time not shown"
    return f"{milliseconds(timing.wall_p50_s)} wall (warm; median; p90 {milliseconds(timing.wall_p90_s)})"


# What load was seen to do to the warm ratio to resnet18, in %: nets of .6 to 9.3 ms, two busy loops and more on two
# cores, mean of several runs each (protocol 2's estimator). Nets below 2 ms: -0.3 to +6 %.
LOAD_MOVES = "nets of 2 to 10 ms may come out 3 to 16 % too slow beside the reference"


def busy_words(wall_over_cpu: float) -> str:
    """How other work held the machine, and what that is known to do to ratios; empty where it did not."""
    if not is_busy(wall_over_cpu):
        return ""
    shown = f"{wall_over_cpu:.1f}" if wall_over_cpu >= 1.15 else f"{wall_over_cpu:.2f}"
    if wall_over_cpu >= LOADED_WALL_OVER_CPU:
        return f"loaded (wall/CPU {shown}): {LOAD_MOVES}"
    return f"machine busy (wall/CPU {shown})"


def ranking(timings: Sequence[Timing]) -> str:
    """Fastest first by warm calls; "=" where the measurement does not settle the order."""
    if timings and timings[0].processes < 2:
        return "one process gives no interval: nothing is ranked"
    groups = rank(timings)
    return " < ".join(" = ".join(t.label for t in group) for group in groups)


def interval_of(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The ends of a `--json` row's interval; none for one process, whose calls say nothing of another process."""
    low, high = row["ratio_low"], row["ratio_high"]
    is_known = row.get("processes", 2) > 1 and low is not None and high is not None and math.isfinite(high)
    return (low, high) if is_known else (None, None)


def count_of(number: int, thing: str, things: str = "") -> str:
    """ "1 process", "8 processes"."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def milliseconds(seconds: float) -> str:
    return f"{significant(seconds * 1e3)} ms"


def significant(value: float, digits: int = 3) -> str:
    """Three significant digits, without an exponent: 0.0123, 6.62, 36.2, 1240; "–" for what is not a number."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    if rounded:
        decimals = digits - 1 - math.floor(math.log10(abs(rounded)))  # 9.996 -> 10.0, not 10.00
    return f"{rounded:.{max(0, decimals)}f}"


def machine_words(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The state of the machine before and after, as far as it could be read; what could not is named."""
    parts = []

    def change(name: str, values: Sequence[Any], show: Callable[[Any], str]) -> None:
        if all(v is None for v in values):
            return
        was, now = ("?" if v is None else show(v) for v in values)
        parts.append(f"{name} {was}" if was == now else f"{name} {was} → {now}")

    def first(record: Mapping[str, Any], *keys: str) -> Any:
        at: Any = record
        for key in keys:
            at = at.get(key) if isinstance(at, Mapping) else None
        return at

    loads = [(r.get("load_average") or [None])[0] for r in (before, after)]
    change("load", loads, "{:.1f}".format)
    pressures = [first(r, "pressure", "cpu", "some_avg10_percent") for r in (before, after)]
    change("waiting for a CPU", pressures, "{:.0f} %".format)
    stolen = steal_share(before, after)
    if stolen is not None:
        parts.append(f"stolen by the hypervisor {stolen:.1%}")
    throttled = [first(r, "cpu_quota", "throttled_s") for r in (before, after)]
    if None not in throttled and throttled[1] > throttled[0]:
        parts.append(f"throttled by its quota for {throttled[1] - throttled[0]:.1f} s")
    change("governor", [", ".join(r.get("governor") or []) or None for r in (before, after)], str)
    clocks = [first(r, "frequencies_hz", "now") for r in (before, after)]
    change("clock", [max(c) if c else None for c in clocks], lambda hz: f"{hz / 1e9:.2f} GHz")
    heats = [r.get("thermal_c") for r in (before, after)]
    change("hottest", [max(h.values()) if h else None for h in heats], "{:.0f} °C".format)
    change("thermal status", [first(r, "thermal", "status") for r in (before, after)], str)
    change("battery", [first(r, "battery", "level_percent") for r in (before, after)], "{} %".format)
    unread = {"governor": "governor", "frequencies_hz": "frequency", "thermal_c": "temperature"}
    missing = [word for key, word in unread.items() if key in before.get("absent", ())]
    if missing:
        parts.append(f"cannot be read here: {', '.join(missing)}")
    return ", ".join(parts) or "nothing is known of the machine's state"


def verdict_words(verdict: Verdict) -> str:
    """Who is faster and by how much, or how far apart the two can be at most."""
    a, b, ratio = verdict.a, verdict.b, verdict.ratio
    how = f"after {count_of(a.processes, 'process', 'processes')}"
    if verdict.faster is None:
        if not math.isfinite(verdict.bound):
            return f"cannot tell on this machine in this time: {NO_INTERVAL_WORDS}"
        if verdict.bound > WIDE:
            return (
                "cannot tell on this machine in this time: the interval is too wide to bound the difference "
                f"(B/A {significant(ratio.value, 4)}, {how}; measure longer: --budget)"
            )
        return (
            f"cannot tell on this machine in this time: the difference is below {_percent(verdict.bound)} "
            f"(B/A {significant(ratio.value, 4)}, 95 % {_span(ratio)}, {how})"
        )
    slower = a if verdict.faster == b.label else b
    # Time saved as a share of the slower one's time, for B/A < 1 the ratio itself.
    share = ratio if verdict.faster == b.label else Estimate(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
    least, most = 1 - share.high, 1 - share.low
    return (
        f"{verdict.faster} is faster: it takes {_percent(1 - share.value)} less time than {slower.label} "
        f"(95 %: {_percent(least)} to {_percent(most)}; B/A {significant(ratio.value, 4)} {_span(ratio)}, {how})"
    )


def _span(estimate: Estimate) -> str:
    return f"[{significant(estimate.low, 4)}, {significant(estimate.high, 4)}]"


def _percent(share: float) -> str:
    return f"{significant(share * 100, 2)} %"
