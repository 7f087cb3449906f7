"""The paired bootstrap: against intervals worked out by hand, and how often it covers what is true."""

import numpy as np
import polars as pl
import pytest

from stages.contract.errors import ArtifactError
from stages.evaluate.compare import bootstrap_interval, compare
from stages.evaluate.config import PromotionConfig


def evaluation(successes: list[int], samples: int = 1, rewards: list[float | None] | None = None) -> pl.DataFrame:
    """What the comparison reads of a table `evaluation`."""
    n = len(successes)
    return pl.DataFrame(
        {
            "prompt_id": [f"p{i}" for i in range(n)],
            "samples": [samples] * n,
            "successes": successes,
            "reward_mean": pl.Series(rewards or [float(s) for s in successes], dtype=pl.Float64),
            "pass_at_2": [float(s > 1) for s in successes],
        }
    )


def test_the_interval_of_four_gains_in_ten_is_the_binomials() -> None:
    # A resampled mean is c/10 with c ~ Binomial(10, 0.4): P(c = 0) = 0.006 and P(c <= 1) = 0.046, so that c = 1 is the
    # quantile at 0.025; P(c <= 6) = 0.945 and P(c <= 7) = 0.988, so that c = 7 is the one at 0.975.
    low, high = bootstrap_interval(np.array([1.0] * 4 + [0.0] * 6), 0.95, 20_000, seed=1)
    assert (low, high) == pytest.approx((0.1, 0.7), abs=1e-12)


def test_the_interval_of_two_prompts_by_hand() -> None:
    # Means 0, 1/2 and 1 with chances 1/4, 1/2 and 1/4: the middle 40 % are 1/2, the middle 60 % go from 0 to 1.
    assert bootstrap_interval(np.array([0.0, 1.0]), 0.40, 20_000, seed=2) == (0.5, 0.5)
    assert bootstrap_interval(np.array([0.0, 1.0]), 0.60, 20_000, seed=2) == (0.0, 1.0)


def test_equal_differences_have_an_interval_without_width() -> None:
    assert bootstrap_interval(np.full(12, 0.25), 0.95, 500, seed=0) == (0.25, 0.25)


def test_counts_of_distinct_differences_are_resampled_prompts() -> None:
    """The short cut gives the distribution that drawing prompts one by one gives."""
    values = np.random.default_rng(3).choice([-1.0, -0.5, 0.0, 0.5, 1.0], 40, p=[0.1, 0.2, 0.3, 0.2, 0.2])
    drawn = values[np.random.default_rng(4).integers(0, 40, (40_000, 40))].mean(1)
    low, high = bootstrap_interval(values, 0.9, 40_000, seed=5)
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.05, 0.95])), abs=0.0126)  # half a prompt


def test_an_interval_of_95_percent_covers_the_truth_19_times_in_20() -> None:
    generator, covered, sets = np.random.default_rng(6), 0, 600
    outcomes, chances = np.array([-1.0, 0.0, 1.0]), np.array([0.15, 0.55, 0.3])
    truth = float(outcomes @ chances)
    for i in range(sets):
        low, high = bootstrap_interval(generator.choice(outcomes, 120, p=chances), 0.95, 2_000, seed=i)
        covered += low <= truth <= high
    assert 0.925 < covered / sets < 0.975  # 0.95 give or take 2.8 of its standard errors


def test_of_equal_policies_one_in_forty_is_called_better() -> None:
    """Two policies that answer each prompt with the same chance, some prompts hard and some easy."""
    generator, better, pairs = np.random.default_rng(7), 0, 600
    chance = generator.uniform(size=120)
    for i in range(pairs):
        old, new = generator.binomial(4, chance) / 4, generator.binomial(4, chance) / 4
        better += bootstrap_interval(new - old, 0.95, 2_000, seed=i)[0] > 0
    assert 0.008 < better / pairs < 0.045


def test_prompts_are_paired() -> None:
    old = evaluation([0, 1] * 10)
    same = compare(old, evaluation([0, 1] * 10), PromotionConfig(), seed=1)
    crossed = compare(old, evaluation([1, 0] * 10), PromotionConfig(), seed=1)
    assert (same.old, same.new, same.low, same.high) == (0.5, 0.5, 0.0, 0.0)
    assert crossed.new == 0.5 and crossed.low < -0.3 and crossed.high > 0.3
    assert not same.better and not crossed.better


def test_rows_in_another_order_change_nothing() -> None:
    old, new = evaluation([0, 0, 1, 1, 0] * 4), evaluation([1, 0, 1, 1, 1] * 4)
    told = compare(old, new, PromotionConfig(), seed=2)
    assert told == compare(old, new.reverse(), PromotionConfig(), seed=2)
    assert told.better and told.difference == pytest.approx(0.4) and told.prompts == 20


def test_a_prompt_without_a_verdict_is_left_out() -> None:
    old, new = evaluation([0] * 12), evaluation([1] * 12)
    none = new.with_columns(pl.Series("samples", [0, *[1] * 11]), pl.Series("successes", [0, *[1] * 11]))
    told = compare(old, none, PromotionConfig(), seed=1)
    assert (told.prompts, told.new) == (11, 1.0)


def test_the_margin_is_to_be_cleared_by_the_lower_end() -> None:
    old, new = evaluation([0] * 10), evaluation([1] * 4 + [0] * 6)
    assert compare(old, new, PromotionConfig(margin=0.05), seed=1).better
    assert not compare(old, new, PromotionConfig(margin=0.1), seed=1).better
    assert not compare(new, old, PromotionConfig(), seed=1).better


def test_what_is_measured_can_be_chosen() -> None:
    old, new = evaluation([1] * 12, samples=4), evaluation([2] * 12, samples=4)
    assert compare(old, new, PromotionConfig(), seed=1).difference == 0.25
    assert compare(old, new, PromotionConfig(measure="pass_at_2"), seed=1).difference == 1.0
    rewarded = evaluation([1] * 12, samples=4, rewards=[0.5] * 11 + [None])
    one = compare(old, rewarded, PromotionConfig(measure="reward"), seed=1)
    assert (one.prompts, one.difference) == (11, -0.5)  # the prompt without a reward is left out


def test_other_prompts_or_too_few_cannot_be_compared() -> None:
    with pytest.raises(ArtifactError, match="different prompts"):
        compare(evaluation([1] * 12), evaluation([1] * 13), PromotionConfig(), seed=1)
    with pytest.raises(ArtifactError, match="9 held-out prompts cannot tell two policies apart; 10 are the fewest"):
        compare(evaluation([0] * 9), evaluation([1] * 9), PromotionConfig(), seed=1)
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval(np.array([0.0, np.nan]), 0.95, 100, seed=0)
