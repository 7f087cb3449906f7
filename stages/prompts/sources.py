"""Reads prompts from reasoning-gym, files and Hugging Face datasets. Heavy libraries are imported when needed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_never

import polars as pl

from stages.contract.errors import DataError
from stages.prompts.config import FileSource, HuggingFaceSource, InlineSource, ReasoningGymSource, Source
from stages.prompts.rows import RawPrompt, prompts_of


def load(source: Source, field: str = "prompts.source") -> list[RawPrompt]:
    """All prompts of a source, in its order; `field` is its name in the configuration, for messages.

    Raises:
        DataError: the source is missing, empty, or broken; says which row and column.
    """
    match source:
        case ReasoningGymSource():
            prompts = list(_reasoning_gym(source, field))
        case FileSource():
            prompts = list(prompts_of(_read_file(source.path, field), source, str(source.path), field))
        case InlineSource():
            prompts = list(prompts_of(source.rows, source, f"{field}.rows", field))
        case HuggingFaceSource():
            prompts = list(prompts_of(_read_huggingface(source, field), source, source.path, field))
        case _:
            assert_never(source)
    if not prompts:
        raise DataError(f"{field}: {source.type} gives no prompt: {source.model_dump()}")
    return prompts


def _reasoning_gym(source: ReasoningGymSource, field: str) -> Iterator[RawPrompt]:
    import reasoning_gym

    try:
        dataset = reasoning_gym.create_dataset(source.dataset, size=source.size, seed=source.seed, **source.parameters)
    except (ValueError, TypeError, AssertionError) as error:
        raise DataError(f"{field}: reasoning-gym refuses {source.dataset!r}: {error}") from error
    for item in dataset:
        metadata = json.loads(json.dumps(item["metadata"], default=str))
        task = f"reasoning_gym/{source.dataset}"
        yield RawPrompt(item["question"], item["answer"], task, metadata | {"question": item["question"]})


def _read_file(path: Path, field: str) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{field}.path: no file {path}")
    if path.suffix == ".parquet":
        try:
            return pl.read_parquet(path).to_dicts()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({error})") from error
    if path.suffix != ".jsonl":
        raise DataError(f"{field}.path: {path} ends in {path.suffix!r}; .jsonl or .parquet is wanted")
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut at U+2028 inside a JSON text too
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode("utf-8")  # no table can hold half a surrogate pair
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a JSON object is wanted, this is {type(row).__name__}")
        rows.append(row)
    return rows


def _read_huggingface(source: HuggingFaceSource, field: str) -> list[dict[str, Any]]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(f"{field}: type huggingface needs `pip install 'grpo-flows[datasets]'`") from error
    try:
        if (Path(source.path) / "dataset_info.json").is_file() or (Path(source.path) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(source.path)
            split = found[source.split] if isinstance(found, datasets.DatasetDict) else found
            if split.split is not None and str(split.split) != source.split:
                raise DataError(f"{field}.split: {source.path!r} holds the split {split.split!s}, not {source.split!r}")
        else:
            split = datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    except (FileNotFoundError, ConnectionError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{field}: cannot load the dataset {source.path!r}: {error}") from error
    except StopIteration as error:  # what datasets raises for a data file without rows
        raise DataError(f"{field}: the dataset {source.path!r} has no rows") from error
    return [dict(row) for row in split]
