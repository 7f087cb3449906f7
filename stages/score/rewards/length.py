"""Reward for brevity."""

from collections.abc import Sequence

from stages.score.mark import Item, Mark, ok
from stages.score.reward_config import LengthReward


def judge(reward: LengthReward, items: Sequence[Item]) -> list[Mark]:
    """1 up to `target` tokens, then linearly down to 0 at `limit`."""
    span = reward.limit - reward.target
    return [ok(min(1.0, max(0.0, (reward.limit - item.tokens) / span))) for item in items]
