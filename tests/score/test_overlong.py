"""DAPO's soft overlong punishment: by hand, and against TRL's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.score.reward_config import OverlongReward
from stages.score.rewards import judge
from stages.score.verdict import Item

TRL = pytest.importorskip("trl.rewards")


def values(reward, tokens):
    return [mark.value for mark in judge(reward, [Item("any text", count, "any", None, {}) for count in tokens])]


def test_the_fall_by_hand():
    reward = OverlongReward(type="overlong", limit=100, cache=20)
    assert values(reward, [0, 80, 81, 90, 99, 100, 101, 500]) == [0, 0, -0.05, -0.5, -0.95, -1, -1, -1]


@given(st.lists(st.integers(0, 60), min_size=1), st.integers(1, 50), st.integers(0, 50))
def test_it_is_trls(lengths, cache, more):
    theirs = TRL.get_soft_overlong_punishment(cache + more, cache)(completion_ids=[[1] * n for n in lengths])
    assert values(OverlongReward(type="overlong", limit=cache + more, cache=cache), lengths) == pytest.approx(theirs)


def test_a_cache_that_is_longer_than_the_limit_is_refused():
    with pytest.raises(ValidationError, match="cache 101 must not be greater than limit 100"):
        OverlongReward(type="overlong", limit=100, cache=101)
