"""The stage `advantage`: rollouts, scores → advantages.parquet."""

from collections import Counter

import numpy as np
import polars as pl

from stages.advantage.config import AdvantageConfig
from stages.advantage.filters import reasons
from stages.advantage.groups import group_statistics
from stages.advantage.grpo import advantages
from stages.contract import tables
from stages.contract.columns import ADVANTAGES, KEY, ROLLOUTS, SCORES
from stages.contract.workspace import Job, open_stage


def run(job: Job, config: AdvantageConfig) -> None:
    """Gives each completion of iteration k its advantage."""
    with open_stage(job, "advantage", "advantage", config.model_dump(mode="json")) as desk:
        rollouts = desk.read(job.paths.stage(job.iteration, "sample") / "rollouts.parquet", ROLLOUTS)
        scores = desk.read(job.paths.stage(job.iteration, "score") / "scores.parquet", SCORES)
        lengths = rollouts.select(*KEY, pl.col("completion_tokens").list.len().cast(pl.Int64).alias("length"))
        table = advantage_rows(tables.join(lengths, scores.select(*KEY, "reward"), "rollouts and scores"), config)
        desk.write("advantages.parquet", table, ADVANTAGES)
        counted = Counter(table["reason"].drop_nulls().to_list())
        for reason, count in sorted(counted.items()):
            desk.drop(reason, count)
        desk.metrics |= {
            "trained_rows": float(table["train"].sum()),
            "constant_group_rows": float(counted["constant group"] / table.height),
        }


def advantage_rows(rows: pl.DataFrame, config: AdvantageConfig) -> pl.DataFrame:
    """The table `advantages` of rows with prompt_id, sample, length and reward."""
    rewards_N = rows["reward"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    group_N = (rows["prompt_id"].rank("dense").cast(pl.Int64) - 1).to_numpy()
    groups = group_statistics(rewards_N, group_N, config.ddof)
    reason = reasons(rewards_N, groups, rows["length"].to_numpy())
    values = pl.Series(advantages(rewards_N, groups, config), dtype=pl.Float32)
    return tables.frame(
        ADVANTAGES,
        {
            "prompt_id": rows["prompt_id"],
            "sample": rows["sample"],
            "advantages": values.repeat_by(rows["length"].cast(pl.UInt32)),
            "returns": [None] * rows.height,
            "train": pl.Series([name is None for name in reason], dtype=pl.Boolean),
            "reason": reason,
            "group_mean": pl.Series(groups.mean_N, nan_to_null=True),
            "group_std": pl.Series(groups.std_N, nan_to_null=True),
        },
    )
