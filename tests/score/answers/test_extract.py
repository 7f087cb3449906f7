"""What of a completion is its answer."""

import time

import pytest

from stages.score.answers.extract import extract


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("  42\n", "42"),
        ("so <answer>42</answer>", "so <answer>42</answer>"),
        (" \n", None),
        ("", None),
    ],
)
def test_the_whole_text(completion, answer):
    assert extract(completion, "text") == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer>42</answer>", "42"),
        ("<answer>\n 4\n2 \n</answer> done", "4\n2"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>1</answer> or <answer>2", "1"),  # cut off by the length limit: the last that is whole
        ("<answer>1 <answer>2</answer>", "2"),
        ("<answer>1</answer></answer>", "1"),
        ("<answer> </answer>", None),
        ("</answer>42<answer>", None),
        ("42", None),
        ("<ANSWER>42</ANSWER>", None),
    ],
)
def test_the_last_answer_tag_that_is_closed(completion, answer):
    assert extract(completion, "answer_tag") == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"{ \boxed{5}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed {7}", "7"),
        (r"\\boxed{7}", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{}", None),
        (r"\boxed{4", None),
        ("}}}{", None),
        ("42", None),
    ],
)
def test_the_last_box_whose_braces_balance(completion, answer):
    assert extract(completion, "boxed") == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("7 + 8 = 15", "15"),
        ("7 + 8 = 15.", "15"),
        ("The answer is 1,200 apples", "1,200"),
        ("1, 2, 3", "3"),
        ("it is -5", "-5"),
        ("3-8=-5", "-5"),
        ("8-5", "5"),  # a difference, no negative number
        ("8 - 5", "5"),
        ("−5", "−5"),
        ("3.14", "3.14"),
        ("$2.50!", "2.50"),
        ("v1.2.3", "3"),
        ("5 apples and no pear", "5"),
        ("٣", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number(completion, answer):
    assert extract(completion, "last_number") == answer


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", r"\boxed{", "{", "}", r"\{", "<", "1,", "1.", "-"])
def test_a_hundred_kilobytes_of_one_piece_take_no_time(piece):
    start = time.monotonic()
    completion = piece * (100_000 // len(piece))
    assert extract(completion, "answer_tag") is None
    assert extract(completion, "boxed") is None
    assert extract(completion, "last_number") in (None, "1", "1.1")
    assert time.monotonic() - start < 1.0
