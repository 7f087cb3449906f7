"""What each task's completions earned, reward by reward. Pure."""

from typing import Any

import polars as pl


def by_task(tasks: pl.Series, scores: pl.DataFrame) -> list[dict[str, Any]]:
    """A row a task, in the order in which they come: completions, those that have no reward, and means.

    Args:
        tasks: of the rows of `scores`.
        scores: with the columns `reward`, `reward_<name>` and `status_<name>`.

    Returns:
        For each task `task`, `completions`, `no reward`, `reward`, and for each reward its name: the mean over the rows
        that have it, or None where it judges none of them.
    """
    names = [name.removeprefix("status_") for name in scores.columns if name.startswith("status_")]
    told = [pl.len().alias("completions"), pl.col("reward").is_null().sum().alias("no reward"), pl.col("reward").mean()]
    means = [pl.col(f"reward_{name}").mean() for name in names]
    table = scores.with_columns(tasks.alias("task")).group_by("task", maintain_order=True).agg(*told, *means)
    return table.rename({f"reward_{name}": name for name in names if name not in table.columns}).to_dicts()
