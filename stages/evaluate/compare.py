"""Whether one policy is better than another beyond noise: a paired bootstrap over held-out prompts. Pure."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.contract.errors import ArtifactError
from stages.evaluate.config import PromotionConfig

FEWEST = 10
"""Prompts below which nothing is called better: an interval made from so few is far too narrow."""
BLOCK = 1_000
"""Resamples that are drawn at a time."""


@dataclass(frozen=True)
class Comparison:
    """A new policy against an old one, on the same held-out prompts with the same seeds."""

    prompts: int
    """Prompts that both were measured on."""
    old: float
    """Mean of the measure over them."""
    new: float
    low: float
    """Lower end of the interval of `new - old`."""
    high: float
    better: bool
    """Whether the lower end is above the margin."""

    @property
    def difference(self) -> float:
        """`new - old`."""
        return self.new - self.old


def compare(old: pl.DataFrame, new: pl.DataFrame, config: PromotionConfig, seed: int) -> Comparison:
    """Compares two tables `evaluation`; a prompt that either has no value for is left out.

    Raises:
        ArtifactError: the tables are of different prompts, or have too few in common.
    """
    left, right = (table.select("prompt_id", _measure(config.measure).alias("value")) for table in (old, new))
    if set(left["prompt_id"]) != set(right["prompt_id"]):
        raise ArtifactError("the two policies were measured on different prompts; evaluate both again")
    both = left.join(right, on="prompt_id", suffix="_new", maintain_order="left").drop_nulls()
    if both.height < FEWEST:
        raise ArtifactError(f"{both.height} held-out prompts cannot tell two policies apart; {FEWEST} are the fewest")
    before, after = both["value"].to_numpy(), both["value_new"].to_numpy()
    low, high = bootstrap_interval(after - before, config.confidence, config.resamples, seed)
    return Comparison(both.height, float(before.mean()), float(after.mean()), low, high, low > config.margin)


def bootstrap_interval(
    differences: NDArray[np.float64], confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """The percentile interval of the mean difference when the prompts are drawn anew, with replacement.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13; paired over test items as in Koehn,
    "Statistical Significance Tests for Machine Translation Evaluation" (EMNLP 2004). Pairing takes out what both
    policies find hard or easy alike (Miller, "Adding Error Bars to Evals", arXiv:2411.00640, section 4).

    Resamples are drawn as counts of the distinct differences, which is the same distribution.

    Args:
        differences: [N] of each prompt, new less old; all equal gives an interval without width.
        confidence: the share of resampled means between the two ends, e.g. 0.95.
        resamples: how many.
        seed: of the generator.
    """
    if differences.ndim != 1 or not differences.size or not np.isfinite(differences).all():
        raise ValueError(f"differences of shape {differences.shape}: a list of finite numbers is wanted")
    values, counts = np.unique(differences, return_counts=True)
    generator = np.random.default_rng(seed)
    shares, n = counts / differences.size, differences.size
    sizes = [min(BLOCK, resamples - begun) for begun in range(0, resamples, BLOCK)]
    means = np.concatenate([generator.multinomial(n, shares, size) @ values / n for size in sizes])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _measure(name: str) -> pl.Expr:
    if name == "success":
        return pl.when(pl.col("samples") > 0).then(pl.col("successes") / pl.col("samples"))
    return pl.col("reward_mean" if name == "reward" else name)
