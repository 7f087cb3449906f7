"""Preferences: read from a file, or made from answers. Pure but for the reading.

A pair is two conversations whose last messages are compared.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from blake3 import blake3

from stages.contract.errors import DataError
from stages.reward_model.config import AnswerPairs

Messages = list[dict[str, str]]
ASSISTANT = "\n\nAssistant:"
"""Before an answer in texts that hold a whole conversation, as those of Anthropic's HH-RLHF do."""


@dataclass(frozen=True)
class Pair:
    """Two answers to the same prompt, each with all that was said before it."""

    chosen: Messages
    rejected: Messages

    @property
    def prompt(self) -> Messages:
        """What both begin with, less an answer that is in both; of texts, up to the last `Assistant:` in both."""
        same = 0
        for mine, theirs in zip(self.chosen[:-1], self.rejected[:-1], strict=False):
            if mine != theirs:
                break
            same += 1
        if not same:
            texts = [side[0]["content"] for side in (self.chosen, self.rejected)]
            asked, turn, _ = commonprefix(texts).rpartition(ASSISTANT)  # noqa: RUF071 - letters are meant
            return [{"role": "user", "content": asked + turn}] if turn else []
        return self.chosen[:same]


def from_file(path: Path, plain: bool) -> list[Pair]:
    """The pairs of a file with the columns `chosen` and `rejected`, and `prompt` where these do not begin with it.

    Args:
        path: JSONL, or Parquet by its ending.
        plain: whether conversations become plain text, so that a text without a prompt is one.

    Raises:
        DataError: no such file, not JSONL or Parquet, or a row that is no pair; names row and column.
    """
    pairs = [_pair(row, f"{path}, row {number}", plain) for number, row in enumerate(_rows(path), 1)]
    if not pairs:
        raise DataError(f"{path}: no pairs")
    return pairs


def from_answers(prompts: pl.DataFrame, config: AnswerPairs, seed: int) -> list[Pair]:
    """Pairs of the right answer and a wrong one, `per_prompt` for each prompt of the table `prompts`.

    Raises:
        DataError: an answer that is no integer.
    """
    offsets = np.random.default_rng(seed).choice(config.offsets, (prompts.height, config.per_prompt))
    pairs = []
    for (messages, answer), row in zip(prompts.select("messages", "answer").iter_rows(), offsets, strict=True):
        try:
            right = int(str(answer))
        except ValueError:
            raise DataError(
                f"reward_model.pairs: type answers needs integer answers, a prompt has {answer!r:.80}; use a file"
            ) from None
        pairs += [Pair(_answered(messages, str(right)), _answered(messages, str(right + int(by)))) for by in row]
    return pairs


def is_heldout(pair: Pair, share: float) -> bool:
    """Whether a pair belongs to the held-out share: decided by its prompt's digest, without one by the pair's own."""
    digest = blake3(f"heldout pair {json.dumps(pair.prompt or [pair.chosen, pair.rejected])}".encode()).digest(6)
    return int.from_bytes(digest, "big") < share * 2**48


def _answered(messages: Messages, answer: str) -> Messages:
    return [*messages, {"role": "assistant", "content": answer}]


def _pair(row: Mapping[str, Any], where: str, plain: bool) -> Pair:
    asked = _messages(row["prompt"], "user", f"{where}, column 'prompt'") if row.get("prompt") is not None else []
    sides = []
    for column in ("chosen", "rejected"):
        if column not in row:
            raise DataError(f"{where}: no column {column!r}, only {sorted(row)}")
        answer = row[column]
        if isinstance(answer, str) and not asked and not plain:
            raise DataError(
                f"{where}: there is no prompt, and {column!r} is a text: set reward_model.format to text, or give "
                "a column 'prompt' or lists of messages"
            )
        sides.append([*asked, *_messages(answer, "assistant", f"{where}, column {column!r}")])
    return Pair(*sides)


def _messages(value: Any, role: str, where: str) -> Messages:
    match value:
        case str() if value.strip():
            return [{"role": role, "content": value}]
        case [*messages] if messages and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        ):
            return [{"role": m["role"], "content": m["content"]} for m in messages]
    raise DataError(f"{where}: a text or a list of messages {{role, content}} is wanted, this is {value!r:.80}")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"reward_model.pairs.path: no file {path}")
    if path.suffix == ".parquet":
        try:
            yield from pl.read_parquet(path).iter_rows(named=True)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({error})") from error
        return
    if path.suffix != ".jsonl":
        raise DataError(f"reward_model.pairs.path: {path} ends in {path.suffix!r}; .jsonl or .parquet is wanted")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
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
        yield row
