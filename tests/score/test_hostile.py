"""Each reward that needs no service, on texts made to break it: they get a status, the rows beside them are right."""

import math

import pytest
from pydantic import TypeAdapter

from stages.score.reward_config import Reward
from stages.score.rewards import judge
from stages.score.verdict import Item

HOSTILE = [
    "",
    " \n",
    "\x00",
    "5\x00",
    "\ud800",
    "5\ud800",
    "9^9^9^9",
    "10**10**10",
    "1000000!",
    "(" * 400 + "1" + ")" * 400,
    "{" * 50_000 + "}" * 50_000,
    "[" * 100_000,
    "<answer>" * 12_500,
    "<think></think><answer>" * 4_000,
    r"\boxed{" * 14_000,
    "+=" * 50_000,
    "9" * 100_000,
    "a" * 60,
    "a " * 50_000,
    "é́" * 40_000,
    "🙂‍↔️" * 20_000,
]
FINE = "<think>4 and 1</think><answer>4 + 1 = 5</answer>"
CHAIN = {"source_dataset": "chain_sum", "question": "4 + 1 =", "difficulty": {}}
WANTED = [
    ({"type": "math", "extract": "last_number", "timeout": 1.0}, 1.0),
    ({"type": "reasoning_gym", "extract": "last_number", "timeout": 1.0}, 1.0),
    ({"type": "format"}, 1.0),
    ({"type": "format", "think": False, "answer": False, "pattern": r"(a+ ?)+b|<think>.*", "timeout": 0.5}, 1.0),
    ({"type": "length", "target": 10, "limit": 20}, 1.0),
    ({"type": "overlong", "limit": 20, "cache": 10}, 0.0),
    ({"type": "repetition"}, 0.0),
    ({"type": "language", "scripts": ["latin"], "unit": "letters"}, 1.0),
    ({"type": "equations"}, 1.0),
]


@pytest.mark.parametrize(("settings", "wanted"), WANTED, ids=lambda part: str(part)[:60])
def test_each_ends_with_a_status_and_the_rows_beside_it_are_right(settings, wanted):
    reward = TypeAdapter(Reward).validate_python(settings)
    texts = [FINE, *HOSTILE, FINE]
    marks = judge(reward, [Item(text, 8, "reasoning_gym/chain_sum", "5", CHAIN) for text in texts])
    assert [mark.value for mark in (marks[0], marks[-1])] == [wanted, wanted]
    for text, mark in zip(texts, marks, strict=True):
        assert (mark.value is not None and math.isfinite(mark.value)) == (mark.status == "ok"), text[:20]
        assert bool(mark.message) == (mark.status in ("timeout", "error")), text[:20]
        str(mark.message).encode("utf-8")  # a table can hold it
