"""An iteration's rows as arrays. Pure.

Dimensions: N rows, M tokens of all rows in row order, S judged steps of all rows in row order.
"""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from stages.advantage.groups import Bools, Floats, Ints
from stages.advantage.ragged import flatten
from stages.contract.errors import ArtifactError


@dataclass(frozen=True)
class Batch:
    """What the methods compute from."""

    group_N: Ints
    """The prompt of each row, 0 … P-1."""
    length_N: Ints
    """Completion tokens."""
    reward_N: Floats
    """NaN where a row has none or is left out."""
    truncated_N: Bools
    parts: dict[str, tuple[float, Floats]]
    """Weight and values of each reward that takes part in the sum; NaN where it does not apply."""
    earned_M: Floats | None
    """The part of the reward earned at each token; None where all is earned at the end."""
    sampler_M: Floats | None
    """The sampler's log-probabilities (nats)."""
    reference_M: Floats | None
    """The reference policy's (nats); None where the scores hold none, for any row."""
    values_M: Floats | None
    """The critic's values; None where the scores hold none, for any row."""
    step_row_S: Ints
    step_end_S: Ints
    """Row of each step, and its last token, counted from 0 in the row."""

    def without(self, left_out_N: Bools) -> "Batch":
        """The batch in which these rows have no reward, so that no statistic counts them."""
        return replace(self, reward_N=np.where(left_out_N, np.nan, self.reward_N))

    def tokens(self, rows_N: Bools) -> Bools:
        """The tokens [M] of these rows."""
        return np.repeat(rows_N, self.length_N)


def batch_of(rows: pl.DataFrame) -> Batch:
    """The batch of rows with prompt_id, length, reward and any of the other columns of rollouts and scores.

    A reward that is not finite is that row's error alone: the row has none.

    Raises:
        ArtifactError: a list that has not one value for each token, or a step that ends outside its completion.
    """
    length_N = rows["length"].cast(pl.Int64).to_numpy()
    reward_N = _numbers(rows["reward"])
    names = [name.removeprefix("weight_") for name in rows.columns if name.startswith("weight_")]
    weights = {name: float(_numbers(rows[f"weight_{name}"])[0]) for name in names} if rows.height else {}
    row_S, end_S = _steps(rows, length_N)
    return Batch(
        group_N=group_numbers(rows["prompt_id"]),
        length_N=length_N,
        reward_N=reward_N,
        truncated_N=rows["finish_reason"].eq("length").to_numpy() if "finish_reason" in rows.columns else length_N < 0,
        parts={name: (w, _numbers(rows[f"reward_{name}"])) for name, w in weights.items() if w},
        earned_M=_tokens(rows, "token_rewards", length_N, every_row=False),
        sampler_M=_tokens(rows, "sampler_logprobs", length_N),
        reference_M=_tokens(rows, "reference_logprobs", length_N),
        values_M=_tokens(rows, "values", length_N),
        step_row_S=row_S,
        step_end_S=end_S,
    )


def group_numbers(ids: pl.Series) -> Ints:
    """A number for each prompt, in the order in which the prompts first appear."""
    named = pl.DataFrame({"id": ids})
    known = named.unique(maintain_order=True).with_row_index("number")
    numbers = named.join(known, on="id", how="left", maintain_order="left")["number"]
    return numbers.cast(pl.Int64).to_numpy()


def _numbers(values: pl.Series) -> Floats:
    numbers_N = values.cast(pl.Float64).fill_null(np.nan).to_numpy()
    return np.where(np.isfinite(numbers_N), numbers_N, np.nan)


def _tokens(rows: pl.DataFrame, name: str, length_N: Ints, every_row: bool = True) -> Floats | None:
    found = flatten(rows[name], length_N) if name in rows.columns else None
    return found[0] if found and (found[1].all() or not every_row) else None


def _steps(rows: pl.DataFrame, length_N: Ints) -> tuple[Ints, Ints]:
    """Row and last token of each step."""
    nothing = np.zeros(0, dtype=np.int64)
    if "step_ends" not in rows.columns or rows["step_ends"].null_count() == rows.height:
        return nothing, nothing
    count_N = rows["step_ends"].list.len().fill_null(0).to_numpy().astype(np.int64)
    row_S = np.repeat(np.arange(rows.height), count_N)
    end_S = rows["step_ends"].filter(pl.Series(count_N > 0)).explode().cast(pl.Int64).to_numpy()
    if ((end_S < 0) | (end_S >= length_N[row_S])).any():
        raise ArtifactError("step_ends: a step that ends outside its completion")
    if ((np.diff(end_S) <= 0) & (np.diff(row_S) == 0)).any():
        raise ArtifactError("step_ends: steps that do not follow one another")
    return row_S, end_S
