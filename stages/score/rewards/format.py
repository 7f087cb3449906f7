"""Reward for a completion's form."""

import re
from collections.abc import Sequence

from stages.score.mark import Item, Mark, ok
from stages.score.reward_config import FormatReward

TAGS = re.compile(r"</?(?:think|answer)>")


def judge(reward: FormatReward, items: Sequence[Item]) -> list[Mark]:
    """1 where the wanted tags come exactly once, closed, in order, with nothing outside but white space; else 0."""
    wanted = (["<think>", "</think>"] if reward.think else []) + (["<answer>", "</answer>"] if reward.answer else [])
    return [ok(float(_well_formed(item.completion.strip(), wanted))) for item in items]


def _well_formed(text: str, wanted: list[str]) -> bool:
    if TAGS.findall(text) != wanted:
        return False
    outside = re.sub(r"<(think|answer)>.*?</\1>", "", text, flags=re.DOTALL)
    return not outside.strip()
