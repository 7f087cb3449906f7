r"""Equality of mathematical answers: cheap and exact first, math-verify for the rest.

math-verify runs in worker processes with a limit of time and memory for each row, because an answer such as `9^9^9`
would hold it for ever. Its false positives that are known are closed before it is asked.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from stages.contract.errors import DataError
from stages.score.answer import boxed, extract
from stages.score.config import MathReward
from stages.score.mark import Item, Mark, ok
from stages.score.pool import run_limited

NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?|[+-]?\.\d+")
FRACTION = re.compile(r"([+-]?)(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|(\d+)\s*/\s*(\d+))")
Pair = tuple[str, str | None]
"""The right answer and the one that was found."""
LONGEST = 1000
"""Characters of an answer that is looked at; longer ones are wrong."""


def judge(reward: MathReward, items: Sequence[Item]) -> list[Mark]:
    """1 where the answers are equal, else 0; `timeout` and `error` where math-verify gave no verdict.

    Raises:
        DataError: an item without a right answer.
    """
    if any(item.answer is None for item in items):
        raise DataError("the reward math needs prompts with answers: set prompts.source.answer_field, or `tasks`")
    found = [extract(item.completion, reward.extract) for item in items]
    pairs: list[Pair] = [
        (clean(str(item.answer)), None if answer is None else clean(answer))
        for item, answer in zip(items, found, strict=True)
    ]
    marks: list[Mark | None] = [None if verdict is None else ok(float(verdict)) for verdict in map(_exact, pairs)]
    asked = [i for i, mark in enumerate(marks) if mark is None]
    for i, mark in zip(asked, run_limited(_verify, [pairs[i] for i in asked], reward.timeout, _warm), strict=True):
        marks[i] = mark
    return [mark for mark in marks if mark is not None]


def clean(text: str) -> str:
    r"""The bare expression: out of `\boxed{…}`, dollar signs, white space and a closing full stop; thousands joined."""
    text = (boxed(text) or text).strip().strip("$").strip().removesuffix(".")
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)


def number(text: str) -> Fraction | None:
    r"""The exact value of a plain integer, decimal or fraction (`1/2`, `\frac{1}{2}`)."""
    if NUMBER.fullmatch(text):
        return Fraction(text)
    if found := FRACTION.fullmatch(text):
        sign, *parts = found.groups()
        above, below = (int(part) for part in parts if part is not None)
        return None if below == 0 else Fraction(above, below) * (-1 if sign == "-" else 1)
    return None


def _exact(pair: Pair) -> bool | None:
    """The verdict where none but exact means are needed; None where math-verify has to be asked."""
    gold, answer = pair
    if answer is None or len(answer) > LONGEST:
        return False
    if gold == answer:
        return True
    values = number(gold), number(answer)
    if None not in values:
        return values[0] == values[1]
    if values[0] is not None and re.search(
        r"[=,%{};]|\\%|[A-Za-z]{3,} ", re.sub(r"\\[a-zA-Z]+\{?|(?<=\w)\}", "", answer)
    ):
        return False  # an equation, a set, a percentage or a sentence is not the number it contains
    if _kind(gold) != _kind(answer):
        return False  # a set is no tuple
    return None


def _kind(text: str) -> str:
    opening = text.removeprefix(r"\left")[:2]
    return {"(": "tuple", "[": "interval", "{": "set", "\\": "set" if opening == r"\{" else "other"}.get(
        opening[:1], "other"
    )


def _warm() -> None:
    import math_verify  # noqa: F401 - for its import alone


def _verify(pair: Pair) -> float:
    """Asks math-verify; runs in a worker process. Its own time limits are off: they count wall time by a signal."""
    from math_verify import parse, verify

    gold, answer = (parse(f"${text}$", parsing_timeout=None) for text in pair)
    return float(verify(gold, answer, timeout_seconds=None))
