"""Control groups: the only limit on the memory of several processes together. Used where they can be written."""

import itertools
import os
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from stages.score.sandbox.limits import Limits

ROOT = Path("/sys/fs/cgroup")
SPARE = 8
"""Processes beside the program's own: those of bubblewrap."""
PREFIX = "grpo-sandbox-"
NUMBERS = itertools.count()
"""Several sandboxes may be open at once."""


def make_groups(limits: Limits) -> tuple[Path, ...]:
    """Groups that bound memory and processes together; none where they cannot be written."""
    settings = {
        "memory": {"memory.max": limits.memory, "memory.limit_in_bytes": limits.memory, "memory.swap.max": 0},
        "pids": {"pids.max": limits.processes + SPARE},
    }
    made: list[Path] = []
    try:
        for parent, controllers in _parents():
            _sweep(parent)
            group = parent / f"{PREFIX}{os.getpid()}-{next(NUMBERS)}"
            group.mkdir()
            made.append(group)
            for name, value in [pair for controller in controllers for pair in settings[controller].items()]:
                if (group / name).exists():
                    (group / name).write_text(str(value))
    except OSError:
        remove_groups(made)
        return ()
    if made and subprocess.run([*joining(made), "true"], capture_output=True, check=False).returncode != 0:
        remove_groups(made)  # whoever may make a group may yet not be allowed to move a process there
        return ()
    return tuple(made)


def joining(groups: Sequence[Path]) -> list[str]:
    """Enters groups and goes on with the command that follows."""
    steps = [f"echo 0 > {shlex.quote(str(group / 'cgroup.procs'))}" for group in groups]
    return ["/bin/sh", "-c", " && ".join([*steps, 'exec "$@"']), "sh"] if groups else []


def remove_groups(groups: Iterable[Path]) -> None:
    """Removes groups; nothing lives in them any more."""
    for group in groups:
        with suppress(OSError):
            group.rmdir()


def _parents() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Where groups can be made, and for which controllers: of version 2 in one place, of version 1 in two."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if (ROOT / "cgroup.controllers").is_file():
        # A group with processes of its own gives no controllers to those below it: ours lies beside it, or higher.
        here = ROOT / own.get("", "/").lstrip("/")
        for folder in (here, *here.parents):
            inside = folder.is_relative_to(ROOT) and os.access(folder, os.W_OK)
            if inside and {"memory", "pids"} <= set((folder / "cgroup.subtree_control").read_text().split()):
                yield folder, ("memory", "pids")
                return
        return
    for controller in ("memory", "pids"):
        here = ROOT / controller / own.get(controller, "/").lstrip("/")
        if os.access(here, os.W_OK):
            yield here, (controller,)


def _sweep(parent: Path) -> None:
    """Removes the groups of processes that were killed."""
    for left in parent.glob(f"{PREFIX}*"):
        if not Path("/proc", left.name.split("-")[2]).exists():
            remove_groups([left])
