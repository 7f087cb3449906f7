"""Where the interpreter lies that runs programs: its file, its library, and what it links to."""

import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
"""Shared libraries, and the table of where they lie."""
PACKAGES = "/packages"
"""Folder inside the sandbox from which chosen packages are imported."""


@dataclass(frozen=True)
class Interpreter:
    """The running interpreter, without what is installed beside it."""

    file: Path
    shown: tuple[Path, ...]
    """Files and folders that it needs, at their own place."""
    hidden: tuple[Path, ...]
    """Folders among them that it does not need."""


def running() -> Interpreter:
    """The interpreter of this process; of a virtual environment, the one that it was made of."""
    file = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = Path(sysconfig.get_path("stdlib")).resolve()
    beside = (Path(sys.base_prefix) / "lib").resolve()
    system = tuple(Path(name) for name in SYSTEM if Path(name).exists())
    mine = tuple(p for p in dict.fromkeys((file, library, beside)) if not any(p.is_relative_to(s) for s in system))
    hidden = (library / "site-packages", library / "dist-packages", Path("/usr/lib/python3/dist-packages"))
    return Interpreter(file, (*system, *mine), tuple(path for path in hidden if path.is_dir()))


def command(interpreter: Interpreter) -> list[str]:
    """Starts it without site-packages, the environment's say, or a folder of the caller's to import from."""
    return [os.fspath(interpreter.file), "-S", "-s", "-P", "-B", "-X", "utf8", "-c"]
