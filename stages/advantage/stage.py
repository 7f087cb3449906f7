"""The stage `advantage`: rollouts, scores → advantages.parquet."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import polars as pl

from stages.advantage.batch import batch_of
from stages.advantage.config import AdvantageConfig, goes_on
from stages.advantage.filters import reasons, too_old
from stages.advantage.methods import Estimate, current, estimate, group_view
from stages.advantage.ragged import to_lists
from stages.contract import tables
from stages.contract.columns import ADVANTAGE_STATE, ADVANTAGES, KEY, ROLLOUTS, SCORES
from stages.contract.config import deciding
from stages.contract.policy import cite_policy
from stages.contract.workspace import Job, Workspace, open_stage

STATE = "state.parquet"


def run(job: Job, config: AdvantageConfig) -> None:
    """Gives each completion of iteration k its advantages."""
    with open_stage(job, "advantage", "advantage", deciding(config)) as desk:
        rollouts = desk.read(job.paths.stage(job.iteration, "sample") / "rollouts.parquet", ROLLOUTS)
        scores = desk.read(job.paths.stage(job.iteration, "score") / "scores.parquet", SCORES)
        table, result = advantage_rows(
            joined(rollouts, scores), config, _policies(job, desk, config.max_age), _former(job, desk, config)
        )
        job.progress(table.height, table.height)
        desk.write("advantages.parquet", table, ADVANTAGES)
        if goes_on(config):
            state = {"name": list(result.state), "value": list(result.state.values())}
            desk.write(STATE, tables.frame(ADVANTAGE_STATE, state), ADVANTAGE_STATE)
        for reason, count in sorted(Counter(table["reason"].drop_nulls().to_list()).items()):
            desk.drop(reason, count)
        desk.metrics |= {"trained_rows": float(table["train"].sum())} | result.figures | result.state


def joined(rollouts: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """The columns of rollouts and scores that advantages are computed from."""
    drawn = rollouts.select(
        *KEY,
        pl.col("completion_tokens").list.len().cast(pl.Int64).alias("length"),
        "sampler_logprobs",
        "finish_reason",
        "policy_digest",
    )
    judged = scores.drop(
        "error", "extracted", *(name for name in scores.columns if name.startswith(("status_", "note_")))
    )
    return tables.join(drawn, judged, "rollouts and scores")


def advantage_rows(
    rows: pl.DataFrame,
    config: AdvantageConfig,
    policies: Collection[str] | None = None,
    former: Mapping[str, float] | None = None,
) -> tuple[pl.DataFrame, Estimate]:
    """The table `advantages` of joined rows, and what else the method gave.

    Args:
        rows: prompt_id, sample, length, reward, and of the columns of rollouts and scores those that the method needs.
        config: the method.
        policies: digests of the policies whose completions are young enough; None takes any.
        former: what the iteration before handed on.
    """
    config = current(config, former or {})
    batch = batch_of(rows)
    nobody_N = np.zeros(rows.height, dtype=np.bool_)
    old_N = nobody_N if policies is None else too_old(rows["policy_digest"], policies)
    batch = batch.without(old_N)
    groups = group_view(batch, config)
    reason = reasons(batch, old_N, groups, config)
    result = estimate(batch, reason.is_null().to_numpy(), config, former or {})
    constant = float((groups.constant_N & (groups.count_N > 1)).mean()) if rows.height else 0.0
    result = replace(result, figures=result.figures | {"constant_group_rows": constant})
    returns = to_lists(result.returns_M, batch.length_N) if result.returns_M is not None else [None] * rows.height
    table = tables.frame(
        ADVANTAGES,
        {
            "prompt_id": rows["prompt_id"],
            "sample": rows["sample"],
            "advantages": to_lists(result.advantages_M, batch.length_N),
            "returns": returns,
            "train": reason.is_null(),
            "reason": reason,
            "group_mean": pl.Series(groups.mean_N, nan_to_null=True),
            "group_std": pl.Series(groups.std_N, nan_to_null=True),
        },
    )
    return table, result


def _former(job: Job, desk: Workspace, config: AdvantageConfig) -> dict[str, float]:
    """What the iteration before handed on to a method that goes on from it."""
    if not goes_on(config) or job.iteration == 1:
        return {}
    table = desk.read(job.paths.stage(job.iteration - 1, "advantage") / STATE, ADVANTAGE_STATE)
    return dict(table.select("name", "value").iter_rows())


def _policies(job: Job, desk: Workspace, max_age: int | None) -> set[str] | None:
    """Digests of the policies that may have drawn this iteration's rollouts: that of k-1 and `max_age` before it."""
    if max_age is None:
        return None
    newest = job.iteration - 1
    return {cite_policy(desk, job.paths.policy(j)) for j in range(max(0, newest - max_age), newest + 1)}
