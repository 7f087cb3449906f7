"""Rewards of steps: which equations hold, and at which token a step ends."""

import re
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.advantage.batch import batch_of
from stages.model.load import load_tokenizer
from stages.score.answers.arithmetic import holds, value
from stages.score.config import ScoreConfig
from stages.score.reward_config import EquationsReward
from stages.score.rewards import judge
from stages.score.stage import score_rows
from stages.score.steps import placed, token_at
from stages.score.verdict import Item, Mark
from tests.score.test_score_rows import rollouts


@pytest.mark.parametrize(
    ("line", "held"),
    [
        ("3 + 4 = 7", True),
        ("3 + 4 = 8", False),
        ("So we get 2 * (3 - 5) = -4, as wanted.", True),
        ("1/3 + 1/6 = 0.5", True),
        ("0.1 + 0.2 = 0.3", True),
        ("6 ÷ 4 × 2 = 3", True),
        ("2 + 2 = 4 = 5 - 1", True),
        ("2 + 2 = 4 = 5", False),
        ("first 1 = 1, then 2 = 3", False),
        ("−2 − 3 = −5", True),
        ("the answer is 7", None),
        ("x = 7", None),
        ("1 / 0 = 1", None),
        ("2 ** 3 = 8", None),
        ("(1 + 2 = 3", None),
        ("1 + = 3", None),
        ("1 2 = 12", None),
        ("", None),
        ("9" * 400 + " = 1", None),
        ("(" * 140 + "1" + ")" * 140 + " = 1", True),
    ],
)
def test_equations_that_hold_that_do_not_and_that_are_none(line, held):
    assert holds(line) is held


expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=8,
)


@given(expressions)
def test_values_are_those_of_exact_arithmetic(text):
    numbers = re.sub(r"\d+", lambda found: f"Fraction({found[0]})", text)
    try:
        wanted = eval(numbers, {"Fraction": Fraction})
    except ZeroDivisionError:
        wanted = None
    assert value(text) == wanted


@given(st.text("0123456789+-*/(). =×", max_size=40))
def test_no_text_of_a_model_is_an_error(text):
    assert holds(text) in {True, False, None}


@pytest.mark.parametrize("text", ["+=", "1", "1=", "(", "= ", "1+", "1 ", "=1)"])
def test_a_text_without_end_is_read_once(text):
    """With a search that goes back, 100 kB of some of these took hours, in the stage's own process."""
    held = holds(text * (100_000 // len(text)))
    assert held is None
    assert holds(text * (100_000 // len(text)) + "x 2 + 2 = 4") is True


def test_each_line_with_an_equation_is_a_step_and_the_reward_is_their_sum():
    reward = EquationsReward(type="equations", right=1.0, wrong=-0.5)
    text = "4 - 1 = 3\nso\n3 + 7 = 11\n10"
    (mark,) = judge(reward, [Item(text, 20, "any", None, {})])
    assert (mark.value, mark.status) == (0.5, "ok")
    assert mark.steps == ((9, 1.0), (23, -0.5))
    assert [text[:end].rsplit("\n", 1)[-1] for end, _ in mark.steps] == ["4 - 1 = 3", "3 + 7 = 11"]
    (nothing,) = judge(reward, [Item("ten", 3, "any", None, {})])
    assert (nothing.value, nothing.steps) == (0.0, ())


PIECES = ["1", "+1", "=", "2\n", "2=2", "é", "", "\n3=4"]


def decode(tokens):
    return "".join(PIECES[token] for token in tokens)


def test_a_step_ends_at_the_token_that_completes_it():
    tokens = [0, 1, 2, 3, 4, 6, 7]  # 1+1=2\n2=2\n3=4
    text = decode(tokens)
    assert token_at(tokens, 5, decode) == 3
    assert token_at(tokens, len("1+1=2\n2=2"), decode) == 4
    assert token_at(tokens, len(text), decode) == 6
    assert token_at(tokens, 10**6, decode) == 6
    mark = Mark(2.0, "ok", steps=((5, 1.0), (9, 1.0), (13, 0.0)))
    assert placed(tokens, [(2.0, mark)], decode) == ([0, 0, 0, 2, 2, 0, 0], [3, 4, 6])
    # Two steps that end within one token are one step; without tokens there is none.
    assert placed([3], [(1.0, mark)], decode) == ([2.0], [0])
    assert placed([], [(1.0, mark)], decode) == ([], [])


def test_the_table_says_what_each_token_earned(tiny_policy):
    tokenizer = load_tokenizer(tiny_policy)
    text = "1+1=2\n2=3\n3=3"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    ids = pl.Series([tokens, tokenizer.encode("3", add_special_tokens=False)])
    rows = rollouts((text, len(tokens), "any", "2", "{}"), ("3", 1, "any", "2", "{}"))
    rows = rows.with_columns(completion_tokens=ids)
    config = ScoreConfig.model_validate(
        {"rewards": [{"type": "equations", "weight": 0.5}, {"type": "length", "target": 1, "limit": 100}]}
    )
    scores = score_rows(rows, config, decode=tokenizer.decode)
    assert scores["step_ends"].to_list() == [[4, 8, 12], []]
    assert scores["token_rewards"][0].to_list() == [0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0, 0, 0.5]
    assert scores["token_rewards"][1].to_list() == [0]
    assert scores["reward_equations"].to_list() == [2, 0]
    assert scores["reward"][0] == pytest.approx(1 + (100 - 13) / 99)
    batch = batch_of(scores.with_columns(length=rows["completion_tokens"].list.len()))
    assert batch.step_row_S.tolist() == [0, 0, 0]
    assert batch.step_end_S.tolist() == [4, 8, 12]
    assert score_rows(rows, config)["token_rewards"].null_count() == 2
