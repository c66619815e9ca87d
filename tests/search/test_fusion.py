"""Two rankings into one."""

import pytest

from likewise.search.fusion import fuse, scaled


def test_a_full_list_is_scaled_between_its_best_and_its_last() -> None:
    ranking = [(1, 0.9), (2, 0.6), (3, 0.5)]
    assert scaled(ranking, depth=3, floor=0.0) == [(1, 1.0), (2, pytest.approx(0.25)), (3, 0.0)]


def test_a_list_that_is_not_full_is_scaled_down_to_the_floor() -> None:
    # One exact match by words must not count as nothing
    assert scaled([(1, 7.5)], depth=100, floor=0.0) == [(1, 1.0)]
    assert scaled([(1, 0.5), (2, 0.3)], depth=100, floor=0.1) == [(1, 1.0), (2, pytest.approx(0.5))]


def test_scores_under_the_floor_do_not_turn_the_scale_round() -> None:
    assert scaled([(1, -0.2), (2, -0.3)], depth=100, floor=0.05) == [(1, 1.0), (2, 1.0)]
    assert scaled([], depth=100, floor=0.0) == []


def test_what_both_find_comes_before_what_one_finds() -> None:
    dense = [(1, 0.9), (2, 0.8), (3, 0.1)]
    lexical = [(2, 12.0), (4, 11.0), (5, 1.0)]
    fused = fuse(dense, lexical, depth=3, background=0.0)
    assert fused[0] == (2, pytest.approx((0.875 + 1.0) / 2))
    assert {one for one, _ in fused} == {1, 2, 3, 4, 5}
    assert all(0.0 <= score <= 1.0 for _, score in fused)


def test_ties_are_in_the_order_of_their_ids() -> None:
    assert [one for one, _ in fuse([(9, 0.5), (3, 0.5)], [], depth=100, background=0.0)] == [3, 9]
