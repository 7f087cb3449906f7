"""What becomes of rows whose rewards failed, and which verdicts are kept when these are judged once more. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl
from pydantic import TypeAdapter, ValidationError

from stages.contract.config import deciding
from stages.contract.errors import ConfigError
from stages.score.reward_config import STEPWISE, CosineReward, PythonReward, Reward, RewardConfig, reward_name
from stages.score.verdict import Mark

FAILED = ("timeout", "error")
DECIDES_NO_VERDICT = {"weight", "on_failure", "failure_value", "timeout", "wall_seconds"}
"""Fields that may have changed since a verdict that is kept."""


def settled(mark: Mark, reward: RewardConfig) -> Mark:
    """A failed mark with the value that the configuration states for it; its status still says what happened."""
    if mark.status in FAILED and reward.on_failure == "value":
        return replace(mark, value=reward.failure_value)
    return mark


def excluded_groups(
    marks: Mapping[str, Sequence[Mark]], rewards: Sequence[RewardConfig], groups: Sequence[str]
) -> dict[str, str]:
    """The groups that are left out as a whole, each with the name of the reward that failed in it."""
    out: dict[str, str] = {}
    for reward in rewards:
        if reward.on_failure == "exclude_group" and reward.weight != 0:
            name = reward_name(reward)
            for group, mark in zip(groups, marks[name], strict=True):
                if mark.status in FAILED:
                    out.setdefault(group, name)
    return out


def kept(reward: Reward, former: pl.DataFrame) -> list[Mark | None]:
    """The verdicts of a former table of scores, in its order; None for those that are judged once more.

    These are the failed ones, with all that a function is given at once with them; of a reward that judges steps all,
    since a table does not say which step earned what, and of one that depends on another's verdict.
    """
    name = reward_name(reward)
    if isinstance(reward, (*STEPWISE, CosineReward)):
        return [None] * former.height
    notes = former[f"note_{name}"] if f"note_{name}" in former.columns else pl.Series([None] * former.height)
    calls: list[Any] = list(range(former.height))
    if isinstance(reward, PythonReward) and reward.signature == "trl" and reward.at_once != "row":
        calls = former["prompt_id"].to_list() if reward.at_once == "group" else [0] * former.height
    again = {call for call, status in zip(calls, former[f"status_{name}"], strict=True) if status in FAILED}
    rows = zip(calls, former[f"status_{name}"], former[f"reward_{name}"], notes, strict=True)
    return [None if call in again else Mark(value, status, note=note) for call, status, value, note in rows]


def check_comparable(rewards: Sequence[Reward], former: Sequence[Mapping[str, Any]]) -> None:
    """Says whether verdicts of the former rewards, as a manifest has them, are those of these rewards.

    Raises:
        ConfigError: they would have judged otherwise.
    """
    try:
        known = {reward_name(reward): reward for reward in TypeAdapter(tuple[Reward, ...]).validate_python(former)}
    except ValidationError:
        known = {}
    for reward in rewards:
        name = reward_name(reward)
        if name not in known or _verdict(known[name]) != _verdict(reward):
            raise ConfigError(
                f"the reward {name!r} was configured otherwise when the iteration was scored, so that its verdicts "
                "cannot be kept: run the stage without --only-failed"
            )


def _verdict(reward: Reward) -> dict[str, Any]:
    return {name: value for name, value in deciding(reward).items() if name not in DECIDES_NO_VERDICT}
