"""Many marks, one reward: the weighted sum by hand, and never a silent zero."""

import math

import pytest

from stages.score.combine import failures, weighted
from stages.score.verdict import error, null, ok, timeout


def test_the_weighted_sum_by_hand():
    marks = {"right": [ok(1), ok(0)], "form": [ok(0.5), ok(1)]}
    assert weighted(marks, {"right": 2.0, "form": -0.5}) == [2 - 0.25, -0.5]


def test_a_reward_that_does_not_apply_does_not_take_part():
    marks = {"right": [ok(1), null()], "form": [null(), null()]}
    assert weighted(marks, {"right": 1.0, "form": 1.0}) == [1.0, None]


@pytest.mark.parametrize("failed", [timeout(5), error("broken"), ok(math.nan), ok(math.inf), ok(-math.inf)])
def test_a_row_with_a_failed_reward_has_no_reward_never_zero(failed):
    assert weighted({"right": [failed], "form": [ok(1)]}, {"right": 1.0, "form": 1.0}) == [None]
    assert weighted({"right": [failed], "form": [null()]}, {"right": 1.0, "form": 1.0}) == [None]


def test_a_reward_of_weight_zero_is_recorded_only_and_cannot_fail_a_row():
    marks = {"right": [ok(1)], "watched": [timeout(5)]}
    assert weighted(marks, {"right": 1.0, "watched": 0.0}) == [1.0]
    assert weighted({"watched": [ok(1)]}, {"watched": 0.0}) == [None]


def test_failures_name_the_reward_that_failed():
    marks = {"right": [ok(1), timeout(5), null()], "form": [ok(1), ok(math.nan), error("broken")]}
    assert failures(marks) == [None, "right: no verdict in 5 s; form: the reward is nan", "form: broken"]
