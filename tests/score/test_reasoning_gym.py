"""The verifiers of reasoning-gym: right, wrong and partial answers, and those that are refused."""

import json

import pytest

from stages.contract.errors import ConfigError
from stages.prompts.config import ReasoningGymSource
from stages.prompts.sources import load
from stages.score.mark import Item
from stages.score.reward_config import ReasoningGymReward
from stages.score.rewards import judge
from stages.score.rewards.reasoning_gym import REFUSED, check_family


def item(completion, answer="42", family="chain_sum"):
    metadata = {"source_dataset": family, "question": "40 + 2 =", "expression": "40 + 2"}
    return Item(completion, 1, f"reasoning_gym/{family}", answer, metadata)


def values(completions, **options):
    marks = judge(ReasoningGymReward(type="reasoning_gym", **options), [item(text) for text in completions])
    assert {mark.status for mark in marks} == {"ok"}
    return [mark.value for mark in marks]


def test_right_and_wrong_sums():
    assert values(["42", " 42\n", "41", "-42", "4", "", "forty-two"]) == [1, 1, 0, 0, 0, 0, 0]


def test_partial_credit_counts_only_where_it_is_asked_for():
    # reasoning-gym gives the right answer's share of a text that holds it: 2 of 6 letters here
    assert values(["is: 42", "42"]) == [0, 1]
    assert values(["is: 42", "42"], partial_credit=True) == [pytest.approx(2 / 6), 1]


def test_answers_are_cut_out_of_tags():
    completions = ["so <answer>42</answer>", "<answer>41</answer>", "42", "<answer>42"]
    assert values(completions, extract="answer_tag") == [1, 0, 0, 0]
    assert values([r"so \boxed{42}", "42"], extract="boxed") == [1, 0]


@pytest.mark.parametrize(
    "family", ["chain_sum", "gcd", "basic_arithmetic", "word_sorting", "mini_sudoku", "letter_jumble", "rotate_matrix"]
)
def test_right_answers_are_right_after_their_items_were_stored(family):
    prompts = load(ReasoningGymSource(type="reasoning_gym", dataset=family, size=4, seed=3))
    stored = [json.loads(json.dumps(dict(prompt.metadata))) for prompt in prompts]
    items = [
        Item(text, 1, prompt.task, prompt.answer, metadata)
        for prompt, metadata in zip(prompts, stored, strict=True)
        for text in (str(prompt.answer), "wrong")
    ]
    assert [mark.value for mark in judge(ReasoningGymReward(type="reasoning_gym"), items)] == [1.0, 0.0] * 4


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_families_whose_verifiers_cannot_be_trusted_are_refused_by_name(family):
    with pytest.raises(ConfigError, match=f"{family}.*refused as a reward.*choose another family"):
        check_family(family)
    with pytest.raises(ConfigError, match=family):
        judge(ReasoningGymReward(type="reasoning_gym"), [item("42"), item("42", family=family)])


def test_an_item_that_reasoning_gym_did_not_pose_is_refused():
    mine = Item("42", 1, "gsm8k", "42", {"source": "a file"})
    with pytest.raises(ConfigError, match="only prompts of reasoning-gym, not of 'task gsm8k': set its `tasks`"):
        judge(ReasoningGymReward(type="reasoning_gym"), [item("42"), mine])
    marks = judge(ReasoningGymReward(type="reasoning_gym", tasks=("reasoning_gym/chain_sum",)), [item("42"), mine])
    assert [(mark.value, mark.status) for mark in marks] == [(1.0, "ok"), (None, "null")]


def test_a_verifier_that_raises_is_an_error_of_its_row():
    items = [item(text, "2 × 3", "prime_factorization") for text in ("2 × 3", "two times three")]
    right, broken = judge(
        ReasoningGymReward(type="reasoning_gym"),
        [Item(i.completion, 1, i.task, i.answer, i.metadata | {"number": 6}) for i in items],
    )
    assert right.value == 1.0
    assert (broken.value, broken.status) == (None, "error")
    assert broken.message is not None
    assert broken.message.startswith("reasoning-gym: ValueError: ")
