"""Dynamic sampling (DAPO, arXiv:2503.14476, section 3.2): draws more prompts until enough groups have a difference.

Here an iteration keeps all that it draws; the advantages leave the constant groups out, each with its reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

Judge = Callable[[pl.DataFrame], pl.Series]
"""Rollouts → their rewards, in their order; null where a reward failed."""


@dataclass(frozen=True)
class Filled:
    """What was drawn until the batch was full, or the rounds were used up."""

    rollouts: pl.DataFrame
    rounds: int
    groups: int
    """Prompts that were answered."""
    useful: int
    """Groups with two different rewards: never more than were wanted."""


def fill(
    rollouts: pl.DataFrame,
    wanted: int,
    more: Sequence[int],
    rounds: int,
    draw: Callable[[Sequence[int]], pl.DataFrame],
    judge: Judge,
) -> Filled:
    """Adds to the first round's rollouts: from `more` as many prompts as groups are missing, until none is.

    Args:
        rollouts: of the first round.
        wanted: groups with two different rewards.
        more: other prompts, in the order in which they are taken.
        rounds: rounds at most, the first one included.
        draw: answers prompts; a prompt that is too long may be left out.
        judge: says which reward each completion would get.
    """
    parts, taken = [rollouts], 0
    useful = useful_groups(rollouts, judge(rollouts))
    while len(parts) < rounds and (asked := more[taken : taken + wanted - useful]):
        taken += len(asked)
        parts.append(draw(asked))
        useful += useful_groups(parts[-1], judge(parts[-1]))
    whole = pl.concat(parts)
    return Filled(whole, len(parts), whole["prompt_id"].n_unique(), useful)


def useful_groups(rollouts: pl.DataFrame, rewards: pl.Series) -> int:
    """Groups with two different rewards; rewards that are missing or not finite do not count."""
    table = pl.DataFrame({"prompt": rollouts["prompt_id"], "reward": rewards.cast(pl.Float64)})
    table = table.filter(pl.col("reward").is_finite())
    spread = table.group_by("prompt", maintain_order=True).agg(
        (pl.col("reward").max() > pl.col("reward").min()).alias("useful")
    )
    return int(spread["useful"].sum())
