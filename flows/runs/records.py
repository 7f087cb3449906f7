"""Small records beside the stages' outputs, one JSON file each: forks, promotions, nights, decisions."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.contract.commit import write_text
from stages.contract.errors import ArtifactError, VersionError

VERSION = 1
"""Raised with each change that older code could not read."""


class Record(BaseModel):
    """What every record has."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: int = VERSION
    """Of the code that wrote it."""


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R], remedy: str) -> R | None:
    """A record; None where there is none.

    Args:
        path: its file.
        kind: what it holds.
        remedy: what its owner can do where it is damaged, for the message.

    Raises:
        VersionError: newer code wrote it.
        ArtifactError: it is damaged.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: damaged, not JSON ({error}); {remedy}") from error
    if isinstance(data, dict) and isinstance(version := data.get("version"), int) and version > VERSION:
        raise VersionError(f"{path}: has version {version}, this code reads up to {VERSION}: update grpo-flows")
    try:
        return kind.model_validate_json(json.dumps(data))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "all of it"
        raise ArtifactError(f"{path}: damaged ({place}: {first['msg']}); {remedy}") from error


def write_record(path: Path, record: Record) -> None:
    """Keeps a record."""
    path.parent.mkdir(exist_ok=True)
    write_text(path, record.model_dump_json(indent=1) + "\n")


def now() -> str:
    """The time that records name: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat("T", "seconds")
