"""The leave-one-out baseline: by hand, by its definition, and with a KL penalty in the reward."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.advantage.config import KlReward, Rloo
from stages.advantage.groups import group_statistics
from stages.advantage.rloo import advantages
from stages.advantage.stage import advantage_rows
from tests.advantage.numbers import table


def of(rewards, numbers=None):
    rewards = np.array(rewards, dtype=float)
    numbers = np.zeros(len(rewards), dtype=int) if numbers is None else np.array(numbers)
    return advantages(rewards, group_statistics(rewards, numbers, 1))


def test_a_group_of_three_by_hand():
    # 3 - (0 + 0)/2, 0 - (3 + 0)/2, 0 - (3 + 0)/2
    assert of([3, 0, 0]).tolist() == [3, -1.5, -1.5]
    assert of([1, 0]).tolist() == [1, -1]
    np.testing.assert_allclose(of([1, np.nan, 0]), [1, 0, -1])


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-50, 50, width=32)), min_size=1, max_size=24))
def test_each_reward_less_the_mean_of_the_others(rows):
    numbers, rewards = np.array([g for g, _ in rows]), np.array([r for _, r in rows])
    got = of(rewards, numbers)
    for i, (g, r) in enumerate(rows):
        others = [s for j, (h, s) in enumerate(rows) if h == g and j != i]
        np.testing.assert_allclose(got[i], r - np.mean(others) if others else 0, atol=1e-6)
    for g in set(numbers.tolist()):
        assert abs(got[numbers == g].sum()) < 1e-4


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=8), st.integers(-9, 9), st.sampled_from([0.5, 2.0, -1.0]))
def test_it_moves_with_the_scale_of_the_rewards_and_not_with_a_shift(rewards, shift, factor):
    moved = [factor * r + shift for r in rewards]
    np.testing.assert_allclose(of(moved), factor * of(rewards), atol=1e-9)


def test_a_kl_penalty_is_summed_over_the_tokens_before_the_baseline():
    logprobs = {"sampler_logprobs": [[-1, -1], [-2]], "reference_logprobs": [[-2, -3], [-2]]}
    kl = KlReward(coefficient=0.1)
    out, _ = advantage_rows(table(["a", "a"], [1.0, 0.0], [2, 1], **logprobs), Rloo(type="rloo", kl=kl))
    # 1 - 0.1 · (1 + 2) = 0.7 against 0
    np.testing.assert_allclose(np.concatenate(out["advantages"].to_list()), [0.7, 0.7, -0.7], rtol=1e-6)
    # Equal rewards that the penalty tells apart are no constant group.
    out, _ = advantage_rows(table(["a", "a"], [1.0, 1.0], [2, 1], **logprobs), Rloo(type="rloo", kl=kl))
    assert out["train"].all()
