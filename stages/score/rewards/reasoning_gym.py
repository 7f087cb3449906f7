"""The verifiers of reasoning-gym, in worker processes with limits of time and memory for each answer.

No answer is run as code. Where a verifier would, it is given literals and plain expressions only, or our own exact
arithmetic stands in for it. Scores that are no merit are taken away: reasoning-gym gives part of the credit to a text
that merely holds the right answer, and some of its verifiers give a little to any text.
"""

import ast
import functools
import importlib
import math
import re
from collections.abc import Sequence
from typing import Any

from stages.contract.errors import ConfigError
from stages.contract.progress import Progress, no_progress, part_of
from stages.score.answers.arithmetic import value
from stages.score.answers.extract import extract
from stages.score.answers.latex import clean, number
from stages.score.reward_config import ReasoningGymReward
from stages.score.verdict import Item, Mark, ok
from stages.score.workers.pool import run_limited

Asked = tuple[str, str, dict[str, Any]]
"""Family, answer, and reasoning-gym's entry."""
REFUSED = {
    "coin_flip": "its verifier rewards '0' wherever the chance is small, and can run for long",
    "game_of_life_halting": "its verifier rewards any text",
    "complex_arithmetic": "its verifier rewards 'nan'",
    "codeio": "its problems are not the same in every process",
}
EVALUATED = {
    "binary_matrix": "reasoning_gym.algorithmic.binary_matrix",
    "spiral_matrix": "reasoning_gym.algorithmic.spiral_matrix",
    "string_insertion": "reasoning_gym.algorithmic.string_insertion",
    "n_queens": "reasoning_gym.games.n_queens",
}
"""Families whose verifiers run the answer by `eval`, and the modules in which they do."""
PARSED = ("simple_integration", "intermediate_integration", "polynomial_multiplication")
"""Families whose verifiers give the answer to sympy, which runs it."""
COUNTED = {"countdown": "target", "puzzle24": None}
"""Families that ask for a sum of given numbers, judged here; where the metadata has the value that is wanted."""
BOARDS = ("arc_agi", "rearc")
"""Families whose verifiers compare with tuples, which a stored item has no more."""
FORMS = {"prime_factorization": "2 × 3", "game_of_life": "[]", "boxnet": "[]"}
"""Families whose verifiers raise where an answer has not the form that was asked for, with an answer of that form."""
FUNCTIONS = "exp|log|ln|sqrt|a?(?:sin|cos|tan|cot|sec|csc)h?|erf|pi|Abs"
EXPRESSION = re.compile(rf"(?:(?:{FUNCTIONS}|[a-zA-Z])(?![\w.])|\d+(?:\.\d*)?(?![\w.])|\.\d+(?![\w.])|[-+*/^(),\s])+")
"""Numbers, variables of one letter, functions and operators: nothing by which text could do more than compute."""
NUMBER = re.compile(r"\d+(?:\.\d+)?")
LONGEST = 200
"""Characters of a sum that is looked at; a longer one is wrong."""
FLOOR = 0.05
"""What some verifiers give to any text; it counts as nothing."""


def judge(reward: ReasoningGymReward, items: Sequence[Item], progress: Progress = no_progress) -> list[Mark]:
    """The score of the family named in the item's metadata, in [0, 1].

    Raises:
        ConfigError: an item that reasoning-gym did not pose, or whose family's verifier is not to be trusted.
    """
    for item in items:
        if "source_dataset" not in item.metadata or "question" not in item.metadata:
            raise ConfigError(
                f"the reward reasoning_gym judges only prompts of reasoning-gym, not of task {item.task!r}: set its "
                "`tasks`"
            )
    for family in sorted({str(item.metadata["source_dataset"]) for item in items}):
        _check_trusted(family, reward.trust)
    alike: dict[tuple[str, str | None], list[int]] = {}  # equal answers to one prompt are judged once
    for i, item in enumerate(items):
        alike.setdefault((item.prompt_id or str(i), extract(item.completion, reward.extract)), []).append(i)
    asked: dict[tuple[str, str | None], Asked] = {}
    for key, (first, *_) in alike.items():
        item, (_, answer) = items[first], key
        family = str(item.metadata["source_dataset"])
        if answer is not None and (family in COUNTED or _as_plain(item.answer, answer)):
            asked[key] = family, answer, _entry(item)
    told = part_of(progress, len(items) - len(asked), len(items))
    scores = run_limited(verify, list(asked.values()), reward.timeout, warm, told)
    marks = [ok(0.0)] * len(items)
    for (key, (_, answer, entry)), mark in zip(asked.items(), scores, strict=True):
        earned = _earned(mark, answer, entry["answer"], reward.partial_credit)
        for i in alike[key]:
            marks[i] = earned
    return marks


def check_family(name: str, trust: Sequence[str] = ()) -> None:
    """Raises a `ConfigError` for a family that is unknown, or whose verifier is refused and not in `trust`."""
    import reasoning_gym.factory

    _check_trusted(name, trust)
    if name not in reasoning_gym.factory.DATASETS:
        raise ConfigError(
            f"the reward reasoning_gym judges only prompts of reasoning-gym, not of {name!r}: set its `tasks`"
        )


def _check_trusted(name: str, trust: Sequence[str]) -> None:
    if name in REFUSED and name not in trust:
        raise ConfigError(
            f"reasoning-gym family {name!r} is refused as a reward: {REFUSED[name]}; choose another family, or insist "
            f"by the reward's `trust: [{name}]`"
        )


def _entry(item: Item) -> dict[str, Any]:
    return {"question": item.metadata["question"], "answer": item.answer, "metadata": item.metadata}


def _as_plain(gold: str | None, answer: str) -> bool:
    """False for a text that merely holds a number where the right answer is one: some verifiers search for it."""
    if gold is None or number(clean(str(gold))) is None:
        return True
    return answer.strip() == str(gold).strip() or number(clean(answer)) is not None


def _earned(mark: Mark, answer: str, gold: str | None, partial_credit: bool) -> Mark:
    """The score without what is no merit."""
    if mark.value is None or mark.value == 1.0:
        return mark
    holds_gold = bool(gold) and str(gold) in answer and math.isclose(mark.value, len(str(gold)) / len(answer))
    return ok(mark.value if partial_credit and mark.value > FLOOR and not holds_gold else 0.0)


def warm() -> None:
    """Imports reasoning-gym, and takes `eval` from the verifiers that would run an answer by it."""
    import reasoning_gym  # noqa: F401

    for module in EVALUATED.values():
        importlib.import_module(module).__dict__["eval"] = ast.literal_eval


def verify(asked: Asked) -> float:
    """The verifier's score; runs in a worker process.

    Raises:
        LookupError: a family that this reasoning-gym does not have.
    """
    family, answer, entry = asked
    if family in COUNTED:
        return float(_counts(family, answer, entry["metadata"]))
    if family in PARSED and not EXPRESSION.fullmatch(answer):
        return 0.0
    if family in BOARDS:
        output = tuple(tuple(row) for row in entry["metadata"]["output"])
        entry = entry | {"metadata": entry["metadata"] | {"output": output}}
    try:
        return float(_verifier(family)(answer=answer, entry=entry))
    except (ValueError, TypeError, AttributeError, LookupError):
        if family not in FORMS:
            raise
        _verifier(family)(answer=FORMS[family], entry=entry)  # raises too where the entry is what is wrong
        return 0.0  # the answer is, which is no failure


def _counts(family: str, answer: str, metadata: dict[str, Any]) -> bool:
    """Whether a sum uses each of the given numbers once and has the value that is wanted, exactly."""
    if len(answer) > LONGEST:
        return False
    target = COUNTED[family]
    given = sorted(float(number) for number in metadata["numbers"])
    used = sorted(float(number) for number in NUMBER.findall(answer))
    return used == given and value(answer) == (metadata[target] if target else 24)


@functools.cache
def _verifier(family: str) -> Any:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if family not in DATASETS:
        raise LookupError(f"reasoning-gym has no family {family!r}")
    return reasoning_gym.get_score_answer_fn(family)
