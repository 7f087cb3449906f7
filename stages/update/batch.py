"""The rows that are trained on, joined from three tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from stages.contract import tables
from stages.contract.columns import KEY
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.seeds import derive


@dataclass(frozen=True)
class TrainingRow:
    """A completion with all that the loss needs; T is its tokens."""

    prompt: list[int]
    completion: list[int]
    temperature: float
    sampler_T: Tensor
    advantages_T: Tensor
    reference_T: Tensor | None

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion)


def training_rows(
    rollouts: pl.DataFrame, scores: pl.DataFrame, advantages: pl.DataFrame, with_reference: bool
) -> list[TrainingRow]:
    """The rows with `train`, in the order of the rollouts.

    Raises:
        ArtifactError: the tables' rows do not match one to one, or a list has not one value for each token.
        ConfigError: reference log-probabilities are needed and missing.
    """
    joined = tables.join(rollouts, scores.select(*KEY, "reference_logprobs"), "rollouts and scores")
    joined = tables.join(joined, advantages.select(*KEY, "advantages", "train"), "rollouts and advantages")
    joined = joined.filter("train")
    lengths = joined["completion_tokens"].list.len()
    for name in ("sampler_logprobs", "advantages", "reference_logprobs"):
        if name == "reference_logprobs" and not with_reference:
            continue
        if joined[name].null_count():
            raise ConfigError(
                "update.kl.coefficient is above 0, but the scores hold no reference_logprobs: set score.reference"
            )
        if not (joined[name].list.len() == lengths).all():
            raise ArtifactError(f"{name}: not one value for each completion token")
    return [
        TrainingRow(
            row["prompt_tokens"],
            row["completion_tokens"],
            row["temperature"],
            torch.tensor(row["sampler_logprobs"]),
            torch.tensor(row["advantages"]),
            torch.tensor(row["reference_logprobs"]) if with_reference else None,
        )
        for row in joined.iter_rows(named=True)
    ]


def optimizer_batches(rows: int, epochs: int, minibatches: int, seed: int) -> Iterator[tuple[int, int, Sequence[int]]]:
    """(epoch, minibatch, rows) of each optimizer step: every epoch a new order by `seed`, split as evenly as can be."""
    for epoch in range(epochs):
        order = np.random.default_rng(derive(seed, epoch)).permutation(rows)
        for minibatch, part in enumerate(np.array_split(order, minibatches)):
            if len(part):
                yield epoch, minibatch, [int(row) for row in part]
