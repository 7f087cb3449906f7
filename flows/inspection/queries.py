"""What the reading commands read: status, completions, SQL. Nothing here writes."""

from typing import Any

import polars as pl

from flows.config.schema import RunConfig
from flows.config.stages import place_of
from flows.inspection.metrics import iteration_metrics
from flows.runs.history import History, chosen
from flows.runs.staleness import StageState, examine
from stages.contract import tables
from stages.contract.columns import ADVANTAGES, KEY, ROLLOUTS, SCORES
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.manifest import stage_folders
from stages.contract.paths import RunPaths

TABLES = {
    "rollouts": "sample/rollouts.parquet",
    "scores": "score/scores.parquet",
    "advantages": "advantage/advantages.parquet",
    "steps": "update/steps.parquet",
    "evaluation": "evaluate/evaluation.parquet",
    "heldout_rollouts": "evaluate/rollouts.parquet",
    "heldout_scores": "evaluate/scores.parquet",
    "prompts": "prompts/train.parquet",
    "heldout_prompts": "prompts/heldout.parquet",
    "demonstrations": "update/demonstrations.parquet",
    "supervised_steps": "update/supervised_steps.parquet",
}
"""The tables that SQL can name; each has the column `iteration` before its own."""


def status(paths: RunPaths, config: RunConfig, iterations: int | None = None) -> list[dict[str, Any]]:
    """For each iteration its stages (status, reason, seconds, rows) and metrics."""
    history = History(paths)
    last = iterations if iterations is not None else max(config.iterations, history.last())
    out: list[dict[str, Any]] = [{"iteration": k, "stages": {}} for k in range(last + 1)]
    for state in examine(history, config, last):
        out[state.iteration]["stages"][state.stage] = _stage(state)
        out[state.iteration]["stages"][state.stage]["pruned"] = history.pruned(state.iteration, place_of(state.stage))
    for entry in out:
        entry["metrics"] = iteration_metrics(history, entry["iteration"])
    return out


def _stage(state: StageState) -> dict[str, Any]:
    manifest = state.manifest
    rows = [record.rows for record in manifest.outputs.values() if record.rows is not None] if manifest else []
    return {
        "status": state.status,
        "reason": state.reason,
        "seconds": round(manifest.seconds, 3) if manifest else None,
        "rows": max(rows, default=None),
        "dropped": manifest.dropped if manifest else {},
    }


def completions(
    paths: RunPaths, iteration: int | None, prompt: str | None, best: int | None, worst: int | None
) -> tuple[int, list[dict[str, Any]]]:
    """Completions of an iteration with rewards and, where they exist, advantages.

    Args:
        paths: the run.
        iteration: None takes the last one that was scored.
        prompt: a prompt's id, or its beginning; None takes all prompts.
        best: only so many, of the highest rewards.
        worst: only so many, of the lowest rewards.

    Raises:
        ConfigError: no such iteration or prompt.
    """
    k = chosen(paths, "score/scores.parquet", iteration, "scores")
    rollouts = tables.read(paths.stage(k, "sample") / "rollouts.parquet", ROLLOUTS)
    scores = tables.read(paths.stage(k, "score") / "scores.parquet", SCORES).drop("reference_logprobs", "values")
    rows = tables.join(rollouts, scores, f"rollouts and scores of iteration {k}")
    path = paths.stage(k, "advantage") / "advantages.parquet"
    if path.is_file():
        advantages = tables.read(path, ADVANTAGES).with_columns(pl.col("advantages").list.first().alias("advantage"))
        kept = advantages.select(*KEY, "advantage", "train", "reason")
        try:
            rows = tables.join(rows, kept, f"rollouts and advantages of iteration {k}")
        except ArtifactError:
            rows = rows.join(kept, on=KEY, how="left", maintain_order="left")
    if prompt is not None:
        rows = rows.filter(pl.col("prompt_id").str.starts_with(prompt))
        if not rows.height:
            raise ConfigError(f"iteration {k} has no prompt whose id begins with {prompt!r}")
    if best is not None or worst is not None:
        rows = rows.sort("reward", descending=best is not None, nulls_last=True, maintain_order=True)
        rows = rows.head(best or worst or rows.height)
    return k, rows.drop("prompt_tokens", "completion_tokens", "sampler_logprobs", "metadata").to_dicts()


def sql(paths: RunPaths, query: str) -> pl.DataFrame:
    """The result of a query over the tables of all iterations.

    Raises:
        ConfigError: the query cannot be run; says why and which tables there are.
    """
    frames, folders = {}, stage_folders(paths.iterations)
    for name, place in TABLES.items():
        files = [folder.parent / place for folder in folders if folder.name == place.split("/")[0]]
        parts = [
            pl.scan_parquet(file).select(pl.lit(int(file.parts[-3]), dtype=pl.Int32).alias("iteration"), pl.all())
            for file in files
            if file.is_file()
        ]
        if parts:
            frames[name] = pl.concat(parts, how="diagonal")
    try:
        return pl.SQLContext(frames).execute(query, eager=True)
    except pl.exceptions.PolarsError as error:
        there = ", ".join(frames) or "none yet"
        problem = str(error).split("\n", 1)[0]
        raise ConfigError(f"the query cannot be run: {problem}; tables of this run: {there}") from error
