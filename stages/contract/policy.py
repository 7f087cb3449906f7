"""A policy as an input of a stage: a model's folder, or an adapter's with that of its base."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.contract.digest import names_digest
from stages.contract.errors import ModelError
from stages.contract.manifest import FileRecord

if TYPE_CHECKING:  # a digest from manifests needs no tables
    from stages.contract.workspace import Workspace

ADAPTER_CONFIG = "adapter_config.json"


def base_of(folder: Path) -> Path | None:
    """The base model's folder of an adapter; None where the folder holds no adapter.

    Raises:
        ModelError: the adapter's configuration cannot be read, or names no base.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    try:
        name = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        return Path(os.path.normpath(folder / name))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / ADAPTER_CONFIG}: not the configuration of an adapter ({error!r})") from error


def take_policy(desk: "Workspace", folder: Path) -> str:
    """Notes a policy's files as inputs of a stage, those of an adapter's base too; gives the digest of all."""
    return _digest(folder, desk.take_folder)


def cite_policy(desk: "Workspace", folder: Path) -> str:
    """The same, unread: by what its maker's manifest says."""
    return _digest(folder, desk.cite_folder)


def recorded_policy(outputs: Mapping[str, FileRecord], start: Mapping[str, FileRecord]) -> str:
    """The same digest from manifests alone, also where the files are gone.

    Args:
        outputs: of the update that made the policy.
        start: of the starting policy's maker: the base of a run's adapters.
    """
    digest = adapter_digest(outputs)
    return _with_base(digest, adapter_digest(start)) if f"policy/{ADAPTER_CONFIG}" in outputs else digest


def adapter_digest(outputs: Mapping[str, FileRecord]) -> str:
    """The digest of a policy's own files: of an adapter, without its base."""
    files = {name: record.digest for name, record in outputs.items() if name.startswith("policy/")}
    return names_digest({name.removeprefix("policy/"): digest for name, digest in files.items()})


def _digest(folder: Path, note: Callable[[Path], str]) -> str:
    digest, base = note(folder), base_of(folder)
    return digest if base is None else _with_base(digest, note(base))


def _with_base(adapter: str, base: str) -> str:
    return names_digest({"adapter": adapter, "base": base})
