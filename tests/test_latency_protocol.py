"""The estimates, intervals, drift test and ranking, on series whose answer is known."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

import pytest

from bblab.errors import BblabError
from bblab.latency import protocol
from bblab.latency.protocol import Drift, Estimate, Series
from bblab.latency.values import Samples, Timing


def series(processes: int, rounds: int, level: float, seed: int, *, process_sd: float = 0.015) -> Series:
    """Times as a loaded machine gives them: a level a process, and one-sided noise a call."""
    rng = random.Random(seed)
    result = []
    for _ in range(processes):
        own = level * math.exp(rng.gauss(0, process_sd))
        result.append(tuple(own * (1 + rng.expovariate(1 / 0.03)) for _ in range(rounds)))
    return tuple(result)


def timing(label: str, cpu_s: Series, reference_cpu_s: Series, **changes: object) -> Timing:
    quiet = Samples(cpu_s, cpu_s)
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
        samples=quiet,
        reference="resnet18",
        reference_form="deploy",
        reference_input=(3, 255, 255),
        reference_key="resnet18",
        reference_samples=Samples(reference_cpu_s, reference_cpu_s),
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


# Estimates ------------------------------------------------------------------------------------------------------


def test_quantile_between_two_values() -> None:
    # place 0.1 * (11 - 1) = 1; place 0.1 * (6 - 1) = 0.5, halfway between 1 and 2
    assert protocol.quantile([*range(11)], 0.1) == 1
    assert protocol.quantile([6, 5, 4, 3, 2, 1], 0.1) == 1.5
    assert protocol.quantile([7.0], 0.9) == 7.0


def test_cpu_p10_is_a_ratio_of_p10s_over_all_calls() -> None:
    ours = ((1.0, 2.0, 9.0), (3.0, 4.0, 5.0))  # sorted 1 2 3 4 5 9: p10 1.5
    theirs = ((10.0, 30.0, 20.0), (60.0, 50.0, 40.0))  # p10 15
    assert protocol.compare(ours, theirs, "cpu_p10").value == pytest.approx(0.1)


def test_paired_estimate_is_the_median_of_round_ratios() -> None:
    ours, theirs = ((1.0, 2.0, 9.0),), ((2.0, 8.0, 9.0),)  # ratios 1/2, 1/4, 1
    assert protocol.compare(ours, theirs, "cpu_paired").value == pytest.approx(0.5)


def test_a_clock_that_changes_between_rounds_leaves_the_paired_ratio_alone() -> None:
    clock = (1.0, 1.7, 2.2, 1.3, 1.0, 2.0)
    theirs = tuple(tuple(s * c for c in clock) for s in (1.0, 1.1))
    ours = tuple(tuple(0.2 * s * c for c in clock) for s in (1.0, 1.1))
    found = protocol.compare(ours, theirs, "cpu_paired")
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))


def test_processes_of_different_length_are_padded_not_mixed() -> None:
    ours = ((2.0, 2.0, 2.0, 2.0), (4.0, 4.0))
    theirs = ((1.0, 1.0, 1.0, 1.0), (2.0, 2.0))
    for estimator in ("cpu_p10", "cpu_paired"):
        found = protocol.compare(ours, theirs, estimator)  # type: ignore[arg-type]
        assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


@pytest.mark.parametrize("estimator", ["cpu_p10", "cpu_paired"])
def test_the_interval_covers_the_truth(estimator: protocol.Estimator) -> None:
    # Nominal 95 %; of 300 such sets 94 % (p10) and 95 % (paired) held the truth. 100 sets: sd 2.3 points.
    held = 0
    for seed in range(100):
        ours, theirs = series(6, 5, 0.2, seed), series(6, 5, 1.0, 10_000 + seed)
        found = protocol.compare(ours, theirs, estimator)
        held += found.low <= 0.2 <= found.high
    assert 86 <= held <= 100


def test_the_interval_is_of_processes_not_of_calls() -> None:
    # 30 calls that differ between processes only: an interval over calls would be sqrt(5) narrower.
    levels = (1.0, 1.04, 0.97, 1.02, 0.99, 1.05)
    ours = tuple((level,) * 5 for level in levels)
    theirs = ((1.0,) * 5,) * 6
    found = protocol.compare(ours, theirs, "cpu_paired")
    assert found.low <= 0.99
    assert found.high >= 1.04


def test_the_same_samples_give_the_same_interval() -> None:
    ours, theirs = series(6, 5, 0.2, 1), series(6, 5, 1.0, 2)
    first = protocol.compare(ours, theirs, "cpu_p10")
    protocol.compare.cache_clear()
    protocol._resampled.cache_clear()
    assert protocol.compare(ours, theirs, "cpu_p10") == first


def test_a_single_call_gives_a_value_and_doubts() -> None:
    found = protocol.compare(((0.2,),), ((1.0,),), "cpu_p10")
    assert found == Estimate(0.2, 0.2, 0.2)
    assert any("1 process" in d for d in protocol.doubts(1, 1, None, found))


def test_a_clock_too_coarse_is_said() -> None:
    with pytest.raises(BblabError, match="too coarse"):
        protocol.compare(((0.0, 0.1),), ((1.0, 1.0),), "cpu_p10")


# Busy -----------------------------------------------------------------------------------------------------------


def test_wall_over_cpu_from_1_02_is_busy() -> None:
    assert protocol.wall_over_cpu(((1.0, 2.0), (3.0,)), ((1.0, 1.0), (1.0,))) == 2.0
    assert not protocol.is_busy(1.0199)
    assert protocol.is_busy(1.02)


def test_more_threads_use_paired_wall_time() -> None:
    drifted = Drift("drift", 0.001, change_ratio=1.3)
    assert protocol.choose_estimator(1, Drift("none", 0.5)) == "cpu_p10"
    assert protocol.choose_estimator(1, None) == "cpu_p10"
    assert protocol.choose_estimator(1, drifted) == "cpu_paired"
    assert protocol.choose_estimator(2, drifted) == "wall_paired"


def test_two_threads_are_compared_by_wall_and_judged_busy_by_the_speedometer() -> None:
    cpu, wall, reference = ((0.08,) * 5,) * 6, ((0.04,) * 5,) * 6, ((0.1,) * 5,) * 6
    two = timing("a", cpu, reference, threads=2, samples=Samples(wall, cpu))
    assert two.ratio == pytest.approx(0.4)
    assert not two.is_busy
    waiting = Samples(((0.006,) * 6,) * 6, ((0.003,) * 6,) * 6)
    assert replace(two, speedometer=waiting).is_busy


def test_beside_a_gpu_cpu_time_is_that_of_waiting() -> None:
    cpu, wall = ((0.08,) * 5,) * 6, ((0.04,) * 5,) * 6
    gpu = timing("a", cpu, ((0.1,) * 5,) * 6, processor="cuda", samples=Samples(wall, cpu))
    assert gpu.estimator == "wall_paired"
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


def test_cusum_sees_a_step_and_where() -> None:
    for seed in range(20):
        at = random.Random(seed).randint(6, 24)
        values = [v * (1.3 if i >= at else 1.0) for i, v in enumerate(noise(30, seed))]
        change = protocol.cusum(values)
        assert change is not None
        assert change.p_value < 0.01
        assert abs(change.at - at) <= 1
        assert change.change_ratio == pytest.approx(1.3, rel=0.05)


@pytest.mark.parametrize("at", [5, 15, 25])
def test_cusum_sees_a_step_near_the_ends_as_well_as_in_the_middle(at: int) -> None:
    # without weights the walk of 5 against 25 fully separated ranks peaks at 5 * 12.5 = 62.5, where shuffled ones of
    # 30 reach 77 in one of a hundred (Kolmogorov's 1.63 * sqrt(30) * 8.66): never p < .01
    seen = 0
    for seed in range(40):
        rng = random.Random(seed)
        values = [(1.15 if i >= at else 1.0) * math.exp(rng.gauss(0, 0.02)) for i in range(30)]
        change = protocol.cusum(values)
        assert change is not None
        seen += change.p_value < protocol.DRIFT_P
    assert seen >= 38


def test_cusum_does_not_see_a_step_in_noise() -> None:
    changes = [protocol.cusum(noise(30, 100 + seed)) for seed in range(100)]
    flagged = sum(c is not None and c.p_value < 0.01 for c in changes)
    assert flagged <= 4  # 1 is expected; 5 or more happen once in 270 sets


def test_one_interrupted_call_is_no_drift() -> None:
    values = noise(30, 5)
    values[14] *= 50
    change = protocol.cusum(values)
    assert change is not None
    assert change.p_value > 0.05


def test_equal_values_and_short_series() -> None:
    flat = protocol.cusum([1.0] * 30)
    assert flat is not None
    assert flat.p_value == 1.0
    assert protocol.cusum([1.0, 2.0, 3.0]) is None


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
    assert (
        "1.30-fold at process 3, round 1"
        in protocol.doubts(5, 2, Drift("drift", 0.001, "reference", 2, 0, 1.3), narrow)[0]
    )


def test_a_drifting_session_switches_to_paired_rounds() -> None:
    step = [1.0] * 15 + [1.5] * 15
    reference = chunks([v * n for v, n in zip(step, noise(30, 8), strict=True)], 5)
    ours = chunks([0.25 * v * n for v, n in zip(step, noise(30, 9), strict=True)], 5)
    found = timing("a", ours, reference)
    assert found.estimator == "cpu_paired"
    assert not found.steady
    assert found.ratio == pytest.approx(0.25, rel=0.02)


# Who is faster --------------------------------------------------------------------------------------------------


def test_students_t_is_that_of_the_tables() -> None:
    # Abramowitz and Stegun 1964, table 26.10
    table = {(0.975, 1): 12.706, (0.975, 2): 4.303, (0.975, 5): 2.571, (0.995, 7): 3.499, (0.975, 30): 2.042}
    for (p, dof), expected in table.items():
        assert protocol.students_t(p, dof) == pytest.approx(expected, abs=5e-4)


def test_looks_are_a_third_apart_and_spend_no_more_than_is_there() -> None:
    assert [n for n in range(1, 40) if protocol.is_look(n)] == [6, 8, 11, 15, 20, 27, 36]
    # stopped by a budget between two looks: that is a look too
    assert [protocol.looks_taken(n) for n in (1, 5, 6, 7, 8, 9, 11, 36)] == [1, 1, 1, 2, 2, 3, 3, 7]
    assert sum(map(protocol.error_at, range(1, 10_000))) <= protocol.FALSE_CLAIMS


def test_contest_is_students_t_over_processes() -> None:
    # log ratios of three processes: 0.1, 0.2, 0.3: mean 0.2, sd 0.1; one look spends 2.5 %, t(2) at 98.75 % is 6.205
    theirs = ((1.0, 1.0),) * 3
    ours = tuple((math.exp(x),) * 2 for x in (0.1, 0.2, 0.3))
    found = protocol.contest(ours, theirs, "cpu_paired")
    assert math.log(found.value) == pytest.approx(0.2)
    assert math.log(found.high) - 0.2 == pytest.approx(6.205 * 0.1 / math.sqrt(3), rel=1e-3)
    assert math.log(found.value) - math.log(found.low) == pytest.approx(math.log(found.high) - 0.2)


def test_one_process_settles_nothing() -> None:
    found = protocol.contest(((0.5, 0.5),), ((1.0, 1.0),), "cpu_p10")
    assert (found.low, found.value, found.high) == (0.0, 0.5, math.inf)


def claims(look: object, seeds: int, faster: float = 1.0) -> list[int]:
    """At how many processes each of so many made-up duels claims a difference, looking as `look` says; 0: never."""
    found = []
    for seed in range(seeds):
        ours, theirs = series(36, 5, faster, seed), series(36, 5, 1.0, 10_000 + seed)
        found.append(next((n for n in range(6, 37) if look(ours[:n], theirs[:n], n)), 0))  # type: ignore[operator]
    return found


def sequential(ours: Series, theirs: Series, n: int) -> bool:
    if not protocol.is_look(n):
        return False
    found = protocol.contest(ours, theirs, "cpu_p10")
    return not found.low <= 1.0 <= found.high


def peeking(ours: Series, theirs: Series, n: int) -> bool:
    """A plain 95 % interval of Student's t, looked at after every process."""
    logs = [protocol._log_ratio(a, b, "cpu_p10") for a, b in zip(ours, theirs, strict=True)]
    half = protocol.students_t(0.975, n - 1) * statistics.stdev(logs) / math.sqrt(n)
    return abs(statistics.mean(logs)) > half


def test_a_net_seldom_beats_itself_however_often_one_looks() -> None:
    # 5 % nominal, for all seven looks together; 400 other such duels gave 2 %. Of 150, more than 14 is 1 chance in 100.
    assert sum(n > 0 for n in claims(sequential, 150)) <= 14


def test_peeking_at_a_plain_interval_would_let_it() -> None:
    # 400 other such duels gave 24 %
    assert sum(n > 0 for n in claims(peeking, 60)) >= 8


def test_a_difference_of_three_percent_is_found_and_the_right_way_round() -> None:
    found = claims(sequential, 40, faster=0.97)
    assert all(found)
    assert statistics.median(found) <= 11
    for seed, n in enumerate(found):
        ours, theirs = series(36, 5, 0.97, seed), series(36, 5, 1.0, 10_000 + seed)
        assert protocol.contest(ours[:n], theirs[:n], "cpu_p10").high < 1.0


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
