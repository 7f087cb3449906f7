r"""Equality of mathematical answers: cheap and exact first, math-verify for the rest.

math-verify runs in worker processes with a limit of time and memory for each row, because an answer such as `9^9^9`
would hold it for ever. It reads the answer as one expression and never searches a text for one; what it would wrongly
take for equal is decided before it is asked.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from stages.contract.errors import DataError
from stages.contract.progress import Progress, no_progress, part_of
from stages.score.answers.extract import extract
from stages.score.answers.latex import Pair, clean, comparable, number, tight
from stages.score.reward_config import MathReward
from stages.score.verdict import Item, Mark, ok
from stages.score.workers.pool import run_limited


def judge(reward: MathReward, items: Sequence[Item], progress: Progress = no_progress) -> list[Mark]:
    """1 where the answers are equal, else 0; `timeout` and `error` where math-verify gave no verdict.

    Raises:
        DataError: an item without a right answer.
    """
    if (bare := next((item for item in items if item.answer is None), None)) is not None:
        raise DataError(
            f"the reward math needs prompts with answers, and {bare.prompt_id!r} of task {bare.task!r} has none: set "
            "prompts.source.answer_field, or the reward's `tasks`"
        )
    marks: list[Mark | None] = [None] * len(items)
    asked: dict[Pair, list[int]] = {}
    for i, item in enumerate(items):
        found = extract(item.completion, reward.extract)
        pair = comparable(clean(str(item.answer)), clean(found)) if found else None
        if pair is None or tight(pair[0]) == tight(pair[1]):
            marks[i] = ok(float(pair is not None))
        elif None not in (values := [number(text) for text in pair]):
            marks[i] = ok(float(values[0] == values[1]))
        else:
            asked.setdefault(pair, []).append(i)
    told = part_of(progress, len(items) - len(asked), len(items))
    verdicts = run_limited(verify, list(asked), reward.timeout, warm, told)
    for places, mark in zip(asked.values(), verdicts, strict=True):
        for i in places:
            marks[i] = mark
    return [mark for mark in marks if mark is not None]


def warm() -> None:
    """Imports math-verify and runs it once, for the first call of a process is slow."""
    import logging

    logging.disable(logging.WARNING)
    verify(("x+1", "1+x"))


def verify(pair: Pair) -> float:
    """Asks math-verify; runs in a worker process. Its own time limits are off: they count wall time by a signal.

    Raises:
        ValueError: the right answer cannot be parsed, so that no answer but its own text can be called right.
    """
    import math_verify

    gold, answer = (_parsed(text) for text in pair)
    if not gold:
        raise ValueError(f"math-verify cannot parse the right answer {pair[0]!r}")
    return float(math_verify.verify(list(gold), list(answer), timeout_seconds=None))


@lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[Any, ...]:
    """What math-verify reads; the same right answer is compared with many."""
    import math_verify
    from latex2sympy2_extended import NormalizationConfig

    spelling = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
    latex = math_verify.LatexExtractionConfig(boxed_match_priority=-1, normalization_config=spelling)
    return tuple(math_verify.parse(f"${text}$", [latex], fallback_mode="no_fallback", parsing_timeout=None))
