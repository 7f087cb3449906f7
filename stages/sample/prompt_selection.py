"""Which prompts an iteration takes: pass after pass, by the weights of sources, by a curriculum. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from stages.contract.errors import ConfigError
from stages.contract.seeds import derive
from stages.sample.config import SampleConfig
from stages.sample.curriculum import ranking
from stages.sample.quotas import Rows, in_passes, interleaved, portions


@dataclass(frozen=True)
class Choice:
    """What an iteration takes."""

    first: list[int]
    """Rows of the table: its prompts."""
    more: list[int]
    """Other rows that it may take, in their order, where there is more than one round."""
    notes: dict[str, Any]
    """How it came about: prompts by source, the highest open level, prompts with a history."""


def choose(
    prompts: pl.DataFrame,
    config: SampleConfig,
    seed: int,
    k: int,
    since: int = 0,
    scores: Mapping[int, pl.DataFrame] | None = None,
    former: int | None = None,
) -> Choice:
    """The prompts of iteration `k`.

    Args:
        prompts: table `prompts`.
        config: prompts an iteration, weights, curriculum.
        seed: of the run.
        k: the iteration, from 1.
        since: the iteration that added the last prompts; passes over the prompts begin anew with it.
        scores: tables `scores` of the earlier iterations that `reads` names.
        former: the level that was open in the iteration before, where the curriculum keeps one.

    Raises:
        ConfigError: a source has fewer prompts than an iteration is to take of it.
    """
    weights = config.weights or {"": 1.0}
    counts = {j: portions(weights, j * config.prompts) for j in range(max(since, 1) - 1, k + 1)}
    notes: dict[str, Any] = {}
    sources = rows_by_source(prompts, weights)
    rank = ranking(prompts, np.concatenate(list(sources.values())), config.curriculum, k, scores or {}, former, notes)
    first: list[int] = []
    left: dict[str, Rows] = {}
    for s, rows in sources.items():
        taken = [counts[j][s] - counts[j - 1][s] for j in range(max(since, 1), k + 1)]
        random = np.random.default_rng(derive(seed, "curriculum", s, k))
        ranked = rank(rows, taken[-1], random) if rank else None
        there = rows.size if ranked is None else ranked.size
        if taken[-1] > there:
            of, lower = (f" of {s!r}", f" or sample.weights.{s}") if s else ("", "")
            raise ConfigError(
                f"sample.prompts: iteration {k} is to take {taken[-1]} prompts{of}, and may choose among {there}: "
                f"lower sample.prompts{lower}"
            )
        if ranked is None:
            mine, left[s] = in_passes(rows, taken, seed, since, k, s)
        else:
            mine, left[s] = ranked[: taken[-1]], ranked[taken[-1] :]
        first += mine.tolist()
    if config.weights:
        notes["sources"] = {s: counts[k][s] - counts[k - 1][s] for s in weights}
    more = interleaved({s: rows.tolist() for s, rows in left.items()}, weights) if config.rounds > 1 else ()
    return Choice(first, list(more), notes)


def rows_by_source(prompts: pl.DataFrame, weights: Mapping[str, float]) -> dict[str, Rows]:
    """The rows of each source that is drawn from."""
    if list(weights) == [""]:
        return {"": np.arange(prompts.height)}
    sources = prompts["source"].fill_null("").to_numpy()
    return {s: np.flatnonzero(sources == s) for s, weight in weights.items() if weight > 0}
