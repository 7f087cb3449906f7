"""Forms: the configuration as typed, nested fields that may all stay open, and back to the names that `--set` takes.

Prefect's UI makes a form of a flow's parameters. What is said there lays itself over the run's configuration; a field
that is left empty changes nothing.
"""

import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic import create_model as new_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from flows.config.messages import kind_of, models_in
from flows.config.overrides import Dotted
from flows.config.schema import RunConfig

LEFT = "as configured"
"""The tab of a section that changes nothing."""
OPENED = "changed"
"""The tab of one whose fields are shown."""
NULL = "(null)"
"""What a field holds that is to be null, since one that is None was left open."""
ENTRIES = 6
"""Entries of a list of configurations that a form has room for."""


class Overrides:
    """The type of a parameter that takes some sections of the configuration, or dotted names, and gives dotted names.

    It stands in an `Annotated`: the validated value is a `Dotted`.
    """

    def __init__(self, *sections: str) -> None:
        """Takes the names of the sections, in the order of the form."""
        self._model = _form((RunConfig,), sections)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A form's mapping, dotted names, or None."""
        return core_schema.nullable_schema(
            core_schema.no_info_wrap_validator_function(_dotted, handler.generate_schema(self._model))
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A section that is opened, or none."""
        return _choice(handler(schema))


def flattened(form: BaseModel) -> Dotted:
    """What a form says, by dotted names; entries of a list are counted from 0."""
    return Dotted(_leaves(form, ""))


def _dotted(value: Any, validate: Any) -> Dotted:
    if isinstance(value, Dotted) or (isinstance(value, Mapping) and any("." in str(name) for name in value)):
        return Dotted(value)
    return flattened(validate(value))


def _leaves(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, BaseModel):
        return {} if value is None else {name: None if value == NULL else value}
    out: dict[str, Any] = {}
    for part in type(value).model_fields:
        out |= _leaves(getattr(value, part), f"{name}.{part}" if name else part)
    return out


@cache
def _form(models: tuple[type[BaseModel], ...], names: tuple[str, ...] = ()) -> type[BaseModel]:
    """A configuration in which every field may stay open; kinds of which `type` chooses one share a form.

    The UI guesses a tab from the fields that are filled in, so that kinds in tabs of their own would be mixed up.
    """
    fields: dict[str, Any] = {}
    for name in names or sorted((name for model in models for name in model.model_fields), key="type".__ne__):
        having = [model for model in models if name in model.model_fields]
        if name == "type" and all(map(kind_of, having)):
            kind: Any = Literal[tuple(map(kind_of, having))]
            about = "Which kind; empty keeps the one that is configured. Another kind begins with its own defaults."
        else:
            kinds = dict.fromkeys(_open(model.model_fields[name]) for model in having)
            if len(kinds) > 1:  # limits that are not those of all are left to the configuration itself
                kinds = dict.fromkeys(_open(model.model_fields[name], limited=False) for model in having)
            kind = reduce(or_, kinds)
            about = " ".join(_abouts(name, having, models))
        fields[name] = (kind | None, Field(default=None, title=name, description=about))
    return _model(models[0].__name__, fields)


def _abouts(name: str, having: list[type[BaseModel]], models: tuple[type[BaseModel], ...]) -> Iterator[str]:
    """What a field means, and of which kinds, where not all have it or mean the same."""
    meant: dict[str, list[str]] = {}
    for model in having:
        about = " ".join((model.model_fields[name].description or "").split())
        meant.setdefault(about, []).append(kind_of(model) or "")
    for about, kinds in meant.items():
        yield about if len(kinds) == len(models) else f"{', '.join(kinds)}: {about}"


def _open(field: FieldInfo, limited: bool = True) -> Any:
    """The type of a field that may stay open, with its limits."""
    kind = _opened(field.annotation)
    for limit in field.metadata if limited and not models_in(field.annotation) else ():
        kind = Annotated[kind, limit]
    return kind | Literal["(null)"] if NoneType in get_args(field.annotation) else kind


def _opened(annotation: Any) -> Any:
    parts = get_args(annotation)
    if models := tuple(models_in(annotation)):
        form = _form(models)
        return _entries(form) if get_origin(annotation) is tuple else form
    match get_origin(annotation):
        case typing.Union | types.UnionType:
            return reduce(or_, [_opened(part) for part in parts if part is not NoneType])
        case origin if origin is tuple:
            entry: Any = parts[0]
            return list[entry]
    return str if annotation is Path else annotation


def _entries(form: type[BaseModel]) -> type[BaseModel]:
    """A list of configurations, as fields named by the entries' places: the UI shows no forms inside a list."""
    fields: dict[str, Any] = {}
    for place in range(ENTRIES):
        about = f"Entry {place} of the list, counted from 0." if place else "The first entry of the list."
        fields[str(place)] = (form | None, Field(default=None, title=str(place), description=about))
    return _model(f"{form.__name__}s", fields)


def _model(name: str, fields: dict[str, Any]) -> type[BaseModel]:
    settings = ConfigDict(extra="forbid", title=OPENED, json_schema_extra=_tidy, allow_inf_nan=False)
    return new_model(name, __config__=settings, **fields)


def _tidy(schema: dict[str, Any]) -> None:
    fields = schema["properties"]
    fields |= shaped(fields)


def shaped(fields: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Fields as the form shows them: what may stay open is an empty box, or a closed section, and no choice of null."""
    return {name: _choice(field) for name, field in fields.items()}


def _choice(field: dict[str, Any]) -> dict[str, Any]:
    parts = _parts(field)
    if all(part.get("type") != "null" for part in parts):
        return field  # it has to be said, or has a default of its own
    about = {key: value for key, value in field.items() if key not in ("anyOf", "oneOf", "default")}
    parts = sorted((part for part in parts if part.get("type") != "null"), key=lambda part: "const" in part)
    if any("$ref" in part for part in parts):
        return {"default": None, "anyOf": [*parts, {"type": "null", "title": LEFT}]} | about
    if len(parts) > 1 and all("enum" in part or "const" in part for part in parts):
        parts = [{"type": "string", "enum": [value for part in parts for value in part.get("enum", [NULL])]}]
    return parts[0] | about if len(parts) == 1 else {"anyOf": [{"title": "value"} | part for part in parts]} | about


def _parts(field: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a field, those of alternatives included."""
    choices = field.get("anyOf") or field.get("oneOf")
    if choices is not None:
        return [part for choice in choices for part in _parts(choice)]
    if "const" in field:  # the UI sends a constant only where it is the default too
        return [{"title": field["const"], "default": field["const"]} | field]
    if field.get("type") == "boolean":  # the UI sends false for a switch that was not touched
        return [{"enum": [True, False]}]
    return [field]


TrainOverrides = Annotated[
    dict[str, Any] | None,
    Overrides(*(name for name in RunConfig.model_fields if name not in ("run", "iterations"))),
]
"""What a training can be told beside its configuration's file."""
StageOverrides = Annotated[
    dict[str, Any] | None,
    Overrides(
        "prompts",
        "warmstart",
        "reward_model",
        "sample",
        "score",
        "advantage",
        "update",
        "critic",
        "evaluate",
        "hardware",
    ),
]
"""What the stages take."""
EvaluateOverrides = Annotated[dict[str, Any] | None, Overrides("evaluate", "sample", "score", "hardware")]
"""What an evaluation takes."""
RescoreOverrides = Annotated[dict[str, Any] | None, Overrides("score")]
"""What a comparison of rewards takes."""
ForkOverrides = Annotated[
    dict[str, Any] | None,
    Overrides("sample", "score", "advantage", "update", "critic", "evaluate", "promotion", "keep", "gate", "hardware"),
]
"""What a fork can have otherwise than its parent."""
