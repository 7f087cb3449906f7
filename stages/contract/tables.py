"""Tables in and out of Parquet, with their schemas checked at each read and write, and joins that fail unless 1:1."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.contract.columns import KEY, SCHEMA_VERSION, Table
from stages.contract.errors import ArtifactError, VersionError

ROW_GROUP = 8192


def frame(table: Table, columns: Mapping[str, Any]) -> pl.DataFrame:
    """A frame of `table` from plain columns, with the table's types (also where a column is empty or all null)."""
    typed = pl.from_arrow(table.schema(list(columns)).empty_table())
    assert isinstance(typed, pl.DataFrame)
    return pl.DataFrame({name: pl.Series(name, columns[name], dtype=dtype) for name, dtype in typed.schema.items()})


def write(path: Path, frame: pl.DataFrame, table: Table) -> None:
    """Writes `frame` as `table`, columns in the schema's order. Equal frames give equal bytes.

    Raises:
        ValueError: a column that the table does not have, one missing, a null where none may be, a key that repeats.
    """
    schema = table.schema(frame.columns)
    if frame.n_unique(table.key) != frame.height:
        raise ValueError(f"table {table.name!r}: the key {table.key} repeats")
    arrow = frame.select(schema.names).to_arrow()
    for field in schema:
        column = arrow[field.name]
        inside = pc.list_flatten(column).null_count if pa.types.is_large_list(column.type) else 0
        if inside or (column.null_count and not field.nullable):
            raise ValueError(f"table {table.name!r}: column {field.name!r} holds a null")
    arrow = arrow.cast(schema).replace_schema_metadata(schema.metadata)
    floats = [f"{field.name}.list.element" for field in schema if field.type == pa.list_(pa.float32())]
    dictionary = [field.name for field in schema if field.type in (pa.string(), pa.int32(), pa.bool_())]
    pq.write_table(
        arrow,
        path,
        compression="zstd",
        compression_level=3,
        row_group_size=ROW_GROUP,
        use_dictionary=dictionary,
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT") or None,
    )


def read(path: Path, table: Table) -> pl.DataFrame:
    """Reads a table and checks its schema; in one of an older schema the columns that came later are null.

    Raises:
        ArtifactError: no Parquet file, another table, a newer schema, other columns.
    """
    try:
        arrow = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: cannot be read as Parquet ({error})") from error
    metadata = arrow.schema.metadata or {}
    name, version = (metadata.get(key, b"?").decode(errors="replace") for key in (b"table", b"schema_version"))
    if name != table.name:
        raise ArtifactError(f"{path}: holds the table {name!r}, {table.name!r} is wanted")
    if not version.isdecimal() or int(version) > SCHEMA_VERSION:
        raise VersionError(
            f"{path}: has schema version {version}, this code reads up to {SCHEMA_VERSION}: update grpo-flows"
        )
    if int(version) < SCHEMA_VERSION:
        arrow = _completed(arrow, table)
    try:
        schema = table.schema(arrow.schema.names)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from error
    if not arrow.schema.equals(schema):
        raise ArtifactError(f"{path}: columns are\n{arrow.schema}\nwanted\n{schema}")
    frame = pl.from_arrow(arrow.cast(schema))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _completed(arrow: pa.Table, table: Table) -> pa.Table:
    """A table of an older schema with nulls for the columns that it had not yet, in today's order."""
    for field in table.fields:
        if field.name not in arrow.schema.names and field.nullable:
            arrow = arrow.append_column(field, pa.nulls(arrow.num_rows, field.type))
    fixed = [field.name for field in table.fields if field.name in arrow.schema.names]
    families = [name for name in arrow.schema.names if name not in fixed]
    return arrow.select([*fixed, *families])


def join(left: pl.DataFrame, right: pl.DataFrame, name: str) -> pl.DataFrame:
    """Joins two tables by (prompt_id, sample) in the left one's order; each row has exactly one partner.

    Raises:
        ArtifactError: a row of either side without a partner, or with two; `name` says in the message what was joined.
    """
    if right.n_unique(KEY) != right.height or left.n_unique(KEY) != left.height:
        raise ArtifactError(f"{name}: {KEY} repeats")
    joined = left.join(right, on=KEY, how="inner", maintain_order="left")
    if not joined.height == left.height == right.height:
        raise ArtifactError(
            f"{name}: {left.height} rows on the left, {right.height} on the right, {joined.height} have a partner"
        )
    return joined
