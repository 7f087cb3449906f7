"""The penalty for repetition, by hand."""

import pytest

from stages.score.reward_config import RepetitionReward
from stages.score.rewards import judge
from stages.score.verdict import Item


def value(text, tokens=(), **settings):
    item = Item(text, len(tokens), "any", None, {}, token_ids=tuple(tokens))
    (mark,) = judge(RepetitionReward(type="repetition", **settings), [item])
    assert mark.status == "ok"
    return mark.value


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", 0),
        ("one two", 0),
        ("one two three", 0),
        ("one two three four five", 0),
        ("a b c a b c", -(1 - 3 / 4)),  # abc bca cab abc
        ("so so so so so so", -(1 - 1 / 4)),
        ("So so SO so", -0.5),
        ("wait " * 1002, -(1 - 1 / 1000)),
    ],
)
def test_the_share_of_trigrams_of_words_that_were_there_before(text, wanted):
    assert value(text) == pytest.approx(wanted)


def test_other_lengths_units_and_penalties():
    assert value("a b a b", ngram=2, penalty=-3.0) == pytest.approx(-3 * (1 - 2 / 3))
    assert value("a a b", ngram=1) == pytest.approx(-1 / 3)
    assert value("再再再再", tokens=(7, 7, 7, 7), ngram=2, unit="tokens") == pytest.approx(-(1 - 1 / 3))
    assert value("再再再再", ngram=2) == 0


def test_it_is_the_number_that_open_r1_gives():
    def open_r1(text, n, most):
        words = text.lower().split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        return (1 - len(set(grams)) / len(grams)) * most if grams else 0.0

    text = "we add one and one and one and get three so we add one and stop"
    for n in (1, 2, 3, 5):
        assert value(text, ngram=n, penalty=-0.7) == pytest.approx(open_r1(text, n, -0.7))
