"""The cosine length reward of "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv:2502.03373, section 4)."""

import math
from collections.abc import Sequence

from stages.score.reward_config import CosineReward
from stages.score.verdict import Item, Mark, error, null, ok


def judge(reward: CosineReward, items: Sequence[Item], verdicts: Sequence[Mark]) -> list[Mark]:
    """`long + (short - long) (1 + cos(pi tokens / limit)) / 2`, by whether the answer is right.

    Args:
        reward: the ends of the curve.
        items: completions.
        verdicts: the marks that say whether their answers are right: a 1. Where one does not apply or failed, there is
            none here either.
    """
    return [
        _mark(reward, item.tokens, verdict) if reward.judges(item.task) else null()
        for item, verdict in zip(items, verdicts, strict=True)
    ]


def _mark(reward: CosineReward, tokens: int, verdict: Mark) -> Mark:
    if verdict.status == "null":
        return null()
    if verdict.value is None or verdict.status != "ok":  # the value of a failed one is the configuration's
        return error(f"{reward.of} gave no verdict")
    if reward.exceeded is not None and tokens >= reward.limit:
        return ok(reward.exceeded)
    right = verdict.value >= 1.0
    short, long = (reward.right_short, reward.right_long) if right else (reward.wrong_short, reward.wrong_long)
    return ok(long + (short - long) * (1 + math.cos(math.pi * min(1.0, tokens / reward.limit))) / 2)
