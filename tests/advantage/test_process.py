"""Rewards of steps: by hand, by the paper's formula, and beside a reward for the outcome."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.advantage.config import Process
from stages.advantage.stage import advantage_rows
from stages.contract.errors import ArtifactError, ConfigError
from tests.advantage.numbers import grpo_by_definition, table

PROCESS = Process(type="process", ddof=0, eps=0.0)


def rows_of(completions, outcomes=None, ids=None):
    """Each completion: its length and its steps, (last token, reward) each."""
    earned = [[dict(steps).get(t, 0.0) for t in range(length)] for length, steps in completions]
    totals = [sum(e) + o for e, o in zip(earned, outcomes or [0] * len(earned), strict=True)]
    ends = [[end for end, _ in steps] for _, steps in completions]
    lengths = [length for length, _ in completions]
    return table(ids or ["a"] * len(earned), totals, lengths, token_rewards=earned, step_ends=ends)


def of(rows, config=PROCESS):
    return advantage_rows(rows, config)[0]["advantages"].to_list()


def test_two_completions_by_hand():
    # step rewards 1 0 0 1: mean 1/2, population std 1/2, normalised 1 -1 -1 1
    # first: steps end at tokens 1 and 3: A = 1-1, 1-1, -1, -1; second: at 0 and 1: A = -1+1, 1; the last token has none
    got = of(rows_of([(4, [(1, 1.0), (3, 0.0)]), (3, [(0, 0.0), (1, 1.0)])]))
    assert got == [[0, 0, -1, -1], [0, 1, 0]]


def test_an_outcomes_reward_beside_them_is_normalised_by_itself_and_given_to_all_tokens():
    steps = [(2, [(0, 1.0)]), (2, [(0, 0.0)])]
    alone = np.array(of(rows_of(steps)))
    assert alone.tolist() == [[1, 0], [-1, 0]]
    both = np.array(of(rows_of(steps, outcomes=[5.0, 7.0])))
    assert (both - alone).tolist() == [[-1, -1], [1, 1]]
    # steps all equal: only the outcome speaks
    assert of(rows_of([(1, [(0, 0.35)]), (1, [(0, 0.35)])], outcomes=[0.0, 1.0])) == [[-1], [1]]


def test_a_group_in_which_neither_steps_nor_outcomes_differ_is_constant():
    rows = rows_of([(2, [(0, 0.35), (1, 0.35)]), (1, [(0, 0.35)])])
    out, _ = advantage_rows(rows, PROCESS)
    # The sums differ (0.7 and 0.35), the steps do not.
    assert out["advantages"].to_list() == [[0, 0], [0]]
    assert out["reason"].to_list() == ["constant group"] * 2


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(-3, 3), min_size=1, max_size=4)), min_size=1, max_size=8
    ),
    st.integers(1, 3),
)
def test_it_is_the_papers_formula_group_by_group(completions, tokens_a_step):
    ids = [str(g) for g, _ in completions]
    steps = [[(tokens_a_step * (j + 1) - 1, float(r)) for j, r in enumerate(rewards)] for _, rewards in completions]
    rows = rows_of([(tokens_a_step * len(s), s) for s in steps], ids=ids)
    got = of(rows, Process(type="process"))
    for i, mine in enumerate(steps):
        pool = [r for name, other in zip(ids, steps, strict=True) for _, r in other if name == ids[i]]
        if ids.count(ids[i]) == 1:
            continue  # a group of one is not trained on
        normal = (
            dict(zip(pool, grpo_by_definition(pool), strict=True)) if len(set(pool)) > 1 else dict.fromkeys(pool, 0)
        )
        wanted = [sum(normal[r] for end, r in mine if end >= t) for t in range(len(got[i]))]
        np.testing.assert_allclose(got[i], wanted, atol=1e-5)


def test_rewards_that_float32_rounds_leave_no_outcome_behind():
    steps = [(3, [(0, 0.1), (1, -0.1), (2, 0.7)]), (3, [(0, 0.3), (1, 0.1), (2, 0.1)])]
    rows = rows_of(steps)
    exact = rows.with_columns(reward=pl.Series([sum(r for _, r in s) for _, s in steps]))
    np.testing.assert_allclose(of(exact), of(rows_of(steps, outcomes=[0.0, 0.0])), atol=1e-5)
    normal = grpo_by_definition([0.1, -0.1, 0.7, 0.3, 0.1, 0.1], 0, 0)
    np.testing.assert_allclose(of(exact)[0], np.cumsum(normal[2::-1])[::-1], atol=1e-5)


def test_a_row_without_a_reward_does_not_count_with_its_steps():
    rows = rows_of([(1, [(0, 1.0)]), (1, [(0, 0.0)]), (1, [(0, 9.0)])], outcomes=[0, 0, float("nan")])
    assert of(rows) == [[1], [-1], [0]]


def test_steps_are_needed_and_must_lie_in_their_completion():
    with pytest.raises(ConfigError, match="process needs rewards of steps"):
        of(table(["a", "a"], [1.0, 0.0], [1, 1]))
    with pytest.raises(ArtifactError, match="a step that ends outside its completion"):
        of(table(["a", "a"], [1.0, 0.0], [1, 1], token_rewards=[[1], [0]], step_ends=[[1], [0]]))
    with pytest.raises(ArtifactError, match="steps that do not follow one another"):
        of(table(["a", "a"], [1.0, 0.0], [2, 1], token_rewards=[[1, 0], [0]], step_ends=[[1, 1], [0]]))


def test_rows_without_steps_or_without_tokens_have_the_outcomes_part_alone():
    rows = rows_of([(2, []), (0, []), (2, [(0, 1.0)]), (1, [(0, 0.0)])], outcomes=[1, 1, 0, 0])
    assert of(rows) == [[1, 1], [], [0, -1], [-2]]
