"""How far two outputs of a stage are apart: tables row by row, tensors by their greatest difference."""

from pathlib import Path
from typing import Any

import polars as pl

from stages.contract.columns import KEY

SHOWN = 5
"""Rows that are named."""


def table_difference(old: pl.DataFrame, new: pl.DataFrame) -> dict[str, Any]:
    """Where two tables differ.

    Rows are matched by their key where both tables have it, else by their place. NaN equals NaN, null equals null.

    Returns:
        rows: how many rows differ, and in all; first: the first of them by key or place; only_old, only_new: rows
        without a partner; columns: for each column that differs its rows, the greatest absolute difference where it
        holds numbers (in the column's unit), and the rows whose lists are not of the same length; types: columns that
        one table does not have, or has with another type.
    """
    key = [name for name in KEY if name in old.columns and name in new.columns] or ["row"]
    if key == ["row"] or old.select(key).is_duplicated().any() or new.select(key).is_duplicated().any():
        key = ["row"]
        old, new = old.with_row_index("row"), new.with_row_index("row")
    shared = [n for n in old.columns if n not in key and old.schema[n] == new.schema.get(n)]
    both = old.select(*key, *shared).join(new.select(*key, *shared), on=key, maintain_order="left", suffix=" new")
    columns, anywhere = {}, pl.repeat(False, both.height, eager=True)
    for name in shared:
        differs = ~both[name].eq_missing(both[f"{name} new"])
        if differs.any():
            columns[name] = _column_difference(both.filter(differs), name)
            anywhere = anywhere | differs
    types = sorted(n for n in {*old.columns, *new.columns} - set(key) if n not in shared)
    return {
        "rows": int(anywhere.sum()),
        "of": both.height,
        "first": both.filter(anywhere).select(key).head(SHOWN).to_dicts(),
        "only_old": old.height - both.height,
        "only_new": new.height - both.height,
        "columns": columns,
        "types": types,
    }


def _column_difference(rows: pl.DataFrame, name: str) -> dict[str, Any]:
    """Of the rows in which a column differs: how many, by how much at most, and how many differ in length."""
    old, new = rows[name], rows[f"{name} new"]
    out: dict[str, Any] = {"rows": rows.height}
    if isinstance(old.dtype, pl.List):
        out["lengths"] = int((old.list.len() != new.list.len()).sum())
        alike = (old.list.len() == new.list.len()).fill_null(False)
        old, new = old.filter(alike).explode(empty_as_null=False), new.filter(alike).explode(empty_as_null=False)
    if old.dtype.is_numeric():
        out["greatest"] = (old.cast(pl.Float64) - new.cast(pl.Float64)).abs().max()
    return out


def tensors_difference(old: Path, new: Path) -> dict[str, Any]:
    """Where two safetensors files differ.

    Returns:
        tensors: how many differ, and in all; greatest: the greatest absolute difference, and in which; types: tensors
        that one file does not have, or has with another shape or type.
    """
    from stages.contract.weights import read_tensors

    left, right = read_tensors(old), read_tensors(new)
    alike = [n for n in left if n in right and (left[n].shape, left[n].dtype) == (right[n].shape, right[n].dtype)]
    differing = {n: float((left[n].double() - right[n].double()).abs().max()) for n in alike if left[n].numel()}
    differing = {name: far for name, far in differing.items() if far != 0}
    worst = max(differing, key=lambda name: differing[name], default=None)
    return {
        "tensors": len(differing),
        "of": len(left),
        "greatest": differing[worst] if worst else 0.0,
        "in": worst,
        "types": sorted((left.keys() | right.keys()) - set(alike)),
    }
