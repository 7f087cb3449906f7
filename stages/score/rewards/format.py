"""Reward for a completion's form."""

import re
from collections.abc import Sequence

from stages.contract.progress import Progress, no_progress, part_of
from stages.score.reward_config import FormatReward
from stages.score.verdict import Item, Mark, ok
from stages.score.workers.pool import run_limited

Match = tuple[str, str]
"""A regular expression and a text."""


def judge(reward: FormatReward, items: Sequence[Item], progress: Progress = no_progress) -> list[Mark]:
    """1 where the wanted tags come exactly once, closed, in order, with nothing outside but white space; else 0.

    Where there is a regular expression, it must match too. It runs in a worker, since it may take for ever.
    """
    texts = [(f"<{reward.think_tag}>" if reward.opened else "") + item.completion.strip() for item in items]
    formed = [_well_formed(text, reward) for text in texts]
    if reward.pattern is None:
        return [ok(float(well)) for well in formed]
    asked = [(reward.pattern, item.completion) for item, well in zip(items, formed, strict=True) if well]
    told = part_of(progress, len(items) - len(asked), len(items))
    matched = iter(run_limited(match, asked, reward.timeout, nothing, told))
    return [next(matched) if well else ok(0.0) for well in formed]


def match(asked: Match) -> float:
    """Whether the whole text matches; runs in a worker process."""
    pattern, text = asked
    return float(re.fullmatch(pattern, text, re.DOTALL) is not None)


def nothing() -> None:
    """Nothing to import."""


def _well_formed(text: str, reward: FormatReward) -> bool:
    names = [reward.think_tag] * reward.think + [reward.answer_tag] * reward.answer
    wanted = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
    either = f"{reward.think_tag}|{reward.answer_tag}"
    if not wanted and reward.pattern is not None:
        return True
    if re.findall(f"</?(?:{either})>", text) != wanted:
        return False
    outside = re.sub(rf"<({either})>.*?</\1>", "", text, flags=re.DOTALL)
    return not outside.strip()
