"""Penalty for repetition: the n-gram penalty of open-r1, which follows arXiv:2502.03373."""

from collections.abc import Sequence

from stages.score.reward_config import RepetitionReward
from stages.score.verdict import Item, Mark, ok


def judge(reward: RepetitionReward, items: Sequence[Item]) -> list[Mark]:
    """`penalty (1 - distinct n-grams / n-grams)`: 0 where none comes twice, or where there is none."""
    return [ok(reward.penalty * _repeated(_units(reward, item), reward.ngram)) for item in items]


def _units(reward: RepetitionReward, item: Item) -> Sequence[object]:
    return item.completion.lower().split() if reward.unit == "words" else item.token_ids


def _repeated(units: Sequence[object], n: int) -> float:
    grams = list(zip(*(units[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
