"""Which rows are not trained on, and why. Pure.

Dimensions: N rows.
"""

from collections.abc import Collection

import numpy as np
import polars as pl

from stages.advantage.batch import Batch
from stages.advantage.config import AdvantageConfig, GroupMethod, compares_groups
from stages.advantage.groups import Bools, Groups

EMPTY, FAILED, OLD = "empty completion", "no reward", "older policy"
ALONE, CONSTANT, CUT = "group of one", "constant group", "cut by length"


def too_old(digests: pl.Series, policies: Collection[str]) -> Bools:
    """Rows [N] that none of the policies drew whose age the configuration allows."""
    old_N: Bools = ~digests.is_in(list(policies)).to_numpy()
    return old_N


def reasons(batch: Batch, old_N: Bools, groups: Groups, config: AdvantageConfig) -> pl.Series:
    """For each row why it is left out of training, the first reason that applies; null for a row that is trained on.

    Rows that are too old have no reward here, so that a group's statistics do not count them. What is decided by the
    group (alone, constant) is asked only by methods that compare within groups; a completion cut by length is left out
    last, for its reward counts in its group.

    Args:
        batch: the rows, without the rewards of those that are too old.
        old_N: rows drawn by a policy that is too old.
        groups: the groups' statistics.
        config: the method.
    """
    conditions = {EMPTY: batch.length_N == 0, OLD: old_N, FAILED: np.isnan(batch.reward_N)}
    if compares_groups(config):
        conditions[ALONE] = groups.count_N < 2
    if isinstance(config, GroupMethod) and config.constant_groups == "drop":
        conditions[CONSTANT] = groups.constant_N
    if config.truncated == "mask":
        conditions[CUT] = batch.truncated_N
    first_N = np.select(list(conditions.values()), list(range(len(conditions))), default=len(conditions))
    return pl.Series("reason", [*conditions, None], dtype=pl.String).gather(first_N)
