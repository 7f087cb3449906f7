"""Rewards for the steps of a calculation, one for each line that states an equation."""

from collections.abc import Sequence

from stages.score.answers.arithmetic import holds, lines
from stages.score.reward_config import EquationsReward
from stages.score.verdict import Item, Mark, stepwise


def judge(reward: EquationsReward, items: Sequence[Item]) -> list[Mark]:
    """For each line with an equation `right` where it holds, else `wrong`; the completion's reward is their sum.

    A line whose equation cannot be read, or that has none, is no step.
    """
    return [stepwise(_steps(reward, item.completion)) for item in items]


def _steps(reward: EquationsReward, completion: str) -> list[tuple[int, float]]:
    judged = [(end, holds(line)) for end, line in lines(completion, reward.separator) if line]
    return [(end, reward.right if held else reward.wrong) for end, held in judged if held is not None]
