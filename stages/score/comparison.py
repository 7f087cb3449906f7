"""Completions under other rewards than those they were trained with: what changes, and what looks like hacking. Pure.

Dimensions: T tokens of a completion.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from stages.contract import tables
from stages.contract.columns import KEY, RESCORED, RESCORED_ITERATIONS, RESCORED_REWARDS

OLD, NEW = "old", "new"
"""The rewards that the run was trained with, and the sum of the other ones."""
N_GRAM = 4
"""Tokens of the pieces of which a completion that repeats itself has many equal ones."""
REPEATED = 0.5
"""Share of repeated pieces from which on a completion is suspected."""
FAR = 3.5
"""Robust deviations from the median from which on a length is an outlier (Iglewicz and Hoaglin, 1993)."""
SUSPICIONS = ("wrong", "length", "repetition")


def compared(
    rollouts: pl.DataFrame,
    old: pl.DataFrame,
    new: pl.DataFrame,
    advantages: tuple[pl.DataFrame | None, pl.DataFrame | None],
    k: int,
    heldout: bool,
    success: tuple[str, float],
) -> pl.DataFrame:
    """The table `rescored` of one iteration's completions, or of its held-out ones.

    Args:
        rollouts: the completions.
        old: their scores.
        new: table `scores` by the other rewards.
        advantages: tables `advantages` by the old and by the new rewards; None where there are none.
        k: the iteration.
        heldout: whether the prompts are held out.
        success: name of the old reward that says what is right, and from which value on.
    """
    name, threshold = success
    mine = new.select(*KEY, pl.col("reward").alias(NEW), "error", pl.col("^(reward|status|note)_.*$"))
    theirs = old.select(*KEY, pl.col("reward").alias(OLD), _right(old, f"reward_{name}", threshold))
    drawn = rollouts.select(
        *KEY,
        "task",
        pl.col("completion_tokens").list.len().cast(pl.Int32).alias("length"),
        pl.Series("repetition", [repetition(tokens) for tokens in rollouts["completion_tokens"]], dtype=pl.Float64),
    )
    rows = tables.join(tables.join(drawn, theirs, "rollouts and scores"), mine, "rollouts and new scores")
    for side, table in zip((OLD, NEW), advantages, strict=True):
        column = f"{side}_advantage"
        if table is None:
            rows = rows.with_columns(pl.lit(None, dtype=pl.Float64).alias(column))
        else:
            rows = tables.join(rows, table.select(*KEY, _advantage(column)), f"rollouts and advantages ({side})")
    rows = rows.with_columns(
        pl.lit(k, dtype=pl.Int32).alias("iteration"),
        pl.lit(heldout).alias("heldout"),
        pl.concat_str(_sign(f"{OLD}_advantage"), _sign(f"{NEW}_advantage")).alias("sides"),
        *(_suspicion(side).alias(f"{side}_suspect") for side in (OLD, NEW)),
    )
    return tables.frame(RESCORED, {name: rows[name] for name in _ordered(rows)})


def repetition(tokens: Sequence[int]) -> float:
    """The share of the completion's pieces of `N_GRAM` tokens that came before in it: 1 - distinct / all, in [0, 1)."""
    pieces = [tuple(tokens[i : i + N_GRAM]) for i in range(len(tokens) - N_GRAM + 1)]
    return 1.0 - len(set(pieces)) / len(pieces) if pieces else 0.0


def reward_figures(rows: pl.DataFrame) -> pl.DataFrame:
    """The table `rescored_rewards`: figures of the old reward, the new one and each of its parts.

    For training and held-out prompts by themselves, for each iteration and for all (iteration null).
    """
    names = [OLD, NEW, *(name for name in rows.columns if name.startswith("reward_"))]
    out = [
        {"iteration": k, "heldout": heldout, "reward": name.removeprefix("reward_"), **_figures(part, name)}
        for k, heldout, part in _parts(rows)
        for name in names
    ]
    return tables.frame(
        RESCORED_REWARDS, {field.name: [row[field.name] for row in out] for field in RESCORED_REWARDS.fields}
    )


def iteration_figures(rows: pl.DataFrame) -> pl.DataFrame:
    """The table `rescored_iterations`: how the advantages move, and how many completions are suspected."""
    out = []
    for k, heldout, part in _parts(rows):
        sides = part["sides"]
        counts = {name: int(sides.is_in(values).sum()) for name, values in _MOVES.items()}
        for side in (OLD, NEW):
            told = part[f"{side}_suspect"].fill_null("")
            counts |= {f"{side}_{kind}": int(told.str.contains(kind).sum()) for kind in SUSPICIONS}
        moved = _correlation(part, f"{OLD}_advantage", f"{NEW}_advantage", "pearson")
        out.append({"iteration": k, "heldout": heldout, "rows": part.height, "advantage_correlation": moved, **counts})
    fields = [field.name for field in RESCORED_ITERATIONS.fields]
    return tables.frame(RESCORED_ITERATIONS, {name: [row[name] for row in out] for name in fields})


_MOVES = {"up": ["-+"], "down": ["+-"], "gained": ["0+", "0-"], "lost": ["+0", "-0"]}
"""Old and new side of a completion: now encouraged, now discouraged, now with a signal, now without."""


def _parts(rows: pl.DataFrame) -> Iterator[tuple[int | None, bool, pl.DataFrame]]:
    for heldout in (False, True):
        part = rows.filter(pl.col("heldout") == heldout)
        if part.height:
            for (k,), some in part.group_by("iteration", maintain_order=True):
                yield int(k), heldout, some
            yield None, heldout, part


def _figures(part: pl.DataFrame, name: str) -> dict[str, Any]:
    values = part[name].drop_nulls()
    groups = (
        part.filter(pl.col(name).is_not_null())
        .group_by("iteration", "prompt_id", maintain_order=True)
        .agg(pl.len().alias("count"), (pl.col(name).max() == pl.col(name).min()).alias("constant"))
        .filter(pl.col("count") > 1)
    )
    return {
        "rows": part.height,
        "missing": part.height - len(values),
        "mean": values.mean(),
        "std": values.std() if len(values) > 1 else None,
        "correlation": _correlation(part, OLD, name, "pearson"),
        "rank_correlation": _correlation(part, OLD, name, "spearman"),
        "groups": groups.height,
        "constant_groups": int(groups["constant"].sum()),
    }


def _correlation(part: pl.DataFrame, one: str, other: str, method: Any) -> float | None:
    """Over the rows that have both; None where there are less than two, or one of the two is constant."""
    if one == other:
        return None
    both = part.select(a=pl.col(one), b=pl.col(other)).drop_nulls()
    if both.height < 2 or both["a"].n_unique() < 2 or both["b"].n_unique() < 2:
        return None
    return float(both.select(pl.corr("a", "b", method=method)).item())


def _right(old: pl.DataFrame, column: str, threshold: float) -> pl.Expr:
    if column not in old.columns:
        return pl.lit(None, dtype=pl.Boolean).alias("right")
    return (pl.col(column) >= threshold).alias("right")


def _advantage(column: str) -> pl.Expr:
    """The mean over a completion's tokens; 0 where it is not trained on."""
    return pl.when("train").then(pl.col("advantages").list.mean().cast(pl.Float64)).otherwise(0.0).alias(column)


def _sign(column: str) -> pl.Expr:
    return (
        pl.when(pl.col(column) > 0)
        .then(pl.lit("+"))
        .when(pl.col(column) < 0)
        .then(pl.lit("-"))
        .when(pl.col(column) == 0)
        .then(pl.lit("0"))
    )


def _suspicion(reward: str) -> pl.Expr:
    """Why a row is suspected of having got a high reward by other means than a good answer; null where it is not.

    High is what is above the mean and in the upper quarter.
    """
    value = pl.col(reward)
    high = (value >= value.quantile(0.75, "lower")) & (value > value.mean())
    reasons = {
        "wrong": ~pl.col("right"),
        "length": _outlier("length"),
        "repetition": pl.col("repetition") >= REPEATED,
    }
    told = pl.concat_str(
        [pl.when(high & reason).then(pl.lit(name)) for name, reason in reasons.items()],
        separator=" ",
        ignore_nulls=True,
    )
    return pl.when(told != "").then(told)


def _outlier(column: str) -> pl.Expr:
    """|x - median| / (1.4826 · median |x - median|) > 3.5; where most are equal, by 1.2533 · mean |x - median|.

    And at least twice the median, or at most half of it: where all are nearly equal, one token more is nothing.
    """
    middle = pl.col(column).median()
    far = (pl.col(column) - middle).abs()
    spread = pl.when(far.median() > 0).then(1.4826 * far.median()).otherwise(1.2533 * far.mean())
    return (far > FAR * spread) & ((pl.col(column) >= 2 * middle) | (2 * pl.col(column) <= middle))


def _ordered(rows: pl.DataFrame) -> list[str]:
    fixed = [field.name for field in RESCORED.fields]
    return [*fixed, *(name for name in rows.columns if name not in fixed)]
