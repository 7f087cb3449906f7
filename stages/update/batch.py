"""The rows that are trained on, joined from three tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.contract import tables
from stages.contract.columns import CONSTANT_GROUP, KEY
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.seeds import derive
from stages.model.prefix_batches import TokenBatch, token_batches


@dataclass(frozen=True)
class TrainingRow:
    """A completion with all that the loss needs; T is its tokens."""

    prompt: list[int]
    completion: list[int]
    temperature: float
    sampler_T: Tensor
    advantages_T: Tensor
    reference_T: Tensor | None
    old_T: Tensor | None = None
    """Log-probabilities of the old policy."""
    entropy_T: Tensor | None = None
    """Entropies of the old policy (nats); None where its log-probabilities are taken from the sampler."""
    values_T: Tensor | None = None
    """Values of the critic that the advantages were made with; None without a critic."""
    returns_T: Tensor | None = None
    """What the critic is to foretell."""
    kept_T: Tensor | None = None
    """Booleans: the tokens that the policy loss is taken over; None takes all."""
    name: str = ""
    """The row's key, for messages."""


def rows_told(rows: Sequence[TrainingRow]) -> str:
    """The rows of a batch that is not finite: those in which a number is not, or all where there is none."""

    def finite(row: TrainingRow) -> bool:
        parts = (row.sampler_T, row.advantages_T, row.reference_T, row.old_T, row.values_T, row.returns_T)
        return all(bool(part.isfinite().all()) for part in parts if part is not None)

    wrong = [row.name for row in rows if not finite(row)]
    named = wrong or [row.name for row in rows]
    more = f" and {len(named) - 8} more" if len(named) > 8 else ""
    told = f"{len(wrong)} hold numbers that are not finite" if wrong else "all numbers in them are finite"
    return f"of the batch's {len(rows)} rows {told}: {', '.join(named[:8])}{more}"


def row_batches(
    model: PreTrainedModel, rows: Sequence[TrainingRow], budget: int, device: str
) -> Iterator[tuple[list[int], TokenBatch]]:
    """The rows in micro-batches of at most `budget` padded tokens, each with the numbers of its rows."""
    prompts, completions = [row.prompt for row in rows], [row.completion for row in rows]
    return token_batches(model, prompts, completions, [row.temperature for row in rows], budget, device)


def row_runs(lengths: Sequence[int], limit: int) -> Iterator[tuple[slice, slice]]:
    """Neighbouring rows with at most `limit` completion tokens together, a longer row alone: the rows, their tokens.

    Args:
        lengths: completion tokens of each row.
        limit: of the tokens.
    """
    first = begin = end = 0
    for row, length in enumerate(lengths):
        if row > first and end + length - begin > limit:
            yield slice(first, row), slice(begin, end)
            first, begin = row, end
        end += length
    yield slice(first, len(lengths)), slice(begin, end)


def training_rows(
    rollouts: pl.DataFrame,
    scores: pl.DataFrame,
    advantages: pl.DataFrame,
    with_reference: bool = False,
    with_returns: bool = False,
) -> list[TrainingRow]:
    """The rows with `train`, in the order of the rollouts; with reference log-probabilities where all have them.

    Args:
        rollouts: the table `rollouts`.
        scores: the table `scores`.
        advantages: the table `advantages`.
        with_reference: whether reference log-probabilities are needed.
        with_returns: whether a critic's values and returns are needed.

    Raises:
        ArtifactError: the tables' rows do not match one to one, or a list has not one value for each token.
        ConfigError: reference log-probabilities, values or returns are needed and missing.
    """
    joined = tables.join(rollouts, scores.select(*KEY, "reference_logprobs", "values"), "rollouts and scores")
    made = advantages.select(*KEY, "advantages", "returns", "train")
    joined = tables.join(joined, made, "rollouts and advantages")
    joined = joined.filter("train")
    lengths = joined["completion_tokens"].list.len()
    names = ["sampler_logprobs", "advantages"]
    if referred := joined["reference_logprobs"].null_count() == 0:
        names.append("reference_logprobs")
    elif with_reference:
        raise ConfigError(
            "update.kl.coefficient is above 0, but the scores hold no reference_logprobs: set score.reference"
        )
    if with_returns:
        for name in ("values", "returns"):
            if joined[name].null_count():
                raise ConfigError(f"there is a critic to train, but no {name}: use advantage.type gae with `critic`")
            names.append(name)
    for name in names:
        if not (joined[name].list.len() == lengths).all():
            raise ArtifactError(f"{name}: not one value for each completion token")
    return [
        TrainingRow(
            row["prompt_tokens"],
            row["completion_tokens"],
            row["temperature"],
            torch.tensor(row["sampler_logprobs"]),
            torch.tensor(row["advantages"]),
            torch.tensor(row["reference_logprobs"]) if referred else None,
            values_T=torch.tensor(row["values"]) if with_returns else None,
            returns_T=torch.tensor(row["returns"]) if with_returns else None,
            name=f"{row['prompt_id']}/{row['sample']}",
        )
        for row in joined.iter_rows(named=True)
    ]


def group_counts(rollouts: pl.DataFrame, advantages: pl.DataFrame) -> tuple[int, int, int, int]:
    """Counts for `gpg_factor`: rows, those of constant groups, completion tokens, those trained on.

    A constant group shows by the reason that its rows are not trained on for, or by advantages that are all 0.
    """
    tokens = rollouts.select(*KEY, pl.col("completion_tokens").list.len().cast(pl.Int64).alias("tokens"))
    table = tables.join(tokens, advantages.select(*KEY, "advantages", "train", "reason"), "rollouts and advantages")
    dropped = pl.col("reason") == CONSTANT_GROUP
    table = table.filter(pl.col("train") | dropped)
    nothing = pl.col("advantages").list.eval(pl.element() == 0).list.all()
    constant = table.filter(dropped | nothing.all().over("prompt_id"))
    trained = table.filter("train")
    return table.height, constant.height, int(table["tokens"].sum()), int(trained["tokens"].sum())


def kept_tokens(entropies: Sequence[Tensor], top: float) -> list[Tensor]:
    """For each row booleans [T]: the tokens whose entropy is among the part `top` of the greatest of all rows.

    "Beyond the 80/20 rule", arXiv:2506.01939: entropy ≥ the (1 - top) quantile, linear between ranks; ties are kept.
    """
    threshold = torch.tensor(np.quantile(torch.cat(list(entropies)).double().numpy(), 1 - top))
    return [entropy_T.double() >= threshold for entropy_T in entropies]


def optimizer_batches(rows: int, epochs: int, minibatches: int, seed: int) -> Iterator[tuple[int, int, Sequence[int]]]:
    """(epoch, minibatch, rows) of each optimizer step: every epoch a new order by `seed`, split as evenly as can be."""
    for epoch in range(epochs):
        order = np.random.default_rng(derive(seed, epoch)).permutation(rows)
        for minibatch, part in enumerate(np.array_split(order, minibatches)):
            if len(part):
                yield epoch, minibatch, [int(row) for row in part]
