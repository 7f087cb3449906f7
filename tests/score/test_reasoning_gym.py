"""The verifiers of reasoning-gym: right, wrong and partial answers, and those that are refused."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stages.contract.errors import ConfigError
from stages.prompts.config import ReasoningGymSource
from stages.prompts.sources import load
from stages.score.reward_config import ReasoningGymReward
from stages.score.rewards import judge
from stages.score.rewards.reasoning_gym import COUNTED, EVALUATED, EXPRESSION, PARSED, REFUSED, check_family
from stages.score.verdict import Item

ROOT = Path(__file__).parents[2]


def item(completion, answer="42", family="chain_sum"):
    metadata = {"source_dataset": family, "question": "40 + 2 =", "expression": "40 + 2"}
    return Item(completion, 1, f"reasoning_gym/{family}", answer, metadata)


def values(completions, **options):
    marks = judge(ReasoningGymReward(type="reasoning_gym", **options), [item(text) for text in completions])
    assert {mark.status for mark in marks} == {"ok"}
    return [mark.value for mark in marks]


def test_right_and_wrong_sums():
    assert values(["42", " 42\n", "41", "-42", "4", "", "forty-two"]) == [1, 1, 0, 0, 0, 0, 0]


def test_a_text_that_holds_the_right_answer_has_earned_nothing_by_it():
    # reasoning-gym gives the right answer's share of such a text: 2 of 6 letters here
    assert values(["is: 42", "42"]) == [0, 1]
    assert values(["is: 42", "42"], partial_credit=True) == [0, 1]


@pytest.mark.parametrize("family", ["gsm_symbolic", "fraction_simplification", "chain_sum"])
def test_a_number_is_not_the_sentence_that_holds_it(family):
    (prompt,) = load(ReasoningGymSource(type="reasoning_gym", dataset=family, size=1, seed=3))
    metadata = json.loads(json.dumps(dict(prompt.metadata)))
    right = str(prompt.answer)
    wrong = ["It is not {}.", "{} is wrong", "{}, 201", "{} or 7", "{0} {0}1"]
    texts = [right, f" {right}\n", *(text.format(right) for text in wrong)]
    items = [Item(text, 1, prompt.task, right, metadata) for text in texts]
    marks = judge(ReasoningGymReward(type="reasoning_gym", partial_credit=True), items)
    assert [mark.value for mark in marks] == [1, 1] + [0] * len(wrong)


def test_partial_credit_counts_only_where_it_is_asked_for_and_is_more_than_any_text_is_given():
    # 0.5 for factors of which one is no prime, 0.01 for any numbers
    items = [item(text, "2 × 2 × 3", "prime_factorization") for text in ("2 × 2 × 3", "4 × 3", "5")]
    for partial, wanted in ((True, [1, 0.5, 0]), (False, [1, 0, 0])):
        marks = judge(ReasoningGymReward(type="reasoning_gym", partial_credit=partial), items)
        assert [mark.value for mark in marks] == wanted


def test_answers_are_cut_out_of_tags():
    completions = ["so <answer>42</answer>", "<answer>41</answer>", "42", "<answer>42"]
    assert values(completions, extract="answer_tag") == [1, 0, 0, 0]
    assert values([r"so \boxed{42}", "42"], extract="boxed") == [1, 0]


FAMILIES = ["chain_sum", "gcd", "mini_sudoku", "rotate_matrix", "rearc", *EVALUATED, *PARSED, "countdown", "puzzle24"]
POSE = """
import json, sys
from stages.prompts.config import ReasoningGymSource
from stages.prompts.sources import load
sources = {name: ReasoningGymSource(type="reasoning_gym", dataset=name, size=4, seed=3) for name in sys.argv[1:]}
print(json.dumps({name: [[p.task, p.answer, dict(p.metadata)] for p in load(one)] for name, one in sources.items()}))
"""


@pytest.fixture(scope="module")
def posed():
    """Four problems of each family, posed by a process in which those that go through sets are always the same."""
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", POSE, *FAMILIES]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_answers_are_right_after_their_items_were_stored(family, posed):
    items = [
        Item(text, 1, task, answer, metadata)
        for task, answer, metadata in posed[family]
        for text in (str(answer), "wrong")
    ]
    # where reasoning-gym itself has no closed form, its answer is the question again: the next test
    wanted = [
        float(text == "right" and "Integral" not in str(answer))
        for _, answer, _ in posed[family]
        for text in ("right", "wrong")
    ]
    assert sum(wanted) >= 3
    assert [mark.value for mark in judge(ReasoningGymReward(type="reasoning_gym"), items)] == wanted


def test_the_question_again_as_an_integral_is_no_answer():
    metadata = {"source_dataset": "simple_integration", "question": "?", "integrand": "2*x", "variable": "x"}
    answers = ["x**2 + C", "Integral(2*x, x)", "2*x"]
    items = [Item(text, 1, "any", "x**2 + C", metadata) for text in answers]
    assert [mark.value for mark in judge(ReasoningGymReward(type="reasoning_gym"), items)] == [1, 0, 0]


def test_families_without_a_right_answer_of_their_own_judge_one_that_is_right():
    items = []
    for family in ("graph_color", "rubiks_cube"):
        (prompt,) = load(ReasoningGymSource(type="reasoning_gym", dataset=family, size=1, seed=3))
        metadata = json.loads(json.dumps(dict(prompt.metadata)))
        coloring = json.dumps(metadata.get("possible_answer"))
        for text in (metadata.get("example_correct_answer", coloring), "wrong", "{}", "U" * 100_000 + "9" * 9):
            items.append(Item(text, 1, prompt.task, prompt.answer, metadata))
    marks = judge(ReasoningGymReward(type="reasoning_gym", timeout=1.0), items)
    assert [mark.value for mark in marks if mark.value] == [1, 1]
    assert marks[0].value == marks[4].value == 1


def test_no_verifier_runs_an_answer(tmp_path):
    attack = f"__import__('pathlib').Path('{tmp_path}/was_here').touch()"
    metadata = {"valid_answers": [], "variable": "x", "integrand": "x", "numbers": [1, 2], "target": 3}
    answers = [
        attack,
        f"[{attack}]",
        f"x.subs({{x: {attack}}})",
        f"Symbol('x') + {attack}",
        "9**9**9",
        "1+" * 9000 + "1",
    ]
    families = [*EVALUATED, *PARSED, *COUNTED]
    items = [
        Item(text, 1, "any", "3", metadata | {"source_dataset": family, "question": "?"})
        for family in families
        for text in answers
    ]
    marks = judge(ReasoningGymReward(type="reasoning_gym", timeout=0.5), items)
    assert not (tmp_path / "was_here").exists()
    assert not [
        (i.metadata["source_dataset"], i.completion[:30], m) for i, m in zip(items, marks, strict=True) if m.value
    ]


def test_an_evil_expression_is_seen_by_its_letters_alone():
    good = ["x**2/2 + C", "-3*exp(2*x)*sin(x) + C", "log(x)", ".5*x", "6*x**3 - 4.0*x*y + 1", "pi*X"]
    evil = [
        "x.subs",
        "exec(x)",
        "__import__",
        "x[0]",
        "'a'",
        "lambda: 1",
        "Integral(2*x, x)",
        "x_",
        "f(x)(x).a",
        "1e9j",
        "eval(x)",
        "x;y",
        "ⅹ",
    ]
    assert [bool(EXPRESSION.fullmatch(text)) for text in good] == [True] * len(good)
    assert [text for text in evil if EXPRESSION.fullmatch(text)] == []


@pytest.mark.parametrize(
    ("family", "answer", "value"),
    [
        ("countdown", "(8 - 3) * 4", 1),
        ("countdown", "4*(8-3)", 1),
        ("countdown", "20", 0),
        ("countdown", "8 - 3 + 4", 0),
        ("countdown", "4 * (8 - 3) * 1", 0),
        ("countdown", "(8 - 3) * 4 = 20", 0),
        ("countdown", "4/0*8*3", 0),
        ("countdown", "(" * 100_000, 0),
        ("puzzle24", "6 * 4 * 1 * 1", 1),
        ("puzzle24", "8 * 3 * 1 * 1", 0),  # 24, of other numbers
        ("puzzle24", "6 * 4 + 1 / 1", 0),
        ("puzzle24", "6 * 4", 0),
    ],
)
def test_sums_of_given_numbers_are_judged_exactly(family, answer, value):
    metadata = {"source_dataset": family, "question": "?", "numbers": [8, 3, 4], "target": 20}
    metadata |= {"numbers": [1, 6, 1, 4]} if family == "puzzle24" else {}
    (mark,) = judge(ReasoningGymReward(type="reasoning_gym"), [Item(answer, 1, "any", None, metadata)])
    assert mark.value == value


def test_only_the_verifiers_that_are_known_to_run_text_do():
    """What a newer reasoning-gym brings is seen here before it runs an answer."""
    root = Path(importlib.util.find_spec("reasoning_gym").submodule_search_locations[0])
    runs = re.compile(r"(?<![\w.])(?:eval|exec)\(|parse_expr\(|sympify\(")
    found = {path.stem for path in root.rglob("*.py") if runs.search(path.read_text(encoding="utf-8"))}
    # these run their own problems, not the answer
    own = {"codeio", "number_sorting", "bitwise_arithmetic", "basic_arithmetic", "propositional_logic"}
    own |= {"generators_00_49", "generators_50_99"}
    assert found == {*EVALUATED, *PARSED, *COUNTED} | own


def test_a_refused_family_is_used_where_the_user_insists():
    mine = item("nan", "1 + 2i", "complex_arithmetic")
    mine = Item("1 + 2i", 1, mine.task, mine.answer, mine.metadata | {"result": [1, 2]})
    with pytest.raises(ConfigError, match=r"insist by the reward's `trust: \[complex_arithmetic\]`"):
        judge(ReasoningGymReward(type="reasoning_gym"), [mine])
    (mark,) = judge(ReasoningGymReward(type="reasoning_gym", trust=("complex_arithmetic",)), [mine])
    assert mark.value == 1.0


def test_a_family_that_is_not_there_is_an_error_of_its_row():
    right, unknown = judge(ReasoningGymReward(type="reasoning_gym"), [item("42"), item("42", family="no_such")])
    assert (right.value, unknown.status) == (1.0, "error")
    assert unknown.message == "LookupError: reasoning-gym has no family 'no_such'"


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_families_whose_verifiers_cannot_be_trusted_are_refused_by_name(family):
    with pytest.raises(ConfigError, match=f"{family}.*refused as a reward.*choose another family"):
        check_family(family)
    with pytest.raises(ConfigError, match=family):
        judge(ReasoningGymReward(type="reasoning_gym"), [item("42"), item("42", family=family)])


def test_an_item_that_reasoning_gym_did_not_pose_is_refused():
    mine = Item("42", 1, "gsm8k", "42", {"source": "a file"})
    with pytest.raises(ConfigError, match="only prompts of reasoning-gym, not of task 'gsm8k': set its `tasks`"):
        judge(ReasoningGymReward(type="reasoning_gym"), [item("42"), mine])
    marks = judge(ReasoningGymReward(type="reasoning_gym", tasks=("reasoning_gym/chain_sum",)), [item("42"), mine])
    assert [(mark.value, mark.status) for mark in marks] == [(1.0, "ok"), (None, "null")]


def test_an_answer_of_another_form_is_wrong_where_a_verifier_raises_for_it():
    factors = item("two times three", "2 × 3", "prime_factorization")
    boxes = factors.metadata | {"source_dataset": "boxnet"}
    placed = boxes | {"initial_state": {"0.5_0.5": ["box_red"]}}
    forms = ["[1]", "7", '[{"nowhere": "move(box_red, target_red)"}]']
    moves = [Item(text, 1, "any", None, placed) for text in forms]
    cells = item('{"a": 1}', "[[0, 1]]", "game_of_life")
    marks = judge(ReasoningGymReward(type="reasoning_gym"), [factors, *moves, cells])
    assert [(mark.value, mark.status) for mark in marks] == [(0.0, "ok")] * 5
    (mark,) = judge(ReasoningGymReward(type="reasoning_gym"), [Item("[]", 1, "any", None, boxes)])
    assert (mark.status, mark.message) == ("error", "KeyError: 'initial_state'")  # it was never right or wrong
    (mark,) = judge(ReasoningGymReward(type="reasoning_gym"), [Item("[1]", 1, "any", None, boxes)])
    assert (mark.status, mark.message) == ("error", "KeyError: 'initial_state'")


def test_a_verifier_that_raises_otherwise_is_an_error_of_its_row():
    right, broken = judge(ReasoningGymReward(type="reasoning_gym"), [item("42"), item("42", None, "gcd")])
    assert right.value == 1.0
    assert (broken.value, broken.status) == (None, "error")
    assert broken.message is not None
    assert broken.message.startswith("TypeError: ")
