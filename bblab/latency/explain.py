"""Why are two timings of a net two numbers? In words, the most likely cause first.

Works on stored rows (or `latency` elements of --json), so that a number of last month can be asked too. Each rule
looks at one thing that was recorded and says nothing where it was not. Weights order the answers; they are a judgement
(what has cost somebody a week stands first), except that the clock moves up by the share of the change it accounts for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bblab.latency.conditions import steal_share
from bblab.latency.protocol import BUSY_WALL_OVER_CPU
from bblab.latency.words import milliseconds, significant

Row = Mapping[str, Any]
Found = tuple[float, str]  # weight, sentence

SAME = 0.05  # two times within 5 % are called the same here: no cause is sought in less
CONFIGURED = 50.0  # from this weight on a cause is a choice that somebody made, not the state of a machine


def explain(a_row: Row, b_row: Row) -> list[str]:
    """What differed between two timings, most likely cause first. Never empty: it says so where nothing did."""
    pair = _Pair(_flat(a_row), _flat(b_row))
    found = sorted((f for rule in _RULES for f in rule(pair)), key=lambda f: -f[0])
    texts = [text for _, text in found]
    is_configured = any(weight >= CONFIGURED for weight, _ in found)
    if not is_configured and pair.overlap():
        low, high = (f"{milliseconds(r['cpu_p10_low_s'])} to {milliseconds(r['cpu_p10_high_s'])}" for r in pair.rows)
        texts.insert(0, f"the two agree within their intervals ({low}; {high}): there is no difference to explain")
    elif not texts:
        texts.append("nothing that was recorded differs: measure both in one session, side by side, with `bblab bench`")
    return texts


def _flat(row: Row) -> dict[str, Any]:
    """A stored run keeps what was asked and what came out apart."""
    return {**row, **(row.get("inputs") or {}), **(row.get("result") or {})}


class _Pair:
    """Two rows, and the names that a sentence calls them by."""

    def __init__(self, a: dict[str, Any], b: dict[str, Any]) -> None:
        self.a, self.b = a, b
        self.rows = (a, b)
        shown = [milliseconds(r["cpu_p10_s"]) if r.get("cpu_p10_s") else "" for r in self.rows]
        self.names = tuple(shown) if all(shown) and shown[0] != shown[1] else ("the first", "the second")

    def both(self, *keys: str) -> tuple[Any, Any] | None:
        """The two values under nested keys; None where either was not recorded."""
        found = []
        for row in self.rows:
            at: Any = row
            for key in keys:
                at = at.get(key) if isinstance(at, Mapping) else None
            if at is None:
                return None
            found.append(at)
        return found[0], found[1]

    def differ(self, *keys: str) -> tuple[Any, Any] | None:
        values = self.both(*keys)
        return None if values is None or values[0] == values[1] else values

    def state(self, *keys: str) -> tuple[Any, Any] | None:
        """Of the condition records, the later one where it is there (a machine heats up while it works)."""
        return self.both("conditions", "after", *keys) or self.both("conditions", "before", *keys)

    def log_ratio(self, key: str) -> float | None:
        values = self.both(key)
        return math.log(values[1] / values[0]) if values and values[0] > 0 and values[1] > 0 else None

    def overlap(self) -> bool:
        low, high = self.both("cpu_p10_low_s"), self.both("cpu_p10_high_s")
        return bool(low and high and low[0] <= high[1] and low[1] <= high[0])

    def is_same_choice(self) -> bool:
        keys = ("name", "spec_id", "spec", "form", "input", "device", "runtime", "precision", "threads", "pace_fps")
        return all(self.a.get(k) == self.b.get(k) for k in keys)


def protocol_of(row: Row) -> int:
    """The protocol that a stored row was measured by; rows without one are of the first."""
    return int(row.get("protocol") or 1)


def protocol_words(first: int, second: int) -> str:
    """Why numbers of two protocols are not compared; empty where it is the same."""
    if first == second:
        return ""
    told = " and ".join(
        f"{name} by protocol {n}" + " (cold, mixed)" * (n == 1)
        for name, n in (("the first", first), ("the second", second))
    )
    return (
        f"measured by another protocol: {told}; their times and ratios cannot be compared (a net of 1 ms came out up "
        "to 24 % slower by protocol 1); measure again: bblab bench --again"
    )


def _protocol(p: _Pair) -> Iterator[Found]:
    if text := protocol_words(protocol_of(p.a), protocol_of(p.b)):
        yield 1000, text


def _net(p: _Pair) -> Iterator[Found]:
    if names := p.differ("spec"):
        yield 100, f"they are of two nets: {p.names[0]} was {names[0]}, {p.names[1]} {names[1]}"
    elif ids := p.differ("spec_id"):
        yield 100, f"the spec {p.a.get('spec', '')} itself was edited in between ({ids[0][:12]}, then {ids[1][:12]})"


def _form(p: _Pair) -> Iterator[Found]:
    if forms := p.differ("form"):
        train, deploy = p.names if forms[0] == "train" else p.names[::-1]
        yield 95, f"{train} was the unfused train form, {deploy} the fused deploy form, which is what a device runs"


def _input(p: _Pair) -> Iterator[Found]:
    if sizes := p.differ("input"):
        pixels = [math.prod(s[1:]) for s in sizes]
        shown = ["×".join(map(str, s[1:])) for s in sizes]
        times = max(pixels) / min(pixels)
        yield (
            90,
            f"{p.names[0]} was at {shown[0]} px, {p.names[1]} at {shown[1]} px: {significant(times)} times the pixels",
        )


def _machine(p: _Pair) -> Iterator[Found]:
    if devices := p.differ("device"):
        yield 85, f"two devices: {p.names[0]} on {devices[0]}, {p.names[1]} on {devices[1]}"
    if models := p.differ("conditions", "before", "cpu_model"):
        yield 88, f"two CPUs: {p.names[0]} on {models[0]}, {p.names[1]} on {models[1]}"
    if kinds := p.differ("processor"):
        yield 86, f"{p.names[0]} was computed on {kinds[0]}, {p.names[1]} on {kinds[1]}"


def _runtime(p: _Pair) -> Iterator[Found]:
    if runtimes := p.differ("runtime"):
        yield 80, f"{p.names[0]} was {runtimes[0]}, {p.names[1]} {runtimes[1]}: two runtimes, two sets of kernels"
    elif versions := p.differ("runtime_version"):
        yield 60, f"{p.a['runtime']} itself was another: {versions[0]}, then {versions[1]}"
    if precisions := p.differ("precision"):
        yield 75, f"{p.names[0]} was computed in {precisions[0]}, {p.names[1]} in {precisions[1]}"


def _threads(p: _Pair) -> Iterator[Found]:
    if counts := p.differ("threads"):
        yield (
            70,
            f"{counts[0]} thread(s), then {counts[1]}: CPU time adds up over threads and counts their spinning, "
            "so compare wall times",
        )


def _pace(p: _Pair) -> Iterator[Found]:
    one, two = p.a.get("pace_fps"), p.b.get("pace_fps")
    if one != two and protocol_of(p.a) == protocol_of(p.b) == 1:  # paced calls stand beside warm ones since
        paced = p.names[0] if one else p.names[1]
        yield (
            65,
            (
                f"{paced} was paced at {one or two:g} fps, the other without a pause: between frames caches go cold "
                "and clocks fall"
            ),
        )
    if counts := p.differ("warmups"):
        yield 27, f"{counts[0]} warm-up call(s), then {counts[1]}"


def _file(p: _Pair) -> Iterator[Found]:
    if p.differ("model_sha256") and p.is_same_choice():
        yield 55, "the model file is another although spec and form are the same: the blocks or the exporter changed"
    if versions := p.differ("code_version"):
        yield 12, f"bblab's own code was another: {versions[0]}, then {versions[1]}"
    if packages := p.differ("conditions", "before", "packages"):
        changed = [
            f"{k} {packages[0].get(k, 'absent')} → {v}" for k, v in packages[1].items() if packages[0].get(k) != v
        ]
        if changed:
            yield 20, "other versions: " + ", ".join(changed)


def _clock(p: _Pair) -> Iterator[Found]:
    moved = p.log_ratio("speedometer_s")
    if moved is None or abs(moved) < 0.03 or p.differ("speedometer"):
        return
    slow, fast = (p.names[1], p.names[0]) if moved > 0 else p.names
    times = [milliseconds(r["speedometer_s"]) for r in (p.rows if moved < 0 else p.rows[::-1])]
    text = (
        f"the CPU itself ran {significant(math.exp(abs(moved)))} times slower for {slow} than for {fast}: "
        f"a fixed kernel took {times[0]} against {times[1]}"
    )
    total = p.log_ratio("cpu_p10_s") or 0.0
    share = min(1.0, max(0.0, moved / total)) if abs(total) > SAME else 0.0
    if share > 0.5:
        text += f", which accounts for {share:.0%} of the difference" if share < 0.95 else ", which accounts for it"
    yield 25 + 68 * share, text


def _against_the_reference(p: _Pair) -> Iterator[Found]:
    references = p.both("reference")
    if references is None:
        return
    if references[0] != references[1] or p.differ("reference_input"):
        yield 34, f"their ratios are against different references: {references[0]} and {references[1]}"
        return
    ratios, moved = p.both("ratio"), p.log_ratio("cpu_p10_s")
    low, high = p.both("ratio_low"), p.both("ratio_high")
    if not (ratios and low and high) or p.a.get("is_reference") or p.b.get("is_reference"):
        return
    shown = f"{significant(ratios[0])} and {significant(ratios[1])} × {references[0]}"
    if p.is_same_choice() and moved is not None and abs(moved) > SAME:
        if low[0] <= high[1] and low[1] <= high[0]:
            yield 92, f"beside the reference they are the same ({shown}): the machine was another, not the net"
        elif abs(math.log(ratios[1] / ratios[0])) > SAME:
            yield 30, f"they also differ beside the reference ({shown}): the clock alone is not the reason"


def _busy(p: _Pair) -> Iterator[Found]:
    walls, cpu = p.log_ratio("measured_wall_p50_s"), p.log_ratio("cpu_p10_s")
    waits = p.both("wall_over_cpu")
    if not waits or p.both("threads") != (1, 1):
        return
    shown = f"wall/CPU {significant(waits[0])} against {significant(waits[1])}"
    if walls is not None and cpu is not None and abs(cpu) <= SAME < abs(walls):
        times = " and ".join(milliseconds(r["measured_wall_p50_s"]) for r in p.rows)
        same = f"CPU times are within {100 * SAME:g} %"
        yield 93, f"only wall time differs ({times}): {same}, other work held the machine ({shown})"
    elif max(waits) >= BUSY_WALL_OVER_CPU and abs(math.log(waits[1] / waits[0])) > 0.02:
        if min(waits) >= BUSY_WALL_OVER_CPU:
            yield 44, f"other work held the machine during both ({shown}): neither wall time is the net's"
            return
        name = p.names[0] if waits[0] > waits[1] else p.names[1]
        yield 44, f"other work held the machine during {name} ({shown}): its wall time is not the net's"


def _frequency(p: _Pair) -> Iterator[Found]:
    if governors := p.differ("conditions", "before", "governor"):
        yield 58, f"another frequency governor: {', '.join(governors[0])}, then {', '.join(governors[1])}"
    capped = [_capped(r) for r in p.rows]
    if capped[0] != capped[1]:
        name = p.names[0] if capped[0] else p.names[1]
        yield 57, f"the clock was capped during {name} ({capped[0] or capped[1]}): throttled, or saving power"
    if clocks := p.state("frequencies_hz", "now"):
        one, two = max(clocks[0]), max(clocks[1])
        if abs(math.log(two / one)) > 0.05:
            yield 43, f"the fastest core stood at {one / 1e9:.2f} GHz, then at {two / 1e9:.2f} GHz"


def _capped(row: Row) -> str:
    clocks = ((row.get("conditions") or {}).get("before") or {}).get("frequencies_hz") or {}
    allowed, top = clocks.get("max_allowed"), clocks.get("max")
    if not allowed or not top or max(allowed) >= max(top):
        return ""
    return f"{max(allowed) / 1e9:.2f} of {max(top) / 1e9:.2f} GHz"


def _heat(p: _Pair) -> Iterator[Found]:
    if (heats := p.state("thermal_c")) and heats[0] and heats[1]:
        one, two = max(heats[0].values()), max(heats[1].values())
        if abs(two - one) >= 5:
            yield 42, f"the hottest sensor read {one:.0f} °C, then {two:.0f} °C"
    statuses = p.state("thermal", "status")
    if statuses and statuses[0] != statuses[1]:
        yield 59, f"the phone's thermal status was {statuses[0]}, then {statuses[1]}: from 1 on it slows down for heat"
    if savers := p.differ("conditions", "before", "battery_saver"):
        yield (
            57.5,
            f"battery saver was {' then '.join('on' if on else 'off' for on in savers)}: it holds the clocks down",
        )


def _share_of_the_machine(p: _Pair) -> Iterator[Found]:
    if quotas := p.differ("conditions", "before", "cpu_quota", "cores"):
        yield 56, f"the container could use {quotas[0]} core(s), then {quotas[1]}"
    if cores := p.differ("conditions", "before", "affinity"):
        yield 41, f"other cores were allowed: {cores[0]}, then {cores[1]}"
    stolen = [_stolen(r) for r in p.rows]
    if stolen[0] is not None and stolen[1] is not None and abs(stolen[1] - stolen[0]) >= 0.01:
        yield 40, f"the hypervisor took {stolen[0]:.1%} of the machine, then {stolen[1]:.1%}"
    if loads := p.state("load_average"):
        one, two = loads[0][0], loads[1][0]
        if abs(two - one) >= 0.5 and max(one, two) >= 1.5 * min(one, two):
            yield 29, f"the load was {one:.1f}, then {two:.1f}"
    if (waits := p.state("pressure", "cpu", "some_avg10_percent")) and abs(waits[1] - waits[0]) >= 10:
        yield 28, f"tasks waited for a CPU {waits[0]:.0f} % of the time, then {waits[1]:.0f} %"


def _stolen(row: Row) -> float | None:
    if row.get("steal_share") is not None:
        return float(row["steal_share"])
    records = row.get("conditions") or {}
    return steal_share(records.get("before") or {}, records.get("after") or {})


def _method(p: _Pair) -> Iterator[Found]:
    for name, row in zip(p.names, p.rows, strict=True):
        if row.get("drift") == "drift":
            how = row.get("drift_detail") or {}
            size = f" {how['change_ratio']:.2f}-fold" if how.get("change_ratio") else ""
            yield 48, f"the clock drifted while {name} was measured: the {how.get('series', 'clock')} changed{size}"
        if (row.get("processes") or 99) < 5:
            # Protocol 1 took its interval by a bootstrap, which is too narrow for few processes.
            doubt = ": its interval is too narrow to be believed" * (protocol_of(row) == 1)
            yield 38, f"{name} rests on {row['processes']} process(es) only{doubt}"
    for key in ("functional", "estimator"):
        if ways := p.differ(key):
            yield 26, f"their ratios are computed in two ways: {ways[0]} and {ways[1]}"
    if speedometers := p.differ("speedometer"):
        yield 10, f"the clock was watched by two kernels ({', '.join(speedometers)}): it cannot be compared"


_RULES: tuple[Callable[[_Pair], Iterator[Found]], ...] = (
    _protocol,
    _net,
    _form,
    _input,
    _machine,
    _runtime,
    _threads,
    _pace,
    _file,
    _clock,
    _against_the_reference,
    _busy,
    _frequency,
    _heat,
    _share_of_the_machine,
    _method,
)
