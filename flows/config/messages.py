"""What is wrong with a configuration, field by field, for people. Pure."""

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The configurations that a field's type names, those of a union in its order."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in get_args(annotation) for model in models_in(part)]


def kind_of(model: type[BaseModel]) -> str | None:
    """The one value of the field `type`, by which a union chooses; None for a model that has no such field."""
    field = model.model_fields.get("type")
    values = get_args(field.annotation) if field else ()
    return str(values[0]) if len(values) == 1 else None


def explain(error: ValidationError, top: type[BaseModel]) -> Iterator[str]:
    """What is wrong with each field of a configuration of the type `top`, a line each."""
    problems = error.errors(include_url=False)
    for problem in problems:
        if problem["type"] == "too_short" and any(other["loc"][:-1] != problem["loc"][:-1] for other in problems):
            continue  # an entry of the list was refused, and is named itself
        place, models = _place(problem["loc"], top)
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = [name for model in models for name in model.model_fields]
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            yield f"{place}: unknown key" + (f"; did you mean {near[0]!r}?" if near else f"; known are {known}")
        elif problem["type"] == "missing":
            yield f"{place}: missing; it has no default"
        elif not place:
            yield message
        elif problem["type"] == "secret":
            yield f"{place}: {message}"  # what was seen may be one
        else:
            yield f"{place}: {message} (seen: {problem['input']!r:.80})"


def _place(loc: tuple[int | str, ...], top: type[BaseModel]) -> tuple[str, list[type[BaseModel]]]:
    """The dotted name of a field as `--set` takes it, and the configurations that it would be a field of."""
    names: list[str] = []
    models = [top]
    for part in loc:
        inside = [model.model_fields[part] for model in models if part in model.model_fields]
        chosen = [model for model in models if kind_of(model) == part]
        if chosen and not inside:
            models = chosen  # the kind of a union, which is no part of the name
            continue
        names.append(str(part))
        if inside and part != loc[-1]:
            models = [model for field in inside for model in models_in(field.annotation)]
    return ".".join(names), models
