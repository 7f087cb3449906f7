"""The reward for brevity: a line from 1 at the target to 0 at the limit."""

import pytest
from pydantic import ValidationError

from stages.score.reward_config import LengthReward
from stages.score.rewards import judge
from stages.score.verdict import Item


def values(reward, tokens):
    return [mark.value for mark in judge(reward, [Item("any text", count, "any", None, {}) for count in tokens])]


def test_the_line_by_hand():
    # (200 - tokens) / (200 - 100), held in [0, 1]
    reward = LengthReward(type="length", target=100, limit=200)
    assert values(reward, [0, 99, 100, 125, 150, 199, 200, 1000]) == [1, 1, 1, 0.75, 0.5, 0.01, 0, 0]


def test_a_step_of_one_token():
    assert values(LengthReward(type="length", target=0, limit=1), [0, 1, 2]) == [1, 0, 0]


@pytest.mark.parametrize(("target", "limit"), [(5, 5), (6, 5), (-1, 5)])
def test_a_line_that_does_not_fall_is_refused(target, limit):
    with pytest.raises(ValidationError, match="greater than"):
        LengthReward(type="length", target=target, limit=limit)


def test_a_wanted_length_is_missed_to_either_side():
    # 1 - |tokens - 100| / 50
    reward = LengthReward(type="length", target=100, limit=150, exact=True)
    assert values(reward, [0, 50, 75, 100, 125, 150, 500]) == [0, 0, 0.5, 1, 0.5, 0, 0]
