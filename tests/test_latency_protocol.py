"""Order, drift, doubts and ranking, on series whose answer is known."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from bblab.errors import BblabError
from bblab.latency import protocol
from bblab.latency.protocol import Drift
from bblab.latency.stats import Estimate, Series
from bblab.latency.values import Samples, Timing


def series(processes: int, rounds: int, level: float, seed: int, *, process_sd: float = 0.015) -> Series:
    """Times as a loaded machine gives them: a level a process, and one-sided noise a call."""
    rng = random.Random(seed)
    result = []
    for _ in range(processes):
        own = level * math.exp(rng.gauss(0, process_sd))
        result.append(tuple(own * (1 + rng.expovariate(1 / 0.03)) for _ in range(rounds)))
    return tuple(result)


def warm(wall_s: Series, cpu_s: Series) -> dict[str, Samples]:
    return {"warm": Samples(wall_s, cpu_s)}


def timing(label: str, cpu_s: Series, reference_cpu_s: Series, **changes: object) -> Timing:
    flat = Samples(((0.003,) * 6,) * len(cpu_s), ((0.003,) * 6,) * len(cpu_s))
    made = Timing(
        label=label,
        spec=label,
        form="deploy",
        input=(3, 255, 255),
        key=label,
        device="host",
        runtime="ort",
        runtime_version="1.32.0",
        precision="float32",
        threads=1,
        warmups=5,
        samples=warm(cpu_s, cpu_s),
        reference="resnet18",
        reference_form="deploy",
        reference_input=(3, 255, 255),
        reference_key="resnet18",
        reference_samples=warm(reference_cpu_s, reference_cpu_s),
        speedometer=flat,
        speedometer_name="fake",
        model_sha256="0",
        model_bytes=1,
        conversion_rel_error=0.0,
        session="one",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


# Order ----------------------------------------------------------------------------------------------------------


def test_every_round_and_process_has_its_own_order() -> None:
    rounds = [tuple(o) for process in range(3) for o in protocol.orders(8, 5, seed=0, process=process)]
    assert all(sorted(order) == list(range(8)) for order in rounds)
    assert len(set(rounds)) == 15  # 8! orders: two alike among 15 would be one chance in 400


def test_the_order_is_the_seeds() -> None:
    assert protocol.orders(8, 5, 1, 0) == protocol.orders(8, 5, 1, 0)
    assert protocol.orders(8, 5, 1, 0) != protocol.orders(8, 5, 2, 0)


# Busy -----------------------------------------------------------------------------------------------------------


def test_wall_over_cpu_from_1_02_is_busy() -> None:
    assert not protocol.is_busy(1.0199)
    assert protocol.is_busy(1.02)


def test_two_threads_are_compared_by_wall_and_judged_busy_by_the_speedometer() -> None:
    cpu, wall, reference = ((0.08,) * 5,) * 6, ((0.04,) * 5,) * 6, ((0.1,) * 5,) * 6
    two = timing("a", cpu, reference, threads=2, samples=warm(wall, cpu))
    assert two.ratio == pytest.approx(0.4)
    assert not two.is_busy
    waiting = Samples(((0.006,) * 6,) * 6, ((0.003,) * 6,) * 6)
    assert replace(two, speedometer=waiting).is_busy


def test_beside_a_gpu_cpu_time_is_that_of_waiting() -> None:
    cpu, wall = ((0.08,) * 5,) * 6, ((0.04,) * 5,) * 6
    gpu = timing("a", cpu, ((0.1,) * 5,) * 6, processor="cuda", samples=warm(wall, cpu))
    assert gpu.functional() == "wall_paired"
    assert gpu.ratio == pytest.approx(0.4)
    assert not gpu.is_busy  # the speedometer tells, not wall / CPU of the net


def test_spinning_waste_is_cpu_of_many_over_cpu_of_one() -> None:
    reference = ((0.1,) * 5,) * 6
    one = timing("a", ((0.028,) * 5,) * 6, reference)
    two = timing("a", ((0.185,) * 5,) * 6, reference, threads=2)
    assert protocol.spinning_waste(two, one) == pytest.approx(6.607, abs=1e-3)
    with pytest.raises(BblabError):
        protocol.spinning_waste(one, two)


# Drift ----------------------------------------------------------------------------------------------------------


def noise(n: int, seed: int, sd: float = 0.02) -> list[float]:
    rng = random.Random(seed)
    return [math.exp(rng.gauss(0, sd)) for _ in range(n)]


def chunks(values: list[float], size: int) -> Series:
    return tuple(tuple(values[i : i + size]) for i in range(0, len(values), size))


def test_session_drift_tells_process_and_round() -> None:
    # 6 processes x 5 rounds; the clock falls at value 17 of 30: process 3, round 2 (from 0)
    values = [v * (1.4 if i >= 17 else 1.0) for i, v in enumerate(noise(30, 3, sd=0.005))]
    speed = chunks(noise(36, 4, sd=0.005), 6)
    drift = protocol.session_drift(speed, chunks(values, 5))
    assert drift is not None
    assert (drift.verdict, drift.series, drift.process, drift.round) == ("drift", "reference", 3, 2)
    assert drift.change_ratio == pytest.approx(1.4, rel=0.02)


def test_the_speedometer_alone_can_show_drift() -> None:
    speed = chunks([v * (0.7 if i >= 20 else 1.0) for i, v in enumerate(noise(36, 6))], 6)
    drift = protocol.session_drift(speed, None)
    assert drift is not None
    assert (drift.verdict, drift.series) == ("drift", "speedometer")


def test_a_change_after_a_processs_last_round_is_told_as_the_next_ones_start() -> None:
    # 6 x 5 rounds have 6 x 6 speedometer values; value 17 is the one after process 2's last round (from 0)
    speed = chunks([v * (1.4 if i >= 17 else 1.0) for i, v in enumerate(noise(36, 6, sd=0.005))], 6)
    drift = protocol.session_drift(speed, None)
    assert drift is not None
    assert (drift.process, drift.round) == (3, 0)


def test_a_significant_but_tiny_step_is_none() -> None:
    values = [v * (1.04 if i >= 15 else 1.0) for i, v in enumerate(noise(30, 7, sd=0.002))]
    drift = protocol.session_drift(chunks(values, 5), None)
    assert drift is not None
    assert drift.p_value < 0.01
    assert drift.verdict == "none"


def test_a_large_step_that_chance_explains_is_none() -> None:
    # Noise of 20 % gives halves that differ by 10 % often; a verdict at p < .2 would be wrong in one of five.
    drifts = [protocol.session_drift(chunks(noise(30, 500 + seed, sd=0.2), 5), None) for seed in range(100)]
    assert sum(d is not None and d.verdict == "drift" for d in drifts) <= 4


def test_too_few_rounds_give_no_verdict() -> None:
    assert protocol.session_drift(((1.0, 1.0, 1.0),) * 2, ((1.0, 1.0),) * 2) is None


# Steady ---------------------------------------------------------------------------------------------------------


def test_steady_needs_samples_no_drift_and_a_narrow_interval() -> None:
    quiet, narrow = Drift("none", 0.4), Estimate(0.2, 0.198, 0.202)
    assert protocol.doubts(5, 2, quiet, narrow) == ()
    assert len(protocol.doubts(4, 2, quiet, narrow)) == 1
    assert len(protocol.doubts(5, 1, quiet, narrow)) == 1
    assert len(protocol.doubts(5, 2, None, narrow)) == 1
    assert len(protocol.doubts(5, 2, quiet, Estimate(0.2, 0.18, 0.21))) == 1
    assert "no place in a ranking" in protocol.doubts(1, 5, quiet, Estimate(0.2, 0.0, math.inf))[1]
    assert (
        "1.30-fold at process 3, round 1"
        in protocol.doubts(5, 2, Drift("drift", 0.001, "reference", 2, 0, 1.3), narrow)[0]
    )


def test_a_drift_is_reported_and_changes_no_quantity() -> None:
    step = [1.0] * 15 + [1.5] * 15
    reference = chunks([v * n for v, n in zip(step, noise(30, 8), strict=True)], 5)
    ours = chunks([0.25 * v * n for v, n in zip(step, noise(30, 9), strict=True)], 5)
    found = timing("a", ours, reference)
    assert found.drift is not None and found.drift.verdict == "drift"
    assert found.functional() == "cpu_min"
    assert not found.steady and "1.49-fold" in found.doubts[0]
    assert found.ratio == pytest.approx(0.25, rel=0.02)


def test_the_references_drift_is_of_the_smallest_call_of_each_round() -> None:
    # three warm calls a round, the slower ones wild: 30 rounds without a drift
    rng = random.Random(1)
    rounds = [[v, v * (1 + rng.random()), v * (1 + rng.random())] for v in noise(30, 3)]
    warm = tuple(tuple(x for r in rounds[i : i + 5] for x in r) for i in range(0, 30, 5))
    found = timing("a", warm, warm, samples={"warm": Samples(warm, warm, 3)},
                   reference_samples={"warm": Samples(warm, warm, 3)})  # fmt: skip
    assert found.rounds == 5
    assert found.warm.cpu_by_round_s[0] == tuple(r[0] for r in rounds[:5])
    assert found.drift is not None and found.drift.verdict == "none"


# Ranking --------------------------------------------------------------------------------------------------------


def labels(groups: list[list[Timing]]) -> list[set[str]]:
    return [{t.label for t in group} for group in groups]


def test_rank_orders_what_is_settled_and_ties_what_is_not() -> None:
    reference = series(6, 5, 1.0, 0)
    fast, slow = timing("fast", series(6, 5, 0.2, 1), reference), timing("slow", series(6, 5, 0.5, 2), reference)
    twin = timing("twin", series(6, 5, 0.5, 3), reference)
    assert labels(protocol.rank([slow, twin, fast])) == [{"fast"}, {"slow", "twin"}]
    assert [{a.label, b.label} for a, b in protocol.ties([slow, twin, fast])] == [{"slow", "twin"}]


def test_no_two_groups_hold_a_tie() -> None:
    # a is wide and reaches over b to c: the three share a group although b and c are settled
    reference = ((1.0,) * 5,) * 6
    wide = timing("wide", tuple((level,) * 5 for level in (0.9, 1.2, 1.2, 1.35, 1.2, 1.25)), reference)
    b, c = timing("b", ((1.12,) * 5,) * 6, reference), timing("c", ((1.2,) * 5,) * 6, reference)
    assert not protocol.is_tie(b, c)
    assert labels(protocol.rank([c, b, wide])) == [{"wide", "b", "c"}]
    # a tie of the ones between (b and its twin) does not cut the reach of the wide one
    twin = replace(b, label="twin")
    assert labels(protocol.rank([c, b, twin, wide])) == [{"wide", "b", "twin", "c"}]


def test_ratio_between_is_paired_within_a_session() -> None:
    # Each alone wavers by 2 between processes; round for round one is exactly 5 % slower.
    levels = (1.0, 2.0, 1.5, 1.2, 1.9, 1.7)
    reference = ((1.0,) * 5,) * 6
    a = timing("a", tuple((level,) * 5 for level in levels), reference)
    b = timing("b", tuple((1.05 * level,) * 5 for level in levels), reference)
    assert not protocol.is_tie(a, b)
    assert protocol.is_tie(a, replace(b, session="another"))


def test_rankings_belong_to_a_runtime_and_a_reference() -> None:
    reference = series(6, 5, 1.0, 0)
    a, b = timing("a", series(6, 5, 0.2, 1), reference), timing("b", series(6, 5, 0.3, 2), reference)
    with pytest.raises(BblabError, match="differ in runtime: ort and ncnn"):
        protocol.rank([a, replace(b, runtime="ncnn")])
    with pytest.raises(BblabError, match="different references"):
        protocol.rank([a, replace(b, session="another", reference_key="other")])


def test_pairs_are_ranked_by_their_own_ratio_not_by_way_of_the_reference() -> None:
    # The reference wavers by half between processes; b is 2 % slower than a in each of them.
    reference = tuple((level,) * 5 for level in (1.0, 1.5, 1.1, 1.4, 1.2, 1.3))
    a = timing("a", tuple((0.2 * (1 + 0.001 * i),) * 5 for i in range(6)), reference)
    b = timing("b", tuple((0.204 * (1 + 0.001 * i),) * 5 for i in range(6)), reference)
    assert a.ratio_high > b.ratio_low  # by way of it they cannot be told apart
    assert labels(protocol.rank([b, a])) == [{"a"}, {"b"}]


def test_nets_of_two_sizes_rank_by_their_own_times() -> None:
    # 1 ms of a reference of 4, and 2 ms of one of 40: the ratios are the other way round
    small = timing("small", ((1.0,) * 5,) * 6, ((4.0,) * 5,) * 6, reference_input=(3, 127, 127))
    large = timing("large", ((2.0,) * 5,) * 6, ((40.0,) * 5,) * 6)
    assert small.ratio > large.ratio
    assert [t.label for t in protocol.ordered([large, small])] == ["small", "large"]


def test_a_pair_that_cold_turns_round_is_named_where_it_is_apart_in_both() -> None:
    one = ((1.0,) * 5,) * 6

    def both(label: str, warm_s: float, cold_s: float) -> Timing:
        samples = {
            "warm": Samples(((warm_s,) * 5,) * 6, ((warm_s,) * 5,) * 6),
            "cold": Samples(((cold_s,) * 5,) * 6, ((cold_s,) * 5,) * 6),
        }
        beside = {"warm": Samples(one, one), "cold": Samples(one, one)}
        return timing(label, one, one, samples=samples, reference_samples=beside)

    a, b, c = both("a", 0.2, 0.5), both("b", 0.3, 0.4), both("c", 0.4, 0.5)
    # cold: b < a = c
    assert [(state, x.label, y.label) for state, x, y in protocol.turned([c, b, a])] == [("cold", "a", "b")]


def test_p99_needs_a_hundred_calls() -> None:
    few, many = ((1.0,) * 33,) * 3, ((1.0,) * 34,) * 3
    assert timing("a", few, few).to_json()["wall_p99_s"] is None
    assert timing("a", many, many).to_json()["wall_p99_s"] == 1.0
