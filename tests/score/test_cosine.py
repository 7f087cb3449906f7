"""The cosine length reward, by hand."""

import math

import pytest
from pydantic import ValidationError

from stages.score.config import ScoreConfig
from stages.score.stage import score_rows
from tests.score.test_score_rows import rollouts


def scored(rows, of_math=None, **settings):
    cosine = {"type": "cosine", "of": "math", "limit": 100} | settings
    rewards = [cosine, {"type": "math", "timeout": 0.3, "weight": 0.0, "tasks": ["math"]} | (of_math or {})]
    return score_rows(rollouts(*rows), ScoreConfig.model_validate({"rewards": rewards}))


def test_the_curves_of_right_and_wrong_answers_by_hand():
    lengths = [0, 25, 50, 100, 400]
    rows = [(answer, tokens, "math", "5", "{}") for answer in ("5", "4") for tokens in lengths]
    # right: 0.5 + 0.5 (1 + cos) / 2; wrong: -0.5 - 0.5 (1 + cos) / 2; cos(45°) = 0.70711
    quarter = (1 + math.sqrt(0.5)) / 2
    right = [1, 0.5 + 0.5 * quarter, 0.75, 0.5, 0.5]
    wrong = [-1, -0.5 - 0.5 * quarter, -0.75, -0.5, -0.5]
    assert scored(rows)["reward"].to_list() == pytest.approx(right + wrong)
    limited = scored(rows, exceeded=-10.0)["reward"].to_list()
    assert limited == pytest.approx([*right[:3], -10, -10, *wrong[:3], -10, -10])


def test_other_ends_of_the_curves():
    rows = [("5", 50, "math", "5", "{}"), ("4", 50, "math", "5", "{}")]
    ends = {"right_short": 2.0, "right_long": 1.0, "wrong_short": -10.0, "wrong_long": 0.0, "exceeded": -10.0}
    assert scored(rows, **ends)["reward"].to_list() == pytest.approx([1.5, -5])


def test_where_nobody_knows_what_is_right_there_is_no_reward():
    rows = [("2^{2^{2^{2^{2^2}}}}", 1, "math", "5", "{}"), ("5", 1, "talk", None, "{}")]
    scores = scored(rows)
    assert scores["status_cosine"].to_list() == ["error", "null"]
    assert scores["reward"].to_list() == [None, None]
    assert scores["error"][0].startswith("cosine: math gave no verdict; math: no verdict in 0.3 s")


def test_a_value_that_stands_for_a_failure_is_no_verdict():
    rows = [("2^{2^{2^{2^{2^2}}}}", 1, "math", "5", "{}")]
    scores = scored(rows, of_math={"on_failure": "value", "failure_value": 1.0})
    assert (scores["status_math"][0], scores["reward_math"][0]) == ("timeout", 1)
    assert (scores["status_cosine"][0], scores["reward_cosine"][0]) == ("error", None)


def test_it_must_name_a_reward_that_judges():
    for name in ("maths", "cosine"):
        with pytest.raises(ValidationError, match=rf"`of: {name}` names no reward that says what is right"):
            scored([], of=name)
