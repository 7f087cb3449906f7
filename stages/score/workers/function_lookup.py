"""Finds the file of a user's function by its name, without running anything in it."""

import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from stages.contract.errors import ConfigError


@dataclass(frozen=True)
class Located:
    """Where a function is."""

    file: Path
    module: str | None
    """The module's name; None for a file that is named itself."""
    name: str
    """The function's name in it, with dots where it lies deeper."""


def located(function: str) -> Located:
    """The place of `FILE.py:NAME` or `package.module.NAME`.

    Raises:
        ConfigError: neither of them, or there is no such file or module.
    """
    path, colon, name = function.rpartition(":")
    if colon and path.endswith(".py"):
        if not Path(path).is_file():
            raise ConfigError(f"{function}: no file {path}; a relative path counts from the working directory")
        return Located(Path(path).absolute(), None, name)
    parts = function.split(".")
    spec, depth = _top(parts[0]), 1
    while spec is not None and spec.submodule_search_locations is not None and depth < len(parts) - 1:
        deeper = PathFinder.find_spec(".".join(parts[: depth + 1]), list(spec.submodule_search_locations))
        if deeper is None:
            break
        spec, depth = deeper, depth + 1
    if spec is None or not spec.origin or len(parts) < 2 or not Path(spec.origin).is_file():
        raise ConfigError(
            f"{function}: FILE.py:NAME or package.module.NAME is wanted, and no module {parts[0]!r} is there"
        )
    return Located(Path(spec.origin).absolute(), ".".join(parts[:depth]), ".".join(parts[depth:]))


def search_path() -> list[str]:
    """Where modules are looked for, here and by the process of the function: the working directory comes last."""
    here = Path.cwd()
    return [path for path in sys.path if path and Path(path).absolute() != here] + [str(here)]


def _top(name: str) -> ModuleSpec | None:
    if not name.isidentifier() or name in sys.builtin_module_names:
        return None
    return PathFinder.find_spec(name, search_path()) or find_spec(name)  # the latter finds what is installed editable
