"""The reward for form: the tags exactly once, closed, in order, with nothing outside."""

import time

import pytest

from stages.score.mark import Item
from stages.score.reward_config import FormatReward
from stages.score.rewards import judge

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
