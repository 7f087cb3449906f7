"""Demonstrations: made from answers, or read from a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stages.contract import tables
from stages.contract.columns import DEMONSTRATIONS
from stages.contract.errors import DataError
from stages.warmstart.config import AnswerDemonstrations


def from_answers(prompts: pl.DataFrame, texts: list[str], config: AnswerDemonstrations, seed: int) -> pl.DataFrame:
    """The table `demonstrations`: each prompt `per_prompt` times, a share `correct` of them with the right answer.

    Args:
        prompts: table `prompts`.
        texts: the prompts as the model sees them.
        config: share, offsets, template.
        seed: decides which are right and how the others are wrong.
    """
    random = np.random.default_rng(seed)
    shape = (prompts.height, config.per_prompt)
    right = random.random(shape) < config.correct
    offset = np.where(right, 0, random.choice(config.offsets, shape))
    answers = [_integer(answer, config) for answer in prompts["answer"].to_list()]
    rows = [(i, j) for i in range(prompts.height) for j in range(config.per_prompt)]
    return tables.frame(
        DEMONSTRATIONS,
        {
            "prompt_id": [prompts["prompt_id"][i] for i, _ in rows],
            "sample": [j for _, j in rows],
            "prompt": [texts[i] for i, _ in rows],
            "completion": [config.template.format(answer=answers[i] + int(offset[i, j])) for i, j in rows],
            "correct": [bool(offset[i, j] == 0) for i, j in rows],
        },
    )


def from_file(path: Path, render: Callable[[str], str]) -> pl.DataFrame:
    """The table `demonstrations` of a file with the columns `prompt` and `completion`.

    Args:
        path: JSONL, or Parquet by its ending.
        render: a prompt as the model sees it.

    Raises:
        DataError: no such file, not JSONL or Parquet, columns missing, or a row without text.
    """
    if not path.is_file():
        raise DataError(f"warmstart.tuning.demonstrations.path: no file {path}")
    try:
        rows: list[dict[str, Any]] = (
            pl.read_parquet(path).to_dicts()
            if path.suffix == ".parquet"
            else [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        )
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSONL or Parquet ({error})") from error
    for number, row in enumerate(rows, 1):
        for column in ("prompt", "completion"):
            if not isinstance(row, dict) or not isinstance(row.get(column), str) or not row[column]:
                raise DataError(f"{path}, row {number}: a text is wanted in the column {column!r}")
    if not rows:
        raise DataError(f"{path}: no demonstrations")
    return tables.frame(
        DEMONSTRATIONS,
        {
            "prompt_id": [f"{path.name}:{number}" for number in range(1, len(rows) + 1)],
            "sample": [0] * len(rows),
            "prompt": [render(row["prompt"]) for row in rows],
            "completion": [row["completion"] for row in rows],
            "correct": [None] * len(rows),
        },
    )


def _integer(answer: str | None, config: AnswerDemonstrations) -> int:
    try:
        return int(str(answer))
    except ValueError:
        raise DataError(
            f"warmstart.tuning.demonstrations: type {config.type} needs integer answers, a prompt has {answer!r}; "
            "use a file of demonstrations"
        ) from None
