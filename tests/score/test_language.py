"""The reward for one language: what scripts tell, and what they cannot."""

import time

import pytest

from stages.score.reward_config import SCRIPTS, LanguageReward
from stages.score.rewards import judge
from stages.score.rewards.language import script, without_formulas
from stages.score.verdict import Item


def mark(text, *scripts, **settings):
    reward = LanguageReward(type="language", scripts=scripts or ("latin",), **settings)
    return judge(reward, [Item(text, 1, "any", None, {})])[0]


@pytest.mark.parametrize(
    ("text", "scripts", "wanted"),
    [
        ("We add two and two.", ("latin",), 1),
        ("Nous ajoutons, ça va, Straße, ñandú", ("latin",), 1),  # French and German are Latin too
        ("We 加 two and 二", ("latin",), 3 / 5),
        ("Мы add два", ("cyrillic",), 2 / 3),
        ("x2 = 4 , y = 5", ("latin",), 1),
        ("adдд addд", ("latin",), 1 / 2),  # half of a word's letters are not more than half
        ("これは犬です", ("cjk", "hiragana", "katakana"), 1),
        ("이것은 개입니다", ("hangul",), 1),
    ],
)
def test_the_share_of_words_by_hand(text, scripts, wanted):
    assert mark(text, *scripts).value == pytest.approx(wanted)


def test_the_share_of_letters_where_words_are_not_parted():
    assert mark("这是ok的", "cjk", unit="letters").value == pytest.approx(3 / 5)
    assert mark("这是 ok 的", "cjk").value == pytest.approx(2 / 3)


def test_formulas_code_and_tags_count_only_where_it_is_asked_for():
    text = r"<think>所以 $x^2 + \sin y$ 等于 \(abc\) 和 `print(x)` 的 \boxed 值</think>"
    assert mark(text, "cjk").value == 1
    assert mark(text, "cjk", formulas=True).value < 1
    assert without_formulas(r"a \(b\) c \[d\] e \( f").split() == ["a", "c", "e", "f"]


@pytest.mark.parametrize("text", ["", "42", "1 + 1 = 2 $x$", "🙂 …"])
def test_a_text_without_letters_has_no_language(text):
    assert mark(text).status == "null"


def test_a_script_that_is_none_is_refused_and_each_that_is_known_has_letters():
    with pytest.raises(ValueError, match="no script 'english'; known are latin, cyrillic"):
        LanguageReward(type="language", scripts=("english",))
    there = {script(chr(code)) for code in range(0x20000) if chr(code).isalpha()}
    assert set(SCRIPTS) <= there


def test_hostile_texts_take_no_time():
    start = time.process_time()
    for piece in ("$", "`", "<", r"\(", r"\[", r"\a", "\x00", "(", "é́"):
        mark(piece * (100_000 // len(piece)))
    assert time.process_time() - start < 5.0
