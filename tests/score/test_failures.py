"""What becomes of rows whose rewards failed, by the configuration; and which of them are judged once more."""

import polars as pl
import pytest

from stages.contract.errors import ConfigError
from stages.score.config import ScoreConfig
from stages.score.failures import check_comparable
from stages.score.stage import score_rows
from tests.score.test_score_rows import rollouts

HANGS = "2^{2^{2^{2^{2^2}}}}"
TWO_GROUPS = rollouts(
    ("5", 1, "math", "5", "{}"),
    (HANGS, 1, "math", "5", "{}"),
    ("4", 2, "math", "5", "{}"),
    ("5", 2, "math", "5", "{}"),
)


def configured(rewards=(), **policy):
    first = {"type": "math", "timeout": 0.3} | policy
    return ScoreConfig.model_validate({"rewards": [first, {"type": "length", "target": 1, "limit": 3}, *rewards]})


@pytest.mark.parametrize(
    ("policy", "rewards", "in_column"),
    [
        ({}, [2, None, 0.5, 1.5], None),
        ({"on_failure": "exclude_row"}, [2, None, 0.5, 1.5], None),
        ({"on_failure": "exclude_group"}, [None, None, 0.5, 1.5], None),
        ({"on_failure": "value"}, [2, 1, 0.5, 1.5], 0),
        ({"on_failure": "value", "failure_value": -1.0}, [2, 0, 0.5, 1.5], -1),
        ({"on_failure": "exclude_group", "weight": 0.0}, [1, 1, 0.5, 0.5], None),
    ],
)
def test_a_row_that_failed_is_left_out_or_its_group_is_or_a_stated_value_counts(policy, rewards, in_column):
    scores = score_rows(TWO_GROUPS, configured(**policy))
    assert scores["reward"].to_list() == rewards
    assert scores["status_math"].to_list() == ["ok", "timeout", "ok", "ok"]
    assert scores["reward_math"].to_list() == [1, in_column, 0, 1]
    assert scores["error"][1] == "math: no verdict in 0.3 s"
    excluded = policy.get("on_failure") == "exclude_group" and policy.get("weight") is None
    assert scores["error"].to_list()[::2] == ["math: failed in its group" if excluded else None, None]


def test_only_what_failed_is_judged_once_more():
    config = configured([{"type": "equations", "separator": ";"}])
    former = score_rows(TWO_GROUPS, config)
    # Other completions: what is kept shows that it was not judged again, what had failed is judged by the new one.
    answers = ["0", "5", "0", "0"]
    later = TWO_GROUPS.with_columns(pl.Series("completion", answers))
    scores = score_rows(later, config, former=former.reverse())
    assert scores["reward_math"].to_list() == [1, 1, 0, 1]
    assert scores["status_math"].to_list() == ["ok"] * 4
    assert scores["error"].null_count() == 4
    assert scores["reward"].to_list() == [2, 2, 0.5, 1.5]
    again = score_rows(TWO_GROUPS, config, former=former)
    assert again.equals(former)


def test_verdicts_are_kept_where_only_weight_limits_and_the_policy_for_failures_changed():
    former = configured().model_dump(mode="json")["rewards"]
    same = configured(weight=0.5, timeout=60.0, on_failure="value", failure_value=-1.0)
    check_comparable(same.rewards, former)
    code = [{"type": "code"}, {"type": "code", "wall_seconds": 120.0}, {"type": "code", "seconds": 8}]
    later, more = (ScoreConfig.model_validate({"rewards": [reward]}).rewards for reward in code[1:])
    check_comparable(later, code[:1])
    with pytest.raises(ConfigError, match="'code' was configured otherwise"):  # then a program was wrong, not late
        check_comparable(more, code[:1])
    check_comparable(configured().rewards, [{"type": "math"}, {"type": "length", "target": 1, "limit": 3}])
    for other in (configured(extract="boxed"), configured([{"type": "format"}]), configured(name="mathematics")):
        with pytest.raises(ConfigError, match=r"was configured otherwise .* run the stage without --only-failed"):
            check_comparable(other.rewards, former)
    with pytest.raises(ConfigError, match="the reward 'math' was configured otherwise"):
        check_comparable(configured().rewards, [{"type": "of another version"}])
