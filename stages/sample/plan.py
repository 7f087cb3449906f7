"""What a configuration will draw over its iterations, as far as it is known before a run. Pure."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from stages.contract.errors import ConfigError
from stages.sample.config import LevelsCurriculum, SampleConfig
from stages.sample.prompt_selection import choose, rows_by_source
from stages.sample.quotas import portions


def plan(prompts: pl.DataFrame, config: SampleConfig, iterations: int) -> dict[str, Any]:
    """How often each source is drawn from, and when a level is opened.

    Args:
        prompts: table `prompts` of training prompts.
        config: weights, prompts an iteration, curriculum.
        iterations: of the run.

    Returns:
        sources: of each its name ("" for all), weight, share, prompts, `an_iteration` (prompts drawn, in the mean) and
        passes over its prompts in all iterations; levels: of each its prompts and the iteration that opens it (None
        where success does); problems: why iterations cannot draw.
    """
    weights = config.weights or {"": 1.0}
    name = pl.col("source").fill_null("") if config.weights else pl.lit("")
    counts = dict.fromkeys(weights, 0) | dict(
        prompts.group_by(name.alias("name"), maintain_order=True).len().iter_rows()
    )
    drawn = portions(weights, iterations * config.prompts)
    sources = [
        {
            "source": s,
            "weight": weight,
            "share": weight / sum(weights.values()),
            "prompts": counts[s],
            "an_iteration": drawn[s] / iterations,
            "passes": drawn[s] / counts[s] if counts[s] else None,
        }
        for s, weight in weights.items()
    ]
    levels = _levels(prompts, config)
    begun = sorted({1, *(level["from"] for level in levels if level["from"] and level["from"] <= iterations)})
    return {"sources": sources, "levels": levels, "problems": list(_problems(prompts, config, begun))}


def _levels(prompts: pl.DataFrame, config: SampleConfig) -> list[dict[str, Any]]:
    curriculum = config.curriculum
    if not isinstance(curriculum, LevelsCurriculum):
        return []
    every = curriculum.every
    drawn = np.concatenate(list(rows_by_source(prompts, config.weights or {"": 1.0}).values()))
    found = prompts[drawn].drop_nulls("level").group_by("level", maintain_order=True).len().sort("level")
    return [
        {"level": level, "prompts": count, "from": 1 if i == 0 else 1 + i * every if every is not None else None}
        for i, (level, count) in enumerate(found.iter_rows())
    ]


def _problems(prompts: pl.DataFrame, config: SampleConfig, begun: list[int]) -> Iterator[str]:
    """Why an iteration in which a level is opened cannot draw; the first one says why none can."""
    for k in begun:
        try:
            choose(prompts, config, 0, k)
        except ConfigError as error:
            yield str(error)
            return
