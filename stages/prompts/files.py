"""Rows of JSONL and Parquet files, a few at a time, with the row and reason of what cannot be read."""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

from stages.contract.errors import DataError

AT_ONCE = 10_000
"""Rows of a Parquet file that are plain Python at a time."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def numbered_rows(path: Path, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with the numbers by which messages name them: of lines in JSONL, of rows in Parquet.

    Args:
        path: ends in .jsonl, .jsonl.gz or .parquet.
        field: the source's name in the configuration, for messages.

    Raises:
        DataError: no such file, or one that cannot be read; says where.
    """
    if not path.is_file():
        raise DataError(f"{field}.path: no file {path}")
    match path.suffixes[-2:]:
        case [*_, ".parquet"]:
            yield from _parquet(path)
        case [*_, ".jsonl"]:
            with path.open("rb") as lines:
                yield from _jsonl(lines, path)
        case [".jsonl", ".gz"]:
            try:
                with gzip.open(path) as unpacked:
                    yield from _jsonl(unpacked, path)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DataError(f"{path}: cannot be unpacked as gzip ({error})") from error
        case _:
            ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
            raise DataError(f"{field}.path: {path} ends in {ending!r}; .jsonl, .jsonl.gz or .parquet is wanted")


def _jsonl(lines: BinaryIO | gzip.GzipFile, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):  # bytes are cut at newlines alone, text would be at U+2028 too
        if not line.strip():
            continue
        try:
            row = json.loads((line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode("utf-8"))
            if _SURROGATE.search(line):
                json.dumps(row, ensure_ascii=False).encode("utf-8")  # no table can hold half a surrogate pair
        except UnicodeEncodeError as error:
            raise DataError(f"{path}, line {number}: half a surrogate pair ({error.reason})") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number}: not UTF-8 at byte {error.start}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a JSON object is wanted, this is {type(row).__name__}")
        yield number, row


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}{_broken_text(path) or f': cannot be read as Parquet ({error})'}") from error
    for start in range(0, frame.height, AT_ONCE):
        yield from enumerate(frame[start : start + AT_ONCE].to_dicts(), start + 1)


def _broken_text(path: Path) -> str:
    """Where a Parquet file holds a text that is not UTF-8, which writers do not check; nothing where that is not it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for name, column in zip(*_texts(pq.read_table(path)), strict=True):
            for number, value in enumerate(column.cast(pa.large_binary()).to_pylist(), 1):
                try:
                    (value or b"").decode("utf-8")
                except UnicodeDecodeError as error:
                    return f", row {number}, column {name!r}: not UTF-8 at byte {error.start}"
    except (pa.ArrowException, OSError):
        pass
    return ""


def _texts(table: Any) -> tuple[list[str], list[Any]]:
    import pyarrow as pa

    names = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    return names, [table[name] for name in names]
