"""The verifiers of reasoning-gym, those that are safe to run in this process."""

import math
from collections.abc import Sequence
from typing import Any

from stages.contract.errors import ConfigError
from stages.contract.progress import Progress, no_progress
from stages.score.answer import extract
from stages.score.mark import Item, Mark, error, ok
from stages.score.reward_config import ReasoningGymReward

TOLD_EVERY = 64
"""Rows between two words on the progress."""
RUN_THE_ANSWER = (
    "binary_matrix",
    "spiral_matrix",
    "string_insertion",
    "n_queens",
    "countdown",
    "puzzle24",
    "simple_integration",
    "intermediate_integration",
    "polynomial_multiplication",
)
REFUSED = dict.fromkeys(RUN_THE_ANSWER, "its verifier runs the completion as Python code")
REFUSED |= dict.fromkeys(("arc_agi", "rearc"), "its verifier calls the right answer wrong once its item was stored")
REFUSED |= {
    "coin_flip": "its verifier rewards '0' and can run for ever",
    "rubiks_cube": "its verifier can run for ever",
    "game_of_life_halting": "its verifier rewards any text",
    "complex_arithmetic": "its verifier rewards 'nan'",
    "codeio": "its verifier does not give the same answer in every process",
}


def judge(reward: ReasoningGymReward, items: Sequence[Item], progress: Progress = no_progress) -> list[Mark]:
    """The score of the family named in the item's metadata, in [0, 1].

    Raises:
        ConfigError: an item that reasoning-gym did not pose, or whose family's verifier is not to be trusted.
    """
    families = [str(item.metadata.get("source_dataset") or f"task {item.task}") for item in items]
    verifiers = {name: _verifier(name) for name in sorted(set(families))}
    marks = []
    for name, item in zip(families, items, strict=True):
        marks.append(_mark(verifiers[name], item, reward))
        if len(marks) % TOLD_EVERY == 0:
            progress(len(marks), len(items))
    return marks


def check_family(name: str) -> None:
    """Raises a `ConfigError` for a family that is unknown or whose verifier is refused."""
    import reasoning_gym.factory

    if name in REFUSED:
        raise ConfigError(
            f"reasoning-gym family {name!r} is refused as a reward: {REFUSED[name]}; choose another family"
        )
    if name not in reasoning_gym.factory.DATASETS:
        raise ConfigError(
            f"the reward reasoning_gym judges only prompts of reasoning-gym, not of {name!r}: set its `tasks`"
        )


def _verifier(name: str) -> Any:
    import reasoning_gym

    check_family(name)
    return reasoning_gym.get_score_answer_fn(name)


def _mark(verifier: Any, item: Item, reward: ReasoningGymReward) -> Mark:
    answer = extract(item.completion, reward.extract)
    if answer is None:
        return ok(0.0)
    entry = {"question": item.metadata["question"], "answer": item.answer, "metadata": item.metadata}
    try:
        score = float(verifier(answer=answer, entry=entry))
    except Exception as failure:  # of a hundred verifiers: whatever one raises is that row's error
        return error(f"reasoning-gym: {type(failure).__name__}: {failure}")
    return ok(score if reward.partial_credit or not math.isfinite(score) else float(score >= 1.0))
