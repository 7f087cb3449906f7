"""What frameworks do differently in GRPO's advantages, and where they go wrong: numbers by hand, and invariants."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.advantage.config import Grpo, Process, ReinforcePlusPlus, Rloo
from stages.advantage.groups import group_statistics, statistics_of_others
from stages.advantage.grpo import decoupled, relative
from stages.advantage.stage import advantage_rows
from tests.advantage.numbers import grpo_by_definition, leave_one_out_by_definition, table

FORMS = [
    {"scale": scale, "ddof": ddof, "baseline": baseline}
    for scale in ("group", "batch", "mad", "none")
    for ddof in (0, 1)
    for baseline in ("group", "leave_one_out")
    if (scale, baseline) != ("mad", "leave_one_out")
]
METHODS = [Grpo(**form) for form in FORMS] + [
    Grpo(rewards="normalise_then_sum"),
    Rloo(type="rloo"),
    Process(type="process"),
]
rewards_of_groups = st.lists(
    st.lists(st.floats(-10, 10, width=32, allow_subnormal=False), min_size=2, max_size=6), min_size=1, max_size=5
)


def of(groups, **config):
    rewards = np.array([r for group in groups for r in group], dtype=float)
    numbers = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    return relative(rewards, numbers, Grpo(**config))


def first_tokens(config, prompt_ids, rewards, **columns):
    ends = (
        {"token_rewards": [[r] for r in rewards], "step_ends": [[0]] * len(rewards)} if config.type == "process" else {}
    )
    single = {"reward_all": rewards, "weight_all": [1.0] * len(rewards)}
    out, _ = advantage_rows(table(prompt_ids, rewards, [1] * len(rewards), **ends, **single, **columns), config)
    return out, [row[0] for row in out["advantages"]]


@given(rewards_of_groups, st.sampled_from([0, 1]))
def test_each_group_is_by_the_papers_formula(groups, ddof):
    useful = [group for group in groups if max(group) > min(group)]
    got = of(useful, ddof=ddof) if useful else np.zeros(0)
    np.testing.assert_allclose(got, [a for g in useful for a in grpo_by_definition(g, ddof=ddof)], rtol=1e-6, atol=1e-9)


@given(st.lists(st.lists(st.integers(-4, 4), min_size=3, max_size=6), min_size=1, max_size=5), st.sampled_from([0, 1]))
def test_leave_one_out_is_by_its_definition(groups, ddof):
    useful = [[0.1 * r for r in group] for group in groups if max(group) > min(group)]
    got = of(useful, ddof=ddof, baseline="leave_one_out", eps=1e-6) if useful else np.zeros(0)
    wanted = [a for group in useful for a in leave_one_out_by_definition(group, 1e-6, ddof)]
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-9)


def test_leave_one_out_by_hand():
    # others of 3: 0 1 (mean 1/2, population std 1/2); of 0: 3 1 (2, 1); of 1: 3 0 (3/2, 3/2)
    np.testing.assert_allclose(
        of([[3, 0, 1]], baseline="leave_one_out", ddof=0, eps=0), [2.5 / 0.5, -2 / 1, -0.5 / 1.5]
    )
    np.testing.assert_allclose(of([[3, 0, 1]], baseline="leave_one_out", scale="none"), [2.5, -2, -0.5])


def test_batch_and_mean_absolute_deviation_by_hand():
    # group means 1/2 and 2; all rewards 1 0 4 0: mean 5/4, squares 1/16 + 25/16 + 121/16 + 25/16 = 43/4
    centred = np.array([0.5, -0.5, 2, -2])
    np.testing.assert_allclose(of([[1, 0], [4, 0]], scale="batch", ddof=0, eps=0), centred / math.sqrt(43 / 16))
    np.testing.assert_allclose(
        of([[1, 0], [4, 0]], scale="batch", ddof=1, eps=0.5), centred / (math.sqrt(43 / 12) + 0.5)
    )
    # 3 0 0: mean 1, deviations 2 1 1, mean 4/3
    np.testing.assert_allclose(of([[3, 0, 0]], scale="mad", eps=0), [1.5, -0.75, -0.75])


@pytest.mark.parametrize("config", METHODS, ids=str)
@pytest.mark.parametrize("others", [[], [1.0, 0.0]])
@pytest.mark.parametrize("value", [0.35, 0.1, -3.3, 1e12])
def test_a_constant_group_is_exactly_nothing(config, others, value):
    ids = ["a"] * 7 + ["b"] * len(others)
    out, got = first_tokens(config, ids, [value] * 7 + others)
    assert got[:7] == [0.0] * 7
    assert out["reason"].to_list() == ["constant group"] * 7 + [None] * len(others)
    kept, got = first_tokens(config.model_copy(update={"constant_groups": "keep"}), ids, [value] * 7 + others)
    assert got[:7] == [0.0] * 7
    assert kept["train"].all()


@pytest.mark.parametrize("config", METHODS, ids=str)
def test_differences_whose_squares_are_nothing_are_finite(config):
    _, got = first_tokens(config.model_copy(update={"eps": 0.0}), ["a"] * 3, [1e-200, 0.0, 0.0])
    assert np.isfinite(got).all()


@pytest.mark.parametrize("config", METHODS, ids=str)
def test_one_that_differs_does_not_blow_up(config):
    _, got = first_tokens(config, ["a"] * 8, [0.35] * 7 + [0.0])
    assert 0.01 < max(np.abs(got)) < 8
    if config == Grpo(baseline="leave_one_out"):
        assert got[7] == pytest.approx(-0.35)  # the others are all equal: there is nothing to divide by


@pytest.mark.parametrize("config", [*METHODS, ReinforcePlusPlus(type="reinforce_plus_plus", baseline="group")], ids=str)
def test_a_group_of_one_is_left_out_with_its_reason_and_never_gets_its_raw_reward(config):
    out, got = first_tokens(config, ["a", "b", "b", "b"], [0.7, 1.0, None, 0.0])
    assert out["reason"].to_list() == ["group of one", None, "no reward", None]
    if not isinstance(config, ReinforcePlusPlus):
        assert (got[0], got[2]) == (0.0, 0.0)
    assert got[1] == pytest.approx(-got[3])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("config", METHODS, ids=str)
def test_a_reward_that_is_not_finite_is_the_error_of_its_row_alone(config, bad):
    ids = ["a"] * 4 + ["b"] * 2
    out, got = first_tokens(config, ids, [1.0, bad, 0.0, 0.5, 1.0, 0.0])
    assert out["reason"].to_list() == [None, "no reward", None, None, None, None]
    _, wanted = first_tokens(config, ids[:1] + ids[2:], [1.0, 0.0, 0.5, 1.0, 0.0])
    assert got[:1] + got[2:] == wanted
    assert got[1] == 0.0


@given(st.data(), rewards_of_groups, st.sampled_from(FORMS))
def test_the_order_of_rows_does_not_matter(data, groups, form):
    rewards = np.array([r for group in groups for r in group])
    numbers = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    order = np.array(data.draw(st.permutations(range(len(rewards)))))
    config = Grpo(**form)
    np.testing.assert_allclose(
        relative(rewards[order], numbers[order], config),
        relative(rewards, numbers, config)[order],
        rtol=1e-6,
        atol=1e-6,
    )


@given(
    st.lists(st.lists(st.integers(-8, 8), min_size=2, max_size=6), min_size=1, max_size=5),
    st.sampled_from([f for f in FORMS if f["scale"] != "none" and f["baseline"] == "group"]),
    st.sampled_from([0.25, 4.0, 1024.0]),
    st.integers(-100, 100),
)
def test_a_scale_and_a_shift_of_the_rewards_do_not_matter(groups, form, factor, shift):
    moved = [[factor * r + shift for r in group] for group in groups]
    np.testing.assert_allclose(of(moved, **form, eps=0), of(groups, **form, eps=0), rtol=1e-6, atol=1e-9)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3) | st.none()), min_size=1, max_size=20))
def test_statistics_of_the_others_are_those_of_the_group_without_the_row(rows):
    numbers = np.array([g for g, _ in rows])
    rewards = np.array([math.nan if r is None else 0.1 * r for _, r in rows])
    got = statistics_of_others(rewards, numbers, 0)
    for i in range(len(rows)):
        others = (numbers == numbers[i]) & ~np.isnan(rewards)
        others[i] = False
        alone = group_statistics(rewards[others], np.zeros(others.sum(), dtype=int), 0)
        assert got.count_N[i] == others.sum()
        if others.any():
            np.testing.assert_allclose(got.mean_N[i], alone.mean_N[0], atol=1e-9)
            np.testing.assert_allclose(got.std_N[i], alone.std_N[0], atol=1e-7)
            assert got.std_N[i] == 0 or not alone.constant_N[0]


# Several rewards


def several(rewards, weights, config, ids=None):
    """Rows of several rewards, a list each; their weighted sum is what `score` would write."""
    names = [chr(ord("a") + i) for i in range(len(rewards))]
    columns = {
        f"reward_{name}": pl.Series(values, dtype=pl.Float64) for name, values in zip(names, rewards, strict=True)
    }
    columns |= {f"weight_{name}": [w] * len(rewards[0]) for name, w in zip(names, weights, strict=True)}
    sums = [sum(w * (v or 0) for w, v in zip(weights, row, strict=True)) for row in zip(*rewards, strict=True)]
    out, _ = advantage_rows(table(ids or ["a"] * len(sums), sums, [1] * len(sums), **columns), config)
    return [row[0] for row in out["advantages"]]


GDPO = Grpo(rewards="normalise_then_sum", ddof=0, eps=0.0)


def test_rewards_whose_sums_are_equal_are_told_apart_when_each_is_normalised_first():
    # The paper's example in small: sums are 1 1 0, but the first reward is rarer than the second.
    one, other = [1, 0, 0, 0], [0, 1, 1, 0]
    grpo = several([one, other], [1, 1], Grpo(ddof=0, eps=0.0))
    assert grpo[0] == grpo[1] == grpo[2]
    # (1 0 0 0): mean 1/4, std √3/4: √3, -1/√3 ...; (0 1 1 0): ±1. S = √3-1, 1-1/√3, 1-1/√3, -1-1/√3
    s = np.array([math.sqrt(3) - 1, 1 - 1 / math.sqrt(3), 1 - 1 / math.sqrt(3), -1 - 1 / math.sqrt(3)])
    np.testing.assert_allclose(several([one, other], [1, 1], GDPO), s / s.std(), rtol=1e-6)


def test_normalising_first_makes_a_rewards_scale_meaningless_and_its_weight_meaningful():
    one, other = [1, 0, 0, 0.5], [0, 1, 0, 1]
    plain = several([one, other], [1, 1], GDPO)
    np.testing.assert_allclose(several([[100 * r for r in one], other], [1, 1], GDPO), plain, rtol=1e-6)
    assert abs(several([one, other], [3, 1], GDPO)[0] - plain[0]) > 0.1
    np.testing.assert_allclose(several([one], [2], GDPO), np.array(grpo_by_definition(one, 0, 0)), rtol=1e-6)


def test_a_reward_that_does_not_apply_adds_nothing_and_a_constant_one_nothing_either():
    one = [1, 0, 1, 0]
    alone = several([one], [1], GDPO)
    np.testing.assert_allclose(several([one, [0.35] * 4], [1, 5], GDPO), alone, rtol=1e-6)
    np.testing.assert_allclose(several([one, [None] * 4], [1, 5], GDPO), alone, rtol=1e-6)
    np.testing.assert_allclose(several([one, [9, 1, 5, 2]], [1, 0], GDPO), alone, rtol=1e-6)


@given(
    st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=4, max_size=24),
    st.lists(st.floats(-2, 2), min_size=2, max_size=2),
)
def test_decoupled_is_by_the_papers_formula(rows, weights):
    numbers = np.array([g for g, _, _ in rows])
    parts = [np.array([row[i] for row in rows], dtype=float) for i in (1, 2)]
    config = Grpo(rewards="normalise_then_sum", ddof=1, eps=1e-4)
    got = decoupled(list(zip(weights, parts, strict=True)), np.zeros(len(rows)), numbers, config)
    total = np.zeros(len(rows))
    for weight, part in zip(weights, parts, strict=True):
        for group in set(numbers.tolist()):
            mine = numbers == group
            if len(set(part[mine])) > 1:
                total[mine] += weight * np.array(grpo_by_definition(part[mine].tolist()))
    if np.ptp(total) > 1e-6:
        np.testing.assert_allclose(got, (total - total.mean()) / (total.std(ddof=1) + 1e-4), rtol=1e-5, atol=1e-6)
