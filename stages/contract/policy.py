"""A policy as an input of a stage: a model's folder, or an adapter's with that of its base."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from stages.contract.digest import names_digest
from stages.contract.errors import ModelError
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


def take_policy(desk: Workspace, folder: Path) -> str:
    """Notes a policy's files as inputs of a stage, those of an adapter's base too; gives the digest of all."""
    return _digest(folder, desk.take_folder)


def cite_policy(desk: Workspace, folder: Path) -> str:
    """The same, unread: by what its maker's manifest says."""
    return _digest(folder, desk.cite_folder)


def _digest(folder: Path, note: Callable[[Path], str]) -> str:
    digest, base = note(folder), base_of(folder)
    return digest if base is None else names_digest({"adapter": digest, "base": note(base)})
