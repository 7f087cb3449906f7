"""Rows of a table → prompts: which column is what, and what a row must not hold."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.contract.errors import DataError
from stages.prompts.config import RowsSource

MISSING = object()


@dataclass(frozen=True)
class RawPrompt:
    """A prompt as its source says it."""

    prompt: str | list[dict[str, str]]
    """A text or messages."""
    answer: str | None
    task: str
    metadata: Mapping[str, Any]


def prompts_of(rows: Iterable[dict[str, Any]], source: RowsSource, where: str, field: str) -> Iterator[RawPrompt]:
    """The prompts of rows, in their order.

    Args:
        rows: column names and values.
        source: says which column is what.
        where: the file or dataset, for messages.
        field: the source's name in the configuration, for messages.

    Raises:
        DataError: a row that cannot be used; says which, and why.
    """
    for number, row in enumerate(rows, 1):
        here = f"{where}, row {number}"
        prompt = value_at(row, source.prompt_field)
        if prompt is MISSING:
            raise DataError(f"{here}: no column {source.prompt_field!r}, only {sorted(row)}")
        task = source.task if source.task_field is None else value_at(row, source.task_field)
        if not isinstance(task, str) or not task.strip():
            raise DataError(f"{here}: a task is wanted in column {source.task_field!r}, this is {_told(task)}")
        # What became prompt and answer is not kept twice, but under a name of its own a reward function may ask for it.
        used = {source.prompt_field} | ({"answer"} & {source.answer_field})
        yield RawPrompt(
            checked_prompt(prompt, f"{here}, column {source.prompt_field!r}"),
            _answer(row, source.answer_field, here, field),
            task,
            {name: value for name, value in row.items() if name not in used},
        )


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of one inside it where the name has dots; `MISSING` where there is none."""
    if name in row:
        return row[name]
    at: Any = row
    for part in name.split("."):
        if not isinstance(at, Mapping) or part not in at:
            return MISSING
        at = at[part]
    return at


def checked_prompt(value: Any, where: str) -> str | list[dict[str, str]]:
    """A prompt that can be asked: a text or messages.

    Raises:
        DataError: anything else.
    """
    match value:
        case str() if value.strip():
            return value
        case [*messages] if messages and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        ):
            return [{"role": m["role"], "content": m["content"]} for m in messages]
    raise DataError(f"{where}: a text or a list of messages {{role, content}} is wanted, this is {_told(value)}")


def _answer(row: Mapping[str, Any], name: str | None, here: str, field: str) -> str | None:
    if name is None:
        return None
    answer = value_at(row, name)
    text = json.dumps(answer, ensure_ascii=False) if isinstance(answer, dict | list) else str(answer)
    if answer is None or answer is MISSING or not text.strip():
        raise DataError(
            f"{here}: no answer in column {name!r}; fill it in, or set {field}.answer_field to null if no reward "
            "needs answers"
        )
    return text


def _told(value: Any) -> str:
    return "missing" if value is MISSING else f"{value!r:.80}"
