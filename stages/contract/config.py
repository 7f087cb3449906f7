"""The base of every configuration, and the digest that says whether two are the same."""

import json
from typing import Any

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Frozen; unknown keys are errors; the docstring under a field is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def operational(default: Any, **limits: Any) -> Any:
    """A field that says how the work is done and changes nothing in what comes out: a time limit, say."""
    return Field(default=default, json_schema_extra={"operational": True}, **limits)


def deciding(config: BaseModel) -> dict[str, Any]:
    """A configuration as plain data, without its operational fields."""
    return _deciding(config, config.model_dump(mode="json"))  # type: ignore[no-any-return]


def _deciding(config: Any, data: Any) -> Any:
    if isinstance(config, BaseModel):
        return {
            name: _deciding(getattr(config, name), data[name])
            for name, field in type(config).model_fields.items()
            if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("operational"))
        }
    if isinstance(config, list | tuple):
        return [_deciding(part, plain) for part, plain in zip(config, data, strict=True)]
    return data


def config_digest(section: dict[str, Any]) -> str:
    """Digest of a configuration section as plain data: equal sections, in any key order, give equal digests."""
    return blake3(json.dumps(section, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
