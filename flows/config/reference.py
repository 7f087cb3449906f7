"""The table of configuration fields, made from the docstrings."""

import json
from collections.abc import Iterator
from typing import get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flows.config.messages import kind_of, models_in
from flows.config.schema import RunConfig


def rows(
    model: type[BaseModel] = RunConfig, prefix: str = "", told: dict[type[BaseModel], str] | None = None
) -> Iterator[tuple[str, str, str]]:
    """(name, default, meaning) of each field, depth first; what a `type` chooses among follows it, kind by kind.

    Fields that stand in the table already (of a second optimizer, of the next reward) are referred to, not repeated.
    """
    told = {} if told is None else told
    for name, field in model.model_fields.items():
        if kind_of(model) is not None and name == "type":
            continue
        children = models_in(field.annotation)
        place = f"{prefix}{name}.N" if get_origin(field.annotation) is tuple else f"{prefix}{name}"
        known = next((told[child] for child in children if child in told), None)
        meaning = _one_line(field.description) + (f" Fields as in `{known}`." if known else "")
        yield f"{prefix}{name}", _default(field), meaning
        here: set[tuple[str, str, str]] = set()
        for child in children if known is None else ():
            told[child] = place
            if (kind := kind_of(child)) is not None:
                yield f"{place}.type: {kind}", "", _one_line(child.__doc__)
            below = list(rows(child, f"{place}.", told))
            yield from (row for row in below if row not in here)
            here |= set(below)


def markdown() -> str:
    """The table as Markdown."""
    lines = ["| field | default | meaning |", "| --- | --- | --- |"]
    for name, default, meaning in rows():
        cells = (f"`{name}`", f"`{default}`" if default else "", meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
