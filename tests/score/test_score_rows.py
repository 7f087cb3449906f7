"""The table `scores` of a few rollouts made by hand, and what importing the configuration costs."""

import json
import subprocess
import sys

import polars as pl
import pytest
from pydantic import ValidationError

from stages.contract import tables
from stages.contract.columns import SCORES
from stages.score.by_task import by_task
from stages.score.config import ScoreConfig
from stages.score.stage import score_metrics, score_rows

SUM = json.dumps({"source_dataset": "chain_sum", "question": "40 + 2 ="})
FACTORS = json.dumps({"source_dataset": "factors", "question": "the prime factors of 6"})


def rollouts(*rows):
    """Each row: completion, its number of tokens, task, right answer, metadata."""
    return pl.DataFrame(
        {
            "prompt_id": [f"p{i // 2}" for i in range(len(rows))],
            "sample": [i % 2 for i in range(len(rows))],
            "prompt": ["What is asked."] * len(rows),
            "messages": [[{"role": "user", "content": "What is asked."}]] * len(rows),
            "format": ["chat"] * len(rows),
            "completion": [row[0] for row in rows],
            "completion_tokens": [[1] * row[1] for row in rows],
            "task": [row[2] for row in rows],
            "answer": [row[3] for row in rows],
            "metadata": [row[4] for row in rows],
        },
        schema_overrides={"completion_tokens": pl.List(pl.Int32), "answer": pl.String},
    )


ROLLOUTS = rollouts(
    ("<answer>0.5</answer>", 10, "math", "1/2", "{}"),
    ("0.5", 30, "math", "1/2", "{}"),
    (r"<answer>2^{2^{2^{2^{2^2}}}}</answer>", 10, "math", "5", "{}"),
    ("<answer>42</answer>", 20, "sums", "42", SUM),
    ("<answer>two times three</answer>", 10, "sums", "2 × 3", FACTORS),
    ("<answer>hello</answer>", 40, "talk", None, "{}"),
)
CONFIG = ScoreConfig.model_validate(
    {
        "rewards": [
            {"type": "math", "extract": "answer_tag", "tasks": ["math"], "timeout": 0.5},
            {"type": "reasoning_gym", "extract": "answer_tag", "tasks": ["sums"], "weight": 2.0},
            {"type": "format", "think": False, "weight": 0.5},
            {"type": "length", "target": 10, "limit": 30, "weight": -0.25, "name": "brevity"},
            {"type": "length", "target": 0, "limit": 40, "weight": 0.0, "name": "watched"},
        ]
    }
)


def test_a_table_of_several_rewards_by_hand(tmp_path):
    scores = score_rows(ROLLOUTS, CONFIG)
    assert scores.select("prompt_id", "sample").equals(ROLLOUTS.select("prompt_id", "sample"))
    assert scores["reward_math"].to_list() == [1, 0, None, None, None, None]
    assert scores["status_math"].to_list() == ["ok", "ok", "timeout", "null", "null", "null"]
    assert scores["reward_reasoning_gym"].to_list() == [None, None, None, 1, None, None]
    assert scores["status_reasoning_gym"].to_list() == ["null", "null", "null", "ok", "error", "null"]
    assert scores["reward_format"].to_list() == [1, 0, 1, 1, 1, 1]
    assert scores["reward_brevity"].to_list() == [1, 0, 1, 0.5, 1, 0]
    assert scores["reward_watched"].to_list() == [0.75, 0.25, 0.75, 0.5, 0.75, 0]
    # 1 + 0.5 - 0.25; 0; the math timed out; 2 + 0.5 - 0.25 / 2; the verifier raised; 0.5 alone
    assert scores["reward"].to_list() == [1.25, 0, None, 2.375, None, 0.5]
    assert scores["extracted"].to_list() == ["0.5", None, "2^{2^{2^{2^{2^2}}}}", "42", "two times three", None]
    assert scores["error"].is_null().to_list() == [True, True, False, True, False, True]
    assert scores["error"][2] == "math: no verdict in 0.5 s"
    assert scores["error"][4].startswith("reasoning_gym: LookupError: reasoning-gym has no family 'factors'")
    tables.write(tmp_path / "scores.parquet", scores, SCORES)
    assert tables.read(tmp_path / "scores.parquet", SCORES).equals(scores)


def test_means_are_over_the_rows_that_have_a_reward_and_failures_are_counted():
    metrics = score_metrics(score_rows(ROLLOUTS, CONFIG), CONFIG)
    assert metrics["reward_mean"] == pytest.approx((1.25 + 0 + 2.375 + 0.5) / 4)
    assert (metrics["rows"], metrics["failed"]) == (6, 2)
    assert (metrics["math_mean"], metrics["math_timeout"], metrics["math_null"]) == (0.5, 1, 3)
    assert (metrics["reasoning_gym_error"], metrics["format_mean"]) == (1, pytest.approx(5 / 6))


def test_a_row_that_no_reward_judges_has_no_reward():
    config = ScoreConfig.model_validate({"rewards": [{"type": "format", "tasks": ["math"]}]})
    scores = score_rows(ROLLOUTS, config)
    assert scores["reward"].to_list() == [0, 0, 0, None, None, None]
    assert scores["error"].null_count() == 6
    assert scores["extracted"].null_count() == 6


def test_tasks_are_chosen_by_name_or_pattern():
    config = ScoreConfig.model_validate({"rewards": [{"type": "format", "tasks": ["m*", "tal[jk]"]}]})
    assert score_rows(ROLLOUTS, config)["status_format"].to_list() == ["ok", "ok", "ok", "null", "null", "ok"]


def test_no_rollouts_give_an_empty_table_with_all_its_columns():
    scores = score_rows(ROLLOUTS.head(0), CONFIG)
    assert scores.height == 0
    assert set(score_rows(ROLLOUTS, CONFIG).columns) == set(scores.columns)


def test_two_rewards_of_one_name_are_refused():
    with pytest.raises(ValidationError, match="two rewards are named 'format': give one of them a `name`"):
        ScoreConfig.model_validate({"rewards": [{"type": "format"}, {"type": "format", "weight": 0.5}]})


@pytest.mark.parametrize("module", ["stages.score.config", "stages.score.rewards", "stages.score.stage"])
def test_importing_loads_no_verifier_no_torch_and_no_flows(module):
    heavy = ("torch", "transformers", "math_verify", "sympy", "reasoning_gym", "pebble", "prefect")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_each_task_earned_by_hand():
    config = ScoreConfig.model_validate(
        {
            "rewards": [
                {"type": "format", "think": False},
                {"type": "length", "target": 10, "limit": 30, "tasks": ["math"]},
            ]
        }
    )
    scores = score_rows(ROLLOUTS, config)
    assert by_task(ROLLOUTS["task"], scores) == [
        {"task": "math", "completions": 3, "no reward": 0, "reward": 4 / 3, "format": 2 / 3, "length": 2 / 3},
        {"task": "sums", "completions": 2, "no reward": 0, "reward": 1.0, "format": 1.0, "length": None},
        {"task": "talk", "completions": 1, "no reward": 0, "reward": 1.0, "format": 1.0, "length": None},
    ]
    nothing = score_rows(ROLLOUTS, ScoreConfig.model_validate({"rewards": [{"type": "format", "tasks": ["math"]}]}))
    assert [row["no reward"] for row in by_task(ROLLOUTS["task"], nothing)] == [0, 2, 1]
