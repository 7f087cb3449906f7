"""Consistency of language, as DeepSeek-R1 rewards it (arXiv:2501.12948, 2.3.2): the share of words in the wanted one.

It looks at scripts, not at languages: it tells Chinese from English, and cannot tell French from English, Japanese in
Chinese characters from Chinese, or a word from nonsense in the same letters.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from stages.score.reward_config import LanguageReward
from stages.score.verdict import Item, Mark, null, ok

FORMULA = re.compile(r"\$[^$]*\$|`[^`]*`|\\[A-Za-z]+|<[^<>]*>")
PAIRS = ((r"\(", r"\)"), (r"\[", r"\]"))
"""What opens and closes a formula beside dollar signs."""


def judge(reward: LanguageReward, items: Sequence[Item]) -> list[Mark]:
    """The share of the words, or letters, of a completion that are in the wanted scripts; `null` where it has none."""
    return [_mark(reward, item.completion if reward.formulas else without_formulas(item.completion)) for item in items]


def without_formulas(text: str) -> str:
    """The text without formulas, code, tags and commands of LaTeX, which are in Latin letters in every language."""
    for begin, end in PAIRS:
        first, *others = text.split(begin)
        text = first + " ".join(part.partition(end)[2] if end in part else part for part in others)
    return FORMULA.sub(" ", text)


def _mark(reward: LanguageReward, text: str) -> Mark:
    parts = text.split() if reward.unit == "words" else text
    shares = [share for part in parts if (share := _share(part, reward.scripts)) is not None]
    return ok(sum(share > 0.5 for share in shares) / len(shares)) if shares else null()


def _share(text: str, scripts: Sequence[str]) -> float | None:
    """The share of a text's letters that are of these scripts; None where it has no letter."""
    letters = [letter for letter in text if letter.isalpha()]
    return sum(script(letter) in scripts for letter in letters) / len(letters) if letters else None


@lru_cache(maxsize=65536)
def script(letter: str) -> str:
    """The first word of a letter's name in Unicode, in lower case; empty where it has none."""
    return unicodedata.name(letter, "").partition(" ")[0].lower()
