"""The reward for form: the tags exactly once, closed, in order, with nothing outside."""

import time

import pytest
from pydantic import ValidationError

from stages.score.reward_config import FormatReward
from stages.score.rewards import judge
from stages.score.verdict import Item

BOTH = FormatReward(type="format")


def value(completion, reward=BOTH):
    (mark,) = judge(reward, [Item(completion, 1, "any", None, {})])
    assert mark.status == "ok"
    return mark.value


@pytest.mark.parametrize(
    "completion",
    [
        "<think>2 and 2</think><answer>4</answer>",
        "<think>2\nand\n2</think>\n\n<answer>\n4\n</answer>\n",
        "  <think></think> <answer></answer>",
        "<think>a < b > c, <b>not</b> a tag of ours</think><answer>4</answer>",
    ],
)
def test_both_parts_once_and_in_order(completion):
    assert value(completion) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "4",
        "<answer>4</answer>",
        "<think>2 and 2</think>4",
        "<think>2 and 2<answer>4</answer>",
        "<think>2 and 2</think><answer>4",
        "2 and 2</think><answer>4</answer>",
        "<answer>4</answer><think>2 and 2</think>",
        "<think>2 <answer>4</answer></think>",
        "<think>2 and 2</think><answer>4</answer><answer>5</answer>",
        "<think>2</think><think>2</think><answer>4</answer>",
        "Well: <think>2 and 2</think><answer>4</answer>",
        "<think>2 and 2</think> so <answer>4</answer>",
        "<think>2 and 2</think><answer>4</answer> Done.",
        "<think>2 and 2</answer><answer>4</think>",
        "<Think>2 and 2</Think><answer>4</answer>",
    ],
)
def test_anything_else_is_worth_nothing(completion):
    assert value(completion) == 0.0


def test_parts_that_are_not_asked_for_must_not_be_there():
    only_think, only_answer = FormatReward(type="format", answer=False), FormatReward(type="format", think=False)
    assert value("<think>2 and 2</think>", only_think) == 1.0
    assert value("<think>2 and 2</think><answer>4</answer>", only_think) == 0.0
    assert value("<answer>4</answer>", only_answer) == 1.0
    assert value("<think>2 and 2</think><answer>4</answer>", only_answer) == 0.0


def test_a_hundred_kilobytes_of_tags_take_no_time():
    start = time.monotonic()
    for piece in ("<think>", "</answer>", "<think></think>", "<", "<think><answer>"):
        assert value(piece * (100_000 // len(piece))) == 0.0
    assert time.monotonic() - start < 1.0


def test_other_tags_and_a_prompt_that_has_opened_the_first_one():
    mine = FormatReward(type="format", think_tag="reasoning", answer_tag="solution")
    assert value("<reasoning>2</reasoning><solution>4</solution>", mine) == 1.0
    assert value("<think>2</think><solution>4</solution>", mine) == 0.0
    opened = FormatReward(type="format", opened=True)
    assert value("2 and 2</think><answer>4</answer>", opened) == 1.0
    assert value("<think>2 and 2</think><answer>4</answer>", opened) == 0.0
    only_think = FormatReward(type="format", opened=True, answer=False)
    assert value("2 and 2</think>", only_think) == 1.0
    assert value("2 and 2</think> so 4", only_think) == 0.0


def test_a_regular_expression_must_match_the_whole_completion_and_the_tags_be_right():
    free = FormatReward(type="format", think=False, answer=False, pattern=r"Step 1: .+Answer: -?\d+\s*")
    assert value("Step 1: add\nAnswer: 4\n", free) == 1.0
    assert value("Well. Step 1: add\nAnswer: 4", free) == 0.0
    both = FormatReward(type="format", pattern=r".*<answer>\d+</answer>")
    assert value("<think>2</think><answer>4</answer>", both) == 1.0
    assert value("<think>2</think><answer>four</answer>", both) == 0.0
    assert value("2<answer>4</answer>", both) == 0.0


def test_a_regular_expression_that_would_take_for_ever_is_a_timeout_of_its_row():
    reward = FormatReward(type="format", think=False, answer=False, pattern="(a+)+b", timeout=0.3)
    items = [Item(text, 1, "any", None, {}) for text in ("aab", "a" * 60, "b")]
    marks = judge(reward, items)
    assert [(mark.value, mark.status) for mark in marks] == [(1.0, "ok"), (None, "timeout"), (0.0, "ok")]
    assert marks[1].message == "no verdict in 0.3 s"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"pattern": "(a"}, "pattern is not a regular expression: missing \\), unterminated subpattern"),
        ({"think_tag": "answer"}, "think_tag and answer_tag are both 'answer'"),
        ({"think_tag": "a>"}, "match pattern"),
        ({"opened": True, "think": False}, "opened says that the prompt ends with the first tag, but think is false"),
    ],
)
def test_a_form_that_no_completion_can_have_is_refused(settings, told):
    with pytest.raises(ValidationError, match=told):
        FormatReward.model_validate({"type": "format"} | settings)
