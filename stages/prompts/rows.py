"""Rows of a table → prompts: which column is what, and what a row must not hold."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.contract.errors import DataError
from stages.prompts.config import RowsSource

LONGEST = 4_000_000
"""Characters of a prompt: more than any model's context holds."""
MISSING = object()
UNSEEN = ("tool_calls", "tool_call_id", "function_call", "name", "reasoning_content", "thinking")
"""What chat templates say of a message beside role and content; a table of prompts has no place for it."""


@dataclass(frozen=True)
class RawPrompt:
    """A prompt as its source says it."""

    prompt: str | list[dict[str, str]]
    """A text or messages."""
    answer: str | None
    task: str
    metadata: Mapping[str, Any]
    level: int | None = None
    """How hard the source says it is."""


def prompts_of(
    rows: Iterable[tuple[int, dict[str, Any]]], source: RowsSource, where: str, field: str, counted: str = "row"
) -> Iterator[RawPrompt]:
    """The prompts of rows, in their order.

    Args:
        rows: the number by which a message names a row, and its column names and values.
        source: says which column is what.
        where: the file or dataset, for messages.
        field: the source's name in the configuration, for messages.
        counted: what the numbers count: rows, or lines.

    Raises:
        DataError: a row that cannot be used; says which, and why.
    """
    layout = None
    for number, row in rows:
        here = f"{where}, {counted} {number}"
        layout = layout or layout_of(row, source)
        prompt = value_at(row, layout.prompt_field)
        if prompt is MISSING:
            raise DataError(f"{here}: no column {layout.prompt_field!r}, only {sorted(row)}")
        # The prompt is not kept twice, nor is an answer that is called so; other names a reward function may ask for.
        used = {layout.prompt_field} | ({"answer"} & {layout.answer_field})
        yield RawPrompt(
            checked_prompt(prompt, f"{here}, column {layout.prompt_field!r}"),
            _answer(row, layout.answer_field, here, field),
            layout.task if layout.task_field is None else _task(row, layout.task_field, here),
            {name: value for name, value in row.items() if name not in used},
            None if layout.level_field is None else _level(row, layout.level_field, here),
        )


def layout_of(row: Mapping[str, Any], source: RowsSource) -> RowsSource:
    """The source with the columns named by which it is read, as its first row shows."""
    if source.layout == "columns":
        return source
    fields = type(source).model_fields
    open_ = {name for name in ("answer_field", "task_field") if getattr(source, name) == fields[name].default}
    if source.layout == "auto":
        known = "answer" not in row and value_at(row, VERL["answer_field"]) is not MISSING and VERL["task_field"] in row
        if not known or len(open_) < 2:
            return source
    return source.model_copy(update={name: VERL[name] for name in open_})


VERL = {"answer_field": "reward_model.ground_truth", "task_field": "data_source"}


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
        DataError: anything else, or a text that no tokenizer should be given.
    """
    match value:
        case str() if value.strip():
            return checked_text(value, where)
        case [*messages] if messages and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        ):
            if not any(m["content"].strip() for m in messages):
                raise DataError(f"{where}: none of its {len(messages)} messages says anything")
            if more := [name for m in messages for name in UNSEEN if m.get(name)]:
                raise DataError(
                    f"{where}: a message with {more[0]!r}, which no model would see; leave role and content"
                )
            return [{name: checked_text(m[name], where) for name in ("role", "content")} for m in messages]
    raise DataError(f"{where}: a text or a list of messages {{role, content}} is wanted, this is {_told(value)}")


def checked_text(text: str, where: str) -> str:
    """A text without what is damage rather than language.

    Raises:
        DataError: a NUL character, half a surrogate pair, or more characters than any context holds.
    """
    if len(text) > LONGEST:
        raise DataError(f"{where}: {len(text)} characters; {LONGEST} at most are read")
    if (at := text.find("\0")) >= 0:
        raise DataError(f"{where}: a NUL character at {at}")
    try:
        text.isascii() or text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half a surrogate pair at character {error.start}") from error
    return text


def _answer(row: Mapping[str, Any], name: str | None, here: str, field: str) -> str | None:
    if name is None:
        return None
    answer = value_at(row, name)
    missing = answer is None or answer is MISSING or (isinstance(answer, float) and math.isnan(answer))
    text = json.dumps(answer, ensure_ascii=False, default=str) if isinstance(answer, dict | list) else str(answer)
    if missing or not text.strip():
        there = f", only {sorted(row)} are there" if answer is MISSING else ""
        raise DataError(
            f"{here}: no answer in column {name!r}{there}; fill it in, or set {field}.answer_field to null if no "
            "reward needs answers"
        )
    return checked_text(text, f"{here}, column {name!r}")


def _task(row: Mapping[str, Any], name: str, here: str) -> str:
    task = value_at(row, name)
    if not isinstance(task, str) or not task.strip():
        raise DataError(f"{here}: the name of a task is wanted in column {name!r}, this is {_told(task)}")
    return checked_text(task, f"{here}, column {name!r}")


def _level(row: Mapping[str, Any], name: str, here: str) -> int:
    level = value_at(row, name)
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < 2**31:
        raise DataError(f"{here}: a whole number from 0 is wanted in column {name!r}, this is {_told(level)}")
    return level


def _told(value: Any) -> str:
    """A value for a message: its beginning."""
    return "missing" if value is MISSING else repr(value[:80] if isinstance(value, str) else value)[:80]
