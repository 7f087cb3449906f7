"""Who runs the Prefect server of a folder: a lock that dies with its process, and a note of the server's address."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

NOTE = "server.json"
WRITING_LIMIT = 5
"""Seconds that the owner of the lock may take to write its note."""


@dataclass(frozen=True)
class Owner:
    """The process that runs the server on a folder's database."""

    pid: int
    url: str
    shared: bool
    """Whether other commands may use the server: that of `grpo serve`, not the one that ends with its own command."""


@contextmanager
def claim(home: Path) -> Iterator[Callable[[str, bool], None] | Owner]:
    """Becomes the one process with a server on this folder's database, or says which one is.

    Args:
        home: the folder of the database.

    Yields:
        A function that notes the server's address and whether it is shared; or the owner, where there is one.
    """
    with (home / NOTE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield _owner(home / NOTE)
            return
        file.truncate(0)

        def note(url: str, shared: bool) -> None:
            file.write(json.dumps(asdict(Owner(os.getpid(), url, shared))))
            file.flush()

        try:
            yield note
        finally:
            file.truncate(0)


def _owner(path: Path) -> Owner:
    """What the owner has noted; one that has not written yet is waited for, then taken for one that shares nothing."""
    deadline = time.monotonic() + WRITING_LIMIT
    while time.monotonic() < deadline:
        try:
            return Owner(**json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            time.sleep(0.05)
    return Owner(0, "", False)
