"""DAPO's soft overlong punishment (arXiv:2503.14476, equation 13)."""

from collections.abc import Sequence

from stages.score.reward_config import OverlongReward
from stages.score.verdict import Item, Mark, ok


def judge(reward: OverlongReward, items: Sequence[Item]) -> list[Mark]:
    """0 up to `limit - cache` tokens, then linearly down to -1 at `limit`, and -1 beyond."""
    return [ok(max(-1.0, min(0.0, (reward.limit - reward.cache - item.tokens) / reward.cache))) for item in items]
