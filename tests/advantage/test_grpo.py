"""Group-relative advantages: numbers worked by hand, and what must hold for any rewards."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.advantage.config import Grpo
from stages.advantage.groups import group_statistics
from stages.advantage.grpo import advantages
from stages.advantage.stage import advantage_rows


def compute(rewards, groups, **config):
    config = Grpo(**config)
    rewards = np.array(rewards, dtype=float)
    return advantages(rewards, group_statistics(rewards, np.array(groups), config.ddof), config)


def test_a_group_of_four_by_hand():
    # rewards 1 0 0 1: mean 1/2, squares 4 · 1/4 = 1, sample std sqrt(1/3), population std 1/2
    np.testing.assert_allclose(compute([1, 0, 0, 1], [0] * 4, eps=0), np.array([1, -1, -1, 1]) * 0.5 * math.sqrt(3))
    np.testing.assert_allclose(compute([1, 0, 0, 1], [0] * 4, ddof=0, eps=0), [1, -1, -1, 1])
    np.testing.assert_allclose(compute([1, 0, 0, 1], [0] * 4, ddof=0, eps=0.5), [0.5, -0.5, -0.5, 0.5])
    np.testing.assert_allclose(compute([1, 0, 0, 1], [0] * 4, scale="none"), [0.5, -0.5, -0.5, 0.5])


def test_groups_do_not_see_each_other_wherever_their_rows_lie():
    alone = compute([3, 5, 10], [0, 0, 0])
    mixed = compute([3, 100, 5, -7, 10], [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(mixed[[0, 2, 4]], alone)


@pytest.mark.parametrize("value", [0.35, 0.1, 1e-9, -3.3, 1e12])
@pytest.mark.parametrize("scale", ["group", "none"])
def test_a_constant_group_gets_exact_zeros(value, scale):
    # The computed std of seven times 0.35 is 6e-17, not 0: dividing by it plus 1e-9 would give 0.9 for 0.
    assert compute([value] * 7, [0] * 7, eps=0, scale=scale).tolist() == [0.0] * 7


def test_one_reward_in_a_group_gets_zero_never_the_raw_reward():
    assert compute([0.7, 1.0, 0.0], [0, 1, 1]).tolist()[0] == 0.0


def test_a_failed_reward_gets_zero_and_does_not_poison_its_group():
    got = compute([1, math.nan, 0], [0, 0, 0], eps=0, ddof=0)
    np.testing.assert_allclose(got, [1, 0, -1])


def test_near_constant_rewards_do_not_blow_up():
    # 0.35 seven times and 0: mean 0.30625, sample std sqrt((7·0.04375² + 0.30625²) / 7) = 0.1237437
    got = compute([0.35] * 7 + [0.0], [0] * 8, eps=0)
    np.testing.assert_allclose(got, [0.04375 / 0.1237437] * 7 + [-0.30625 / 0.1237437], rtol=1e-6)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.floats(-100, 100, allow_subnormal=False, width=32)), min_size=1, max_size=40
    ),
    st.sampled_from([0, 1]),
)
def test_a_centred_group_sums_to_zero_and_keeps_the_order_of_its_rewards(rows, ddof):
    groups, rewards = np.array([g for g, _ in rows]), np.array([r for _, r in rows])
    got = compute(rewards, groups, ddof=ddof)
    assert np.isfinite(got).all()
    for group in set(groups.tolist()):
        mine = groups == group
        assert abs(got[mine].sum()) < 1e-6 * max(1.0, np.abs(got[mine]).max())
        order = np.argsort(rewards[mine], kind="stable")
        assert (np.diff(got[mine][order]) >= -1e-9).all()


def test_the_table_repeats_the_advantage_for_each_token_and_says_why_a_row_is_left_out():
    rows = pl.DataFrame(
        {
            "prompt_id": ["a", "a", "b", "b", "c", "c", "d", "d"],
            "sample": [0, 1] * 4,
            "length": [2, 3, 1, 1, 2, 2, 0, 1],
            "reward": [1.0, 0.0, 0.5, 0.5, None, 1.0, 1.0, 0.0],
        }
    )
    table, _ = advantage_rows(rows, Grpo(ddof=0, eps=0.0))
    constant, failed, alone, empty = "constant group", "no reward", "group of one", "empty completion"
    assert table["reason"].to_list() == [None, None, constant, constant, failed, alone, empty, None]
    assert table["train"].to_list() == [reason is None for reason in table["reason"]]
    assert table["advantages"].to_list() == [[1, 1], [-1, -1, -1], [0], [0], [0, 0], [0, 0], [], [-1]]
    assert table["group_mean"].to_list() == [0.5] * 4 + [1.0] * 2 + [0.5] * 2
    assert table["group_std"].to_list() == [0.5, 0.5, 0, 0, 0, 0, 0.5, 0.5]


def test_a_whole_group_without_rewards_has_no_statistics():
    rows = pl.DataFrame({"prompt_id": ["a"] * 2, "sample": [0, 1], "length": [1, 1], "reward": [None, None]})
    table, _ = advantage_rows(rows.with_columns(pl.col("reward").cast(pl.Float64)), Grpo())
    assert table["group_mean"].to_list() == [None, None]
    assert table["reason"].to_list() == ["no reward"] * 2
