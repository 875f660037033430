"""Fronts, ties, probabilities and what to measure next, against cases worked by hand and exact enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bblab.reports.kit import front
from bblab.reports.kit.front import Interval

NAN = math.nan


def test_a_point_is_on_the_front_if_nothing_is_as_cheap_and_as_accurate_and_better_in_one() -> None:
    #   y 3 |          C          A (1, 1) is the cheapest, B (2, 2) and C (4, 3) cost more and give more,
    #     2 |    B  D             D (3, 2) costs more than B and gives the same, E (4, 1) is beaten by all.
    #     1 | A        E
    #       +-1--2--3--4
    assert front.on_front([1, 2, 4, 3, 4], [1, 2, 3, 2, 1]) == [True, True, True, False, False]


def test_one_point_is_the_front() -> None:
    assert front.on_front([5.0], [0.1]) == [True]
    assert front.on_front([], []) == []


def test_of_equal_accuracies_the_fastest_alone_is_on_the_front() -> None:
    assert front.on_front([3, 1, 2], [7, 7, 7]) == [False, True, False]


def test_of_equal_latencies_the_most_accurate_alone_is_on_the_front() -> None:
    assert front.on_front([1, 1, 1], [0.5, 0.7, 0.6]) == [False, True, False]


def test_equal_points_stand_or_fall_together() -> None:
    assert front.on_front([1, 1, 1, 2, 2], [5, 5, 4, 5, 6]) == [True, True, False, False, True]
    assert front.on_front([2, 2, 1], [5, 5, 5]) == [False, False, True]


def test_nan_and_infinite_points_are_on_no_front_and_beat_nobody() -> None:
    assert front.on_front([1, NAN, 0, 2, -math.inf], [1, 9, NAN, 2, 9]) == [True, False, False, True, False]
    assert front.on_front([NAN], [NAN]) == [False]


def test_the_front_of_random_points_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        n = int(rng.integers(1, 9))
        x, y = rng.integers(0, 4, n).astype(float), rng.integers(0, 4, n).astype(float)  # many equals
        wanted = [
            not any(x[q] <= x[p] and y[q] >= y[p] and (x[q] < x[p] or y[q] > y[p]) for q in range(n)) for p in range(n)
        ]
        assert front.on_front(x, y) == wanted


def test_membership_of_many_draws_is_that_of_each() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 5, (40, 7)).astype(float), rng.integers(0, 5, (40, 7)).astype(float)
    together = front.membership(x, y)
    assert [list(row) for row in together] == [front.on_front(a, b) for a, b in zip(x, y, strict=True)]


def test_the_step_line_has_the_fronts_points_in_order_and_equals_once() -> None:
    assert front.steps([4, 1, 2, 2, 3], [9, 1, 5, 5, 4]) == [(1, 1), (2, 5), (4, 9)]


def test_points_are_tied_where_their_intervals_overlap_on_both_axes() -> None:
    x = [Interval(1, 2), Interval(1.5, 3), Interval(2.5, 4), Interval(1, 9)]
    y = [Interval(5, 5), Interval(4, 5), Interval(4, 6), Interval(8, 9)]
    # 0-1 overlap on both; 1-2 overlap on both; 0-2 only in y; 3 overlaps all in x, none in y.
    assert front.tied(x, y) == [(0, 1), (1, 2)]
    assert front.level_with_front(x, y, [True, False, False, True]) == [False, True, False, False]


def test_probabilities_agree_with_exact_enumeration() -> None:
    # Three nets, latencies seen 2, 2 and 3 times, accuracies exact. Every combination of single values is as likely
    # as every other: 12 worlds, enumerated; drawn 40,000 times the shares may be off by 4 standard errors, .01.
    seen = [[1.0, 3.0], [2.0, 2.5], [0.5, 2.2, 4.0]]
    accuracy = [0.70, 0.70, 0.69]
    worlds = list(itertools.product(*seen))
    exact = np.mean([front.on_front(world, accuracy) for world in worlds], axis=0)
    # By hand: A beats B where 1 (always): A on for 1.0 (1/2). B on where A is 3.0 (1/2). C (less accurate) is on where
    # it is the fastest: 0.5 always (4 worlds of 12), 2.2 when A is 3.0 and B 2.5 (1 world), 4.0 never: 5/12.
    assert exact == pytest.approx([1 / 2, 1 / 2, 5 / 12])
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.choice(values, 40_000) for values in seen], axis=1)
    assert front.membership(drawn, np.asarray(accuracy)[None]).mean(0) == pytest.approx(exact, abs=0.01)


def test_a_bootstrap_over_seeds_agrees_with_enumerating_its_samples() -> None:
    # Seeds gave 0.60 and 0.64: the mean is 0.62; with replacement the means .60 .62 .62 .64, deviations widened by
    # sqrt(2): .62 -+ .02 sqrt 2, a quarter each, and .62 in half of the draws.
    drawn = front.pooled_draws([np.full(40_000, 0.60), np.full(40_000, 0.64)], [0.60, 0.64], seed=1)
    values, counts = np.unique(np.round(drawn, 6), return_counts=True)
    assert values == pytest.approx([0.62 - 0.02 * 2**0.5, 0.62, 0.62 + 0.02 * 2**0.5], abs=1e-6)
    assert counts / 40_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.01)
    # The standard deviation is that of a mean of two: s / sqrt 2 = (.04 / sqrt 2) / sqrt 2 = .02.
    assert float(drawn.std()) == pytest.approx(0.02, rel=0.02)


def test_one_seed_keeps_its_own_draws() -> None:
    own = np.array([1.0, 2.0, 3.0])
    assert list(front.pooled_draws([own], [2.0], seed=0)) == [1.0, 2.0, 3.0]


def test_draws_of_a_session_are_of_students_t() -> None:
    # log ratios 0, 1, 2 of three processes: mean 1, sd 1, standard error 1 / sqrt 3; t(0.975, 2) = 4.3027
    drawn = front.session_draws([[0.0, 1.0, 2.0]], [5], 200_000, seed=1)
    half = 4.3027 / 3**0.5
    assert np.quantile(drawn, [0.025, 0.5, 0.975]) == pytest.approx([1 - half, 1.0, 1 + half], abs=0.06)


def test_nets_of_one_session_share_what_their_processes_had_in_common() -> None:
    shared = np.array([0.0, 0.3, -0.2, 0.1, 0.4, -0.1])
    own = np.array([0.001, -0.001, 0.002, 0.0, -0.002, 0.001])
    a, b = (front.session_draws([list(x)], [5], 4000, seed=1) for x in (shared, shared + 0.01 + own))
    # each alone wavers by a tenth, their difference by a thousandth: the slower one is never drawn as the faster
    assert a.std() > 0.1 and (b - a).std() < 0.003
    assert (b > a).mean() > 0.99
    other = front.session_draws([list(shared)], [6], 4000, seed=1)
    assert abs(float(np.corrcoef(a, other)[0, 1])) < 0.1


def test_sessions_that_disagree_widen_the_draws() -> None:
    close = [[0.0, 0.01, -0.01]] * 2
    apart = [[0.0, 0.01, -0.01], [1.0, 1.01, 0.99]]
    agreed = front.session_draws(close, [1, 2], 4000, seed=1)
    disagreed = front.session_draws(apart, [1, 2], 4000, seed=1)
    assert np.median(disagreed) == pytest.approx(0.5, abs=0.05)
    assert disagreed.std() > 20 * agreed.std()


def test_a_missing_interval_draws_the_value_itself() -> None:
    assert set(front.normal_draws(0.5, None, None, 10, seed=0)) == {0.5}
    assert set(front.normal_draws(0.5, 0.5, 0.5, 10, seed=0)) == {0.5}
    assert front.interval_of(0.5, np.full(10, 0.5)) is None
    spread = front.normal_draws(0.5, 0.4, 0.6, 20_000, seed=0)
    assert float(spread.std()) == pytest.approx(0.1 / 1.96, rel=0.03)


def test_draws_keep_both_ends_of_a_lopsided_interval() -> None:
    near_one = front.normal_draws(0.989, 0.972, 0.996, 20_000, seed=0)
    low, high = np.quantile(near_one, (0.025, 0.975))
    assert low == pytest.approx(0.972, abs=1e-3) and high == pytest.approx(0.996, abs=1e-3)


def test_an_interval_always_holds_its_value() -> None:
    found = front.interval_of(10.0, np.linspace(1, 2, 100))
    assert found is not None
    assert found.high == 10.0


def test_measuring_is_worth_what_it_settles() -> None:
    # A is certain: (1, .7). B is as accurate and takes 0.5 or 1.5, evenly: either A or B is on the front, so each
    # membership has the variance 1/4; knowing B settles both, 1/2, knowing A nothing. C (2, .9) is on in any world.
    x = np.array([[1.0, 0.5, 2.0], [1.0, 1.5, 2.0]])
    is_on = front.membership(x, np.array([[0.7, 0.7, 0.9]]))
    assert is_on.tolist() == [[False, True, True], [True, False, True]]
    assert front.worth_measuring(is_on, x) == pytest.approx([0.0, 0.5, 0.0])


def test_measuring_agrees_with_enumerating_all_worlds() -> None:
    seen = [[1.0, 3.0], [2.0, 2.5], [0.5, 2.2, 4.0]]
    worlds = np.array(list(itertools.product(*seen)))
    is_on = front.membership(worlds, np.array([[0.70, 0.70, 0.69]]))
    by_hand = []
    for i, values in enumerate(seen):
        expected = [is_on[worlds[:, i] == v].mean(0) for v in values]
        by_hand.append(sum(((e - is_on.mean(0)) ** 2).sum() for e in expected) / len(values))
    assert front.worth_measuring(is_on, worlds) == pytest.approx(by_hand)
    # A settles A and B (1/4 + 1/4) and a part of C: P(C on | A = 1) = 2/6, P(C on | A = 3) = 3/6, mean 5/12.
    assert by_hand[0] == pytest.approx(0.5 + (1 / 12) ** 2)


def test_noise_is_not_worth_measuring() -> None:
    rng = np.random.default_rng(0)
    is_on = rng.random((4_000, 5)) < 0.5  # has nothing to do with the values
    worth = front.worth_measuring(is_on, rng.random((4_000, 3)))
    assert max(worth) < 0.01


def test_a_thousand_points_take_part_in_a_thousand_draws() -> None:
    rng = np.random.default_rng(0)
    is_on = front.membership(rng.random((1_000, 1_000)), rng.random((1_000, 1_000)))
    # Of n uniform points, sum 1/k for k to n = 7.49 are on the front (a staircase of records).
    assert float(is_on.sum(1).mean()) == pytest.approx(7.49, abs=0.3)
