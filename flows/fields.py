"""The table of configuration fields, made from the docstrings."""

from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flows.config import RunConfig


def rows(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(name, default, meaning) of each field, depth first; the members of a union follow under their `type`."""
    for name, field in model.model_fields.items():
        if name == "type":
            continue
        yield f"{prefix}{name}", _default(field), " ".join((field.description or "").split())
        children = [child for child in _models(field.annotation) if issubclass(child, BaseModel)]
        for child in children:
            kind = child.model_fields.get("type")
            if kind is not None:
                [value] = get_args(kind.annotation)
                yield f"{prefix}{name}: {value}", "", " ".join((child.__doc__ or "").split())
            yield from rows(child, f"{prefix}{name}.")


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
    if isinstance(value, tuple):
        value = list(value)
    return "null" if value is None else str(value)


def _models(annotation: Any) -> list[type[Any]]:
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in get_args(annotation) if part is not NoneType for model in _models(part)]
