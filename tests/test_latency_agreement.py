"""Where two rankings of the same nets differ, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bblab.latency import agreement, agreement_words


def rows(tied: tuple[tuple[str, str], ...] = (), **ratios: float) -> list[dict[str, Any]]:
    return [
        {
            "label": name, "ratio": value, "cpu_p10_s": value, "input": [3, 9, 9], "rank": 1,
            "tied_with": [y if x == name else x for x, y in tied if name in (x, y)],
        }
        for name, value in ratios.items()
    ]  # fmt: skip


def test_a_turned_pair_lowers_tau() -> None:
    # of the pairs ab, ac, bc only bc is turned: (2 - 1) / 3
    found = agreement(rows(a=1, b=2, c=3), rows(a=1, b=3, c=2))
    assert found is not None
    assert (found.tau, found.turned, found.unsettled) == (pytest.approx(1 / 3), (("b", "c"),), ())
    assert agreement_words("ort", "ncnn", found) == (
        "ort and ncnn rank 1 of 3 pairs the other way round (Kendall tau 0.33): "
        "b is faster than c in ort, slower in ncnn"
    )


def test_a_pair_tied_in_one_is_no_disagreement() -> None:
    found = agreement(rows(a=1, b=2, c=3), rows((("b", "c"),), a=1, b=3, c=2))
    assert found is not None
    assert (found.tau, found.turned, found.unsettled) == (pytest.approx(2 / 3), (), (("b", "c"),))
    assert "agree where both can tell" in agreement_words("ort", "ncnn", found)


def test_ratios_of_two_sizes_do_not_order_and_one_process_ranks_nothing() -> None:
    # x is faster in both, though its ratio, to a reference of its own size, is larger
    sized = [{**r, "input": [3, 9 * n, 9 * n]} for n, r in enumerate(rows(x=1, y=2), 1)]
    sized[0]["ratio"] = 5
    found = agreement(sized, rows(x=1, y=2))
    assert found is not None and (found.tau, found.turned) == (1.0, ())
    found = agreement([{**r, "rank": None} for r in rows(x=1, y=2)], rows(x=1, y=2))
    assert found is not None and found.unsettled == (("x", "y"),)


def test_only_common_nets_count_and_two_are_needed() -> None:
    found = agreement(rows(a=1, b=2, x=9), rows(b=2, a=1, y=0))
    assert found is not None
    assert (found.pairs, found.tau) == (1, 1.0)
    assert agreement(rows(a=1, b=2), rows(a=1)) is None
