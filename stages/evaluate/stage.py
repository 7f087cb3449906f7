"""The stage `evaluate`: held-out prompts, policy k → rollouts.parquet, scores.parquet, evaluation.parquet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from stages.contract import tables
from stages.contract.columns import EVALUATION, PROMPTS, ROLLOUTS, SCORES
from stages.contract.errors import DataError
from stages.contract.metrics import mean
from stages.contract.seeds import derive
from stages.contract.workspace import Job, Workspace, open_stage
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.estimators import majority, pass_at_k

Collect = Callable[[Workspace, pl.DataFrame, Path, Callable[[str, int], int]], pl.DataFrame]
"""(desk, prompts, policy, seed of a completion) → rollouts."""
Score = Callable[[Workspace, pl.DataFrame], pl.DataFrame]
"""(desk, rollouts) → scores."""


def run(
    job: Job, config: EvaluateConfig, section: dict[str, Any], success: str, collect: Collect, score: Score
) -> None:
    """Draws completions of held-out prompts with policy k and judges them.

    The seeds are the same at every iteration, so that two policies are compared on equal terms.

    Args:
        job: run and iteration.
        config: this stage's configuration.
        section: all configuration that decides the output, for the manifest.
        success: the reward that says what a success is.
        collect: draws completions as the stage `sample` does.
        score: judges them as the stage `score` does.
    """
    with open_stage(job, "evaluate", "evaluate", section) as desk:
        prompts = desk.read(job.paths.stage(0, "prompts") / "heldout.parquet", PROMPTS).head(config.prompts)
        if not prompts.height:
            raise DataError("evaluate: the run has no held-out prompts; set prompts.heldout, or evaluate to null")
        rollouts = collect(
            desk,
            prompts,
            job.paths.policy(job.iteration),
            lambda prompt_id, i: derive(job.seed, "evaluate", prompt_id, i),
        )
        with desk.timed("rewards"):
            scores = score(desk, rollouts)
        joined = tables.join(rollouts, scores, "held-out rollouts and scores")
        judged = joined.filter(pl.col(f"status_{success}") != "null")
        if not judged.height:
            raise DataError(
                f"evaluate: the reward {success!r} judges none of the held-out prompts: set evaluate.success"
            )
        desk.drop(f"not judged by {success}", joined.height - judged.height)
        table = per_prompt(judged, config, f"reward_{success}")
        known = sum(table["samples"])
        if not known:
            raise DataError(
                f"evaluate: the reward {success!r} failed on all {judged.height} completions of held-out prompts, the "
                f"first time with: {judged['error'][0]}"
            )
        desk.drop(f"failed under {success}", judged.height - known)
        desk.write("rollouts.parquet", rollouts, ROLLOUTS)
        desk.write("scores.parquet", scores, SCORES)
        desk.write("evaluation.parquet", table, EVALUATION)
        desk.metrics |= {
            "heldout_success": sum(table["successes"]) / known,
            "heldout_reward": mean(scores["reward"]),
            "heldout_length": mean(rollouts["completion_tokens"].list.len()),
            "failed": float(judged.height - known),
        }
        desk.metrics |= {f"pass_at_{k}": mean(table[f"pass_at_{k}"]) for k in config.k}
        if config.samples > 1:
            votes = table.filter(pl.col("samples") > 0)[
                "majority_correct"
            ]  # a prompt that nobody answered has no vote, and counts as wrong
            right = votes.fill_null(False) if votes.drop_nulls().len() else votes
            desk.metrics[f"maj_at_{config.samples}"] = mean(right.cast(pl.Float64))


def per_prompt(judged: pl.DataFrame, config: EvaluateConfig, column: str) -> pl.DataFrame:
    """The table `evaluation`: successes, pass@k and the majority's answer of each prompt.

    A majority is right where a completion with its answer is a success. A completion whose reward failed, and has no
    value, is neither a success nor none: it is left out, and a prompt has no pass@k for a k above those that are left.
    """
    rows: dict[str, list[Any]] = {field.name: [] for field in EVALUATION.fields} | {
        f"pass_at_{k}": [] for k in config.k
    }
    marked = judged.with_columns((pl.col(column) >= config.threshold).alias("success"))
    for (prompt_id,), drawn in marked.group_by("prompt_id", maintain_order=True):
        group = drawn.filter(pl.col("success").is_not_null())
        successes = int(group["success"].sum())
        vote = majority(group["extracted"].to_list())
        rows["prompt_id"].append(prompt_id)
        rows["task"].append(drawn["task"][0])
        rows["samples"].append(group.height)
        rows["successes"].append(successes)
        rows["reward_mean"].append(mean(group["reward"]))
        rows["majority_answer"].append(vote)
        rows["majority_correct"].append(None if vote is None else bool(group.filter(extracted=vote)["success"].any()))
        for k in config.k:
            rows[f"pass_at_{k}"].append(pass_at_k(group.height, successes, k) if k <= group.height else None)
    return tables.frame(EVALUATION, rows)
