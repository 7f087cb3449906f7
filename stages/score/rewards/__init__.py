"""The rewards, one file each. `judge` gives one reward's marks for all rows."""

from collections.abc import Sequence
from typing import assert_never

from stages.contract.progress import Progress, no_progress
from stages.score.reward_config import (
    CodeReward,
    CosineReward,
    EquationsReward,
    FormatReward,
    JudgeReward,
    LanguageReward,
    LengthReward,
    MathReward,
    OverlongReward,
    PythonReward,
    ReasoningGymReward,
    RepetitionReward,
    Reward,
    RewardModelReward,
)
from stages.score.rewards import (
    code,
    equations,
    language,
    length,
    math,
    overlong,
    python,
    reasoning_gym,
    repetition,
    reward_model,
)
from stages.score.rewards import format as format_reward
from stages.score.rewards import judge as judge_reward
from stages.score.verdict import Item, Mark, null


def judge(
    reward: Reward,
    items: Sequence[Item],
    device: str = "cpu",
    progress: Progress = no_progress,
    iteration: int = 0,
) -> list[Mark]:
    """A mark for each item, in order; items of tasks that the reward does not judge get status `null`.

    Args:
        reward: what judges.
        items: completions.
        device: where a reward that is a model computes: `cpu`, `cuda`.
        progress: told of items that have their mark.
        iteration: of which the items are.
    """
    mine = [i for i, item in enumerate(items) if reward.judges(item.task)]
    marks = [null() for _ in items]
    for i, mark in zip(mine, _judge(reward, [items[i] for i in mine], device, progress, iteration), strict=True):
        marks[i] = mark
    progress(len(items), len(items))
    return marks


def _judge(  # noqa: PLR0911, PLR0912 - one a kind
    reward: Reward, items: Sequence[Item], device: str, progress: Progress, iteration: int
) -> list[Mark]:
    match reward:
        case ReasoningGymReward():
            return reasoning_gym.judge(reward, items, progress)
        case MathReward():
            return math.judge(reward, items, progress)
        case FormatReward():
            return format_reward.judge(reward, items, progress)
        case LengthReward():
            return length.judge(reward, items)
        case CosineReward():
            raise AssertionError("it is shaped from the marks of another reward, which an item does not hold")
        case RepetitionReward():
            return repetition.judge(reward, items)
        case LanguageReward():
            return language.judge(reward, items)
        case OverlongReward():
            return overlong.judge(reward, items)
        case EquationsReward():
            return equations.judge(reward, items)
        case PythonReward():
            return python.judge(reward, items, iteration, progress)
        case JudgeReward():
            return judge_reward.judge(reward, items, progress)
        case RewardModelReward():
            return reward_model.judge(reward, items, device, progress)
        case CodeReward():
            return code.judge(reward, items, progress)
        case _:
            assert_never(reward)
