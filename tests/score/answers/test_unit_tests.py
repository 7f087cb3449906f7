"""Tests of programs: what may be written, what program a completion holds, and which results are right."""

import pytest

from stages.contract.errors import DataError
from stages.score.answers.unit_tests import Calling, Printing, passes, read_tests, same, source

BLOCK = "```python\nprint(1)\n```"


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        (BLOCK, "print(1)"),
        (f"First\n```python\nprint(0)\n```\nno:\n{BLOCK}\nDone.", "print(1)"),
        ("```py\nprint(1)\n```", "print(1)"),
        ("  ```Python3 title\n  x = 1\n  ```", "  x = 1"),
        (f"{BLOCK}\n```\n1\n```", "print(1)"),
        (f"{BLOCK}\n```bash\nrm x\n```", "print(1)"),
        (f"{BLOCK}\n```python\nprint(2)", "print(1)"),
        ("```python\nprint('```')\n```", "print('```')"),
        ("print(1)", None),
        ("```\nprint(1)\n```", None),
        ("```python\nprint(1)", None),
        ("```python\n\n```", None),
        ("", None),
    ],
)
def test_the_program_is_the_last_closed_block_of_its_language(completion, program):
    assert source(completion, "python") == program


def test_the_whole_completion_may_be_the_program():
    assert source("print(1)", None) == "print(1)"
    assert source(" \n", None) is None


def test_a_long_completion_of_fences_is_read_at_once():
    assert source("```python\n" * 100_000, "python") is None
    assert source("```python\nx\n```\n" * 100_000, "python") == "x"


def test_tests_are_a_list_its_text_or_inputs_and_outputs():
    printing, calling = Printing("1\n", "2\n"), Calling("Solution.add", (1, [2]), {"a": None})
    assert read_tests([{"stdin": "1\n", "stdout": "2\n"}], "p") == [printing]
    text = '[{"function": "Solution.add", "arguments": [1, [2]], "expected": {"a": null}}]'
    assert read_tests(text, "p") == [calling]
    assert read_tests({"inputs": ["1\n"], "outputs": ["2\n"]}, "p") == [printing]
    assert read_tests('{"inputs": ["1\\n"], "outputs": ["2\\n"], "fn_name": null}', "p") == [printing]


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ("assert add(1, 2) == 3", "p: tests are wanted as JSON"),
        ("[" * 100_000, "p: tests are wanted as JSON"),
        ('[{"function": "f", "arguments": [], "expected": %s}]' % ("9" * 5000), "wanted as JSON (Exceeds the limit"),
        ([], "p: a list of tests is wanted"),
        (None, "p: a list of tests is wanted"),
        ({"inputs": ["1"], "outputs": []}, "two lists of one length"),
        ({"inputs": ["1"], "outputs": ["1"], "fn_name": "f"}, "a list of tests is wanted"),
        ([{"stdin": "1", "stdout": "1"}, {"stdin": "1"}], "p, test 2: {stdin, stdout} or {function, arguments, expect"),
        ([{"stdin": 1, "stdout": "1"}], "p, test 1"),
        ([{"stdin": "1", "stdout": "1", "stdour": ""}], "p, test 1"),
        ([{"function": "a b", "arguments": [], "expected": 1}], "p, test 1"),
        ([{"function": "f", "arguments": {"x": 1}, "expected": 1}], "p, test 1"),
        ([{"function": "f", "arguments": []}], "p, test 1"),
    ],
)
def test_other_tests_are_refused_by_place(tests, said):
    with pytest.raises(DataError, match=r"^p") as caught:
        read_tests(tests, "p")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "printed", "right"),
    [
        ("3\n", "3", True),
        ("3", "3\n\n", True),
        ("1 2\n3", "1 2 \n3\n", True),
        ("1 2", "1  2", True),
        ("1 2", "1\n2", False),
        ("", "", True),
        ("", "\n", True),
        ("3", "", False),
        ("3", "03", False),
        ("3", "3.0", False),
        ("0.5", "0.50000000001", True),
        ("0.5", "0.6", False),
        ("1e3", "1000", True),
        ("0.5", "nan", False),
        ("0.5", "x", False),
        ("Yes", "yes", False),
        (" a", "a", True),
        ("a\nb", "a", False),
    ],
)
def test_printed_text_is_compared_by_lines(wanted, printed, right):
    assert passes(Printing("", wanted), printed.encode(), 1e-6) is right


@pytest.mark.parametrize(
    ("wanted", "printed", "right"),
    [
        (3, "3", True),
        (3, "3.0", True),
        (3, "3.5", False),
        (0.3, "0.30000000000000004", True),
        (1, "true", False),
        (True, "true", True),
        (None, "null", True),
        ("3", "3", False),
        ([1, 2], "[1, 2]", True),
        ([1, 2], "[2, 1]", False),
        ([1], "[1, 2]", False),
        ({"a": [1.0]}, '{"a": [1]}', True),
        ({"a": 1}, '{"a": 1, "b": 2}', False),
        (0.5, "1" + "0" * 400, False),
        (0.5, "NaN", False),
        (3, "3 3", False),
        (3, "", False),
        (3, "[" * 100_000, False),
        (3, "1" * 5000, False),
    ],
)
def test_values_are_compared_as_plain_json(wanted, printed, right):
    assert passes(Calling("f", (), wanted), printed.encode(), 1e-6) is right


def test_without_tolerance_numbers_are_exact():
    assert not same(0.3, 0.1 + 0.2, 0)
    assert same(0.3, 0.3, 0)
