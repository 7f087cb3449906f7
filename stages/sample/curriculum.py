"""Curricula: which prompts an iteration takes by their levels, or by what came of them before. Pure.

Dimensions: N prompts of the run, in the order of its tables.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import polars as pl

from stages.contract.errors import ConfigError
from stages.sample.config import LevelsCurriculum, SampleConfig, SuccessCurriculum
from stages.sample.quotas import Rows

Rank = Callable[[Rows, int, np.random.Generator], Rows | None]
"""Rows of a source, how many an iteration takes, randomness → those that may be taken, these first. None where the
curriculum says nothing of such rows."""
_SUCCESSES = pl.Schema({"prompt_id": pl.String, "success": pl.Float64})


def ranking(
    prompts: pl.DataFrame,
    drawn: Rows,
    curriculum: LevelsCurriculum | SuccessCurriculum | None,
    k: int,
    scores: Mapping[int, pl.DataFrame],
    former: int | None,
    notes: dict[str, Any],
) -> Rank | None:
    """How a curriculum ranks prompts; None without one.

    Args:
        prompts: table `prompts`.
        drawn: rows of the sources that are drawn from.
        curriculum: which.
        k: the iteration.
        scores: tables `scores` of the iterations that `reads` names.
        former: the level that was open in the iteration before; None where none had been opened.
        notes: is told of it.
    """
    match curriculum:
        case SuccessCurriculum():
            return _by_success(prompts, curriculum, scores, notes)
        case LevelsCurriculum():
            return _by_level(prompts, drawn, curriculum, k, scores.get(k - 1), former, notes)
    return None


def reads(config: SampleConfig, k: int) -> list[int]:
    """The earlier iterations whose scores decide what iteration `k` takes."""
    match config.curriculum:
        case SuccessCurriculum(window=window):
            return list(range(max(1, k - window), k))
        case LevelsCurriculum(every=None) if k > 1:
            return [k - 1]
    return []


def keeps_level(config: SampleConfig) -> bool:
    """Whether an iteration goes by the level that was open in the one before."""
    return isinstance(config.curriculum, LevelsCurriculum) and config.curriculum.every is None


def successes(scores: pl.DataFrame, curriculum: LevelsCurriculum | SuccessCurriculum) -> pl.DataFrame:
    """Share of successes of each prompt in an iteration, as prompt_id, success; failed rewards do not count.

    An iteration that was scored without the reward says nothing.
    """
    named = [name.removeprefix("reward_") for name in scores.columns if name.startswith("reward_")]
    asked = named if curriculum.reward is None else [name for name in named if name == curriculum.reward]
    if not asked:
        return _SUCCESSES.to_frame()
    verdicts = [
        pl.when(pl.col(f"status_{name}") != "null").then(pl.col(f"reward_{name}").fill_null(math.nan)) for name in asked
    ]
    known = scores.with_columns(pl.coalesce(verdicts).alias("verdict")).filter(pl.col("verdict").is_finite())
    share = (pl.col("verdict") >= curriculum.threshold).mean().alias("success")
    return known.group_by("prompt_id", maintain_order=True).agg(share)


def open_level(
    levels: Sequence[int], curriculum: LevelsCurriculum, k: int, former: int | None, success: float | None
) -> int:
    """The highest level that iteration `k` may draw from.

    Args:
        levels: those that there are, ascending.
        curriculum: by iterations, or by success.
        k: the iteration, from 1.
        former: the level that was open in the iteration before; None where none had been opened.
        success: the share of successes at that level in the iteration before; None where it is not known.
    """
    if curriculum.every is not None:
        return levels[min((k - 1) // curriculum.every, len(levels) - 1)]
    at = 0 if former is None else max(0, bisect_right(levels, former) - 1)
    assert curriculum.success is not None
    return levels[min(at + (success is not None and success >= curriculum.success), len(levels) - 1)]


def _by_success(
    prompts: pl.DataFrame, curriculum: SuccessCurriculum, scores: Mapping[int, pl.DataFrame], notes: dict[str, Any]
) -> Rank:
    """Draws without putting back, by weights: 4p(1-p) or at least `floor` for a share p of successes, 1 for unknown."""
    told = [successes(scores[j], curriculum) for j in sorted(scores)]
    latest = pl.concat([_SUCCESSES.to_frame(), *told]).unique("prompt_id", keep="last")
    known = prompts.select("prompt_id").join(latest, on="prompt_id", how="left", maintain_order="left")["success"]
    learnable = (4 * known * (1 - known)).to_numpy()
    weights_N = np.where(np.isnan(learnable), 1.0, curriculum.floor + (1 - curriculum.floor) * learnable)
    notes["curriculum"] = {"prompts_with_a_history": int(known.is_not_null().sum()), "success": known.mean()}

    def rank(rows: Rows, count: int, random: np.random.Generator) -> Rows:
        keys = np.log1p(-random.random(rows.size)) / weights_N[rows]  # Efraimidis and Spirakis: the greatest keys win
        ranked: Rows = rows[np.argsort(-keys, kind="stable")]
        return ranked

    return rank


def _by_level(
    prompts: pl.DataFrame,
    drawn: Rows,
    curriculum: LevelsCurriculum,
    k: int,
    scores: pl.DataFrame | None,
    former: int | None,
    notes: dict[str, Any],
) -> Rank:
    """Draws from the highest open level, and a part from the lower ones and from what has no level."""
    levels_N = prompts["level"].fill_null(-1).to_numpy()
    there = sorted({int(level) for level in levels_N[drawn] if level >= 0})
    if not there:
        raise ConfigError("sample.curriculum: no prompt that this run draws has a level; set it to null")
    success = None
    if former is not None and scores is not None:
        asked = scores.join(prompts.filter(level=former), on="prompt_id", how="semi", maintain_order="left")
        success = cast(float | None, successes(asked, curriculum)["success"].mean())
        if asked.height and success is None:
            told = f"no completion of level {former} of iteration {k - 1} has a verdict: the level stays"
            notes["warnings"] = [f"sample.curriculum: {told}"]
    opened = open_level(there, curriculum, k, former, success)
    notes["curriculum"] = {"level": opened}

    def rank(rows: Rows, count: int, random: np.random.Generator) -> Rows | None:
        mine = levels_N[rows]
        if (mine < 0).all():
            return None
        top = max((x for x in mine if 0 <= x <= opened), default=min(x for x in mine if x >= 0))
        newest, lower = random.permutation(rows[mine == top]), random.permutation(rows[mine < top])
        of_newest = min(count - min(int(curriculum.rehearsal * count), lower.size), newest.size)
        of_lower = count - of_newest
        parts = (newest[:of_newest], lower[:of_lower], newest[of_newest:], lower[of_lower:])
        ranked: Rows = np.concatenate(parts)
        return ranked

    return rank
