"""The base of every configuration, and the digest that says whether two are the same."""

import json
from typing import Any

from blake3 import blake3
from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen; unknown keys are errors; the docstring under a field is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def config_digest(section: dict[str, Any]) -> str:
    """Digest of a configuration section as plain data: equal sections, in any key order, give equal digests."""
    return blake3(json.dumps(section, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
