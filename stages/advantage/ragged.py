"""Lists of different lengths as one flat array, without a loop over rows. Pure.

Dimensions: N rows, M items of all rows together, in row order.
"""

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from stages.advantage.groups import Bools, Floats, Ints
from stages.contract.errors import ArtifactError


def starts(length_N: Ints) -> Ints:
    """Where each row begins in the flat array."""
    begin_N: Ints = np.cumsum(length_N) - length_N
    return begin_N


def flatten(lists: pl.Series, length_N: Ints) -> tuple[Floats, Bools] | None:
    """The values [M] of a list column with one for each token, 0 where a row has none; and which rows [N] have them.

    None where there are rows, of which none has any.

    Raises:
        ArtifactError: a list that has not one value for each token.
    """
    there_N = lists.is_not_null().to_numpy()
    if len(there_N) and not there_N.any():
        return None
    if not np.array_equal(lists.list.len().drop_nulls().to_numpy(), length_N[there_N]):
        raise ArtifactError(f"{lists.name}: not one value for each completion token")
    values: Any = lists.rechunk().to_arrow()
    flat = values.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    if there_N.all():
        return flat, there_N
    out_M = np.zeros(int(length_N.sum()))
    out_M[np.repeat(there_N, length_N)] = flat
    return out_M, there_N


def to_lists(values_M: NDArray[np.floating[Any]], length_N: Ints) -> pl.Series:
    """The column of lists of float32 that a flat array is."""
    offsets = np.concatenate([[0], np.cumsum(length_N)]).astype(np.int64)
    lists = pa.LargeListArray.from_arrays(offsets, pa.array(values_M.astype(np.float32, copy=False)))
    series = pl.from_arrow(lists)
    assert isinstance(series, pl.Series)
    return series


def row_sums(values_M: Floats, length_N: Ints) -> Floats:
    """The sum [N] of each row; 0 for an empty one."""
    sums_N = np.zeros(len(length_N))
    full_N = length_N > 0
    if full_N.any():
        sums_N[full_N] = np.add.reduceat(values_M, starts(length_N)[full_N])
    return sums_N


def row_extremes(values_M: Floats, length_N: Ints) -> Floats:
    """The greatest absolute value [N] of each row; 0 for an empty one."""
    extremes_N = np.zeros(len(length_N))
    full_N = length_N > 0
    if full_N.any():
        begin = starts(length_N)[full_N]
        extremes_N[full_N] = np.maximum(np.maximum.reduceat(values_M, begin), -np.minimum.reduceat(values_M, begin))
    return extremes_N
