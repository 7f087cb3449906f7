"""Reward for brevity."""

from collections.abc import Sequence

from stages.score.reward_config import LengthReward
from stages.score.verdict import Item, Mark, ok


def judge(reward: LengthReward, items: Sequence[Item]) -> list[Mark]:
    """1 up to `target` tokens, or with `exact` just there, then linearly down to 0 at `limit`."""
    span = reward.limit - reward.target
    return [ok(max(0.0, (span - _beyond(reward, item.tokens)) / span)) for item in items]


def _beyond(reward: LengthReward, tokens: int) -> int:
    """Tokens by which a completion misses what is wanted."""
    return abs(tokens - reward.target) if reward.exact else max(0, tokens - reward.target)
