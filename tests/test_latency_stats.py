"""The one functional, its interval and the test of a change of level, on series whose answer is known."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from bblab.errors import BblabError
from bblab.latency import stats
from bblab.latency.stats import Estimate, Series


def series(processes: int, rounds: int, level: float, seed: int, *, process_sd: float = 0.015) -> Series:
    """Times as a loaded machine gives them: a level a process, and one-sided noise a call."""
    rng = random.Random(seed)
    result = []
    for _ in range(processes):
        own = level * math.exp(rng.gauss(0, process_sd))
        result.append(tuple(own * (1 + rng.expovariate(1 / 0.03)) for _ in range(rounds)))
    return tuple(result)


# The functional -------------------------------------------------------------------------------------------------


def test_quantile_between_two_values() -> None:
    # place 0.1 * (11 - 1) = 1; place 0.1 * (6 - 1) = 0.5, halfway between 1 and 2
    assert stats.quantile([*range(11)], 0.1) == 1
    assert stats.quantile([6, 5, 4, 3, 2, 1], 0.1) == 1.5
    assert stats.quantile([7.0], 0.9) == 7.0


def test_what_is_compared_follows_from_what_was_asked() -> None:
    assert stats.functional_of("warm", 1) == "cpu_min"
    assert stats.functional_of("cold", 1) == "cpu_paired"
    assert stats.functional_of("paced", 1) == "wall_paired"
    assert stats.functional_of("warm", 2) == stats.functional_of("cold", 2) == "wall_paired"
    assert stats.functional_of("warm", 1, "cuda") == "wall_paired"


def test_warm_is_the_mean_over_processes_of_the_log_ratio_of_smallest_calls() -> None:
    ours = ((1.0, 2.0, 9.0), (4.0, 3.0, 5.0))  # smallest 1 and 3
    theirs = ((30.0, 10.0, 20.0), (60.0, 50.0, 40.0))  # smallest 10 and 40
    # ratios 1/10 and 3/40; their geometric mean is sqrt(0.1 * 0.075)
    assert stats.ratio_of(ours, theirs, "cpu_min").value == pytest.approx(math.sqrt(0.0075))


def test_paired_is_the_median_of_round_ratios_in_each_process() -> None:
    ours, theirs = ((1.0, 2.0, 9.0), (1.0, 1.0, 1.0)), ((2.0, 8.0, 9.0), (4.0, 4.0, 9.0))
    # 1/2, 1/4, 1 and 1/4, 1/4, 1/9: medians 1/2 and 1/4
    assert stats.ratio_of(ours, theirs, "cpu_paired").value == pytest.approx(math.sqrt(0.125))


def test_a_clock_that_changes_between_rounds_leaves_the_paired_ratio_alone() -> None:
    clock = (1.0, 1.7, 2.2, 1.3, 1.0, 2.0)
    theirs = tuple(tuple(s * c for c in clock) for s in (1.0, 1.1))
    ours = tuple(tuple(0.2 * s * c for c in clock) for s in (1.0, 1.1))
    found = stats.ratio_of(ours, theirs, "cpu_paired")
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))


def test_processes_may_differ_in_rounds() -> None:
    ours, theirs = ((2.0, 2.0, 2.0, 2.0), (4.0, 4.0)), ((1.0, 1.0, 1.0, 1.0), (2.0, 2.0))
    for functional in ("cpu_min", "cpu_paired", "wall_paired"):
        found = stats.ratio_of(ours, theirs, functional)  # type: ignore[arg-type]
        assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_interval_is_students_t_over_processes_not_calls() -> None:
    # log ratios of three processes: 0.1, 0.2, 0.3: mean 0.2, sd 0.1; t(2) at 97.5 % is 4.303
    theirs = ((1.0,) * 5,) * 3
    ours = tuple((math.exp(x),) * 5 for x in (0.1, 0.2, 0.3))
    for functional in ("cpu_min", "cpu_paired"):
        found = stats.ratio_of(ours, theirs, functional)  # type: ignore[arg-type]
        assert math.log(found.value) == pytest.approx(0.2)
        assert math.log(found.high) - 0.2 == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
        assert 0.2 - math.log(found.low) == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)


@pytest.mark.parametrize("processes", [5, 6, 8])
@pytest.mark.parametrize("functional", ["cpu_min", "cpu_paired"])
def test_the_interval_covers_the_truth(functional: stats.Functional, processes: int) -> None:
    """Two nets and a reference whose noise both share: of their ratios to it, 95 % hold the truth (93 to 97 % do)."""
    rng = random.Random(processes)
    held = total = 0
    for _ in range(2000):
        # A process has a clock that all share, the nets and the reference a place in memory each, a call its own noise.
        clock = [math.exp(rng.gauss(0, 0.10)) for _ in range(processes)]
        reference, *nets = (
            tuple(
                tuple(c * level * math.exp(own) * (1 + rng.expovariate(1 / 0.03)) for _ in range(5))
                for c in clock for own in (rng.gauss(0, 0.02),)
            )
            for level in (1.0, 0.2, 0.5)
        )  # fmt: skip
        for net, truth in zip(nets, (0.2, 0.5), strict=True):
            found = stats.ratio_of(net, reference, functional)
            held += found.low <= truth <= found.high
            total += 1
    assert 0.93 <= held / total <= 0.97


def test_one_process_gives_a_value_and_no_interval() -> None:
    found = stats.ratio_of(((0.2, 0.3),), ((1.0, 1.1),), "cpu_min")
    assert (found.value, found.low, found.high) == (pytest.approx(0.2), 0.0, math.inf)
    assert not found.is_known and found.sign == 0
    assert found.to_json() == (None, None)


def test_a_clock_too_coarse_is_said() -> None:
    with pytest.raises(BblabError, match="too coarse"):
        stats.ratio_of(((0.0, 0.1),), ((1.0, 1.0),), "cpu_min")


def test_p10_is_of_all_calls_and_its_interval_holds_it() -> None:
    found = stats.p10_interval(((1.0, 2.0, 9.0), (3.0, 4.0, 5.0)))  # sorted 1 2 3 4 5 9: p10 1.5
    assert found.value == pytest.approx(1.5)
    assert found.low <= 1.5 <= found.high
    assert stats.p10_interval(((1.0,), (1.0,))) == Estimate(1.0, 1.0, 1.0)


def test_wall_over_cpu_is_of_totals() -> None:
    assert stats.wall_over_cpu(((1.0, 2.0), (3.0,)), ((1.0, 1.0), (1.0,))) == 2.0
    assert stats.wall_over_cpu(((1.0,),), ((0.0,),)) == math.inf


# A change of level ----------------------------------------------------------------------------------------------


def noise(n: int, seed: int, sd: float = 0.02) -> list[float]:
    rng = random.Random(seed)
    return [math.exp(rng.gauss(0, sd)) for _ in range(n)]


def test_cusum_sees_a_step_and_where() -> None:
    for seed in range(20):
        at = random.Random(seed).randint(6, 24)
        values = [v * (1.3 if i >= at else 1.0) for i, v in enumerate(noise(30, seed))]
        change = stats.cusum(values)
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
        change = stats.cusum(values)
        assert change is not None
        seen += change.p_value < 0.01
    assert seen >= 38


def test_cusum_does_not_see_a_step_in_noise() -> None:
    changes = [stats.cusum(noise(30, 100 + seed)) for seed in range(100)]
    flagged = sum(c is not None and c.p_value < 0.01 for c in changes)
    assert flagged <= 4  # 1 is expected; 5 or more happen once in 270 sets


def test_one_interrupted_call_is_no_drift() -> None:
    values = noise(30, 5)
    values[14] *= 50
    change = stats.cusum(values)
    assert change is not None
    assert change.p_value > 0.05


def test_equal_values_and_short_series() -> None:
    flat = stats.cusum([1.0] * 30)
    assert flat is not None
    assert flat.p_value == 1.0
    assert stats.cusum([1.0, 2.0, 3.0]) is None


# Who is faster --------------------------------------------------------------------------------------------------


def test_students_t_is_that_of_the_tables() -> None:
    # Abramowitz and Stegun 1964, table 26.10
    table = {(0.975, 1): 12.706, (0.975, 2): 4.303, (0.975, 5): 2.571, (0.995, 7): 3.499, (0.975, 30): 2.042}
    for (p, dof), expected in table.items():
        assert stats.students_t(p, dof) == pytest.approx(expected, abs=5e-4)


def test_looks_are_a_third_apart_and_spend_no_more_than_is_there() -> None:
    assert [n for n in range(1, 40) if stats.is_look(n)] == [6, 8, 11, 15, 20, 27, 36]
    # stopped by a budget between two looks: that is a look too
    assert [stats.looks_taken(n) for n in (1, 5, 6, 7, 8, 9, 11, 36)] == [1, 1, 1, 2, 2, 3, 3, 7]
    assert sum(map(stats.error_at, range(1, 10_000))) <= stats.FALSE_CLAIMS


def test_contest_is_students_t_over_processes() -> None:
    # log ratios of three processes: 0.1, 0.2, 0.3: mean 0.2, sd 0.1; one look spends 2.5 %, t(2) at 98.75 % is 6.205
    theirs = ((1.0, 1.0),) * 3
    ours = tuple((math.exp(x),) * 2 for x in (0.1, 0.2, 0.3))
    found = stats.contest(ours, theirs, "cpu_paired")
    assert math.log(found.value) == pytest.approx(0.2)
    assert math.log(found.high) - 0.2 == pytest.approx(6.205 * 0.1 / math.sqrt(3), rel=1e-3)
    assert math.log(found.value) - math.log(found.low) == pytest.approx(math.log(found.high) - 0.2)


def test_one_process_settles_nothing() -> None:
    found = stats.contest(((0.5, 0.5),), ((1.0, 1.0),), "cpu_min")
    assert (found.low, found.value, found.high) == (0.0, pytest.approx(0.5), math.inf)


def claims(look: object, seeds: int, faster: float = 1.0) -> list[int]:
    """At how many processes each of so many made-up duels claims a difference, looking as `look` says; 0: never."""
    found = []
    for seed in range(seeds):
        ours, theirs = series(36, 5, faster, seed), series(36, 5, 1.0, 10_000 + seed)
        found.append(next((n for n in range(6, 37) if look(ours[:n], theirs[:n], n)), 0))  # type: ignore[operator]
    return found


def sequential(ours: Series, theirs: Series, n: int) -> bool:
    if not stats.is_look(n):
        return False
    return stats.contest(ours, theirs, "cpu_min").sign != 0


def peeking(ours: Series, theirs: Series, n: int) -> bool:
    """A plain 95 % interval, looked at after every process."""
    return stats.ratio_of(ours, theirs, "cpu_min").sign != 0


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
        assert stats.contest(ours[:n], theirs[:n], "cpu_min").high < 1.0
