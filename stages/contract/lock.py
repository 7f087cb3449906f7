"""One writer a run: an advisory lock that the kernel drops with its owner, and a note of who that is."""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from stages.contract.errors import RunInUseError


@contextmanager
def run_lock(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the run for this process.

    A lock whose owner died is taken over, and `say` is told so. The lock is `flock`, so of two processes that come at
    the same instant one wins, and no lock outlives its process.

    Raises:
        RunInUseError: a live process holds the run; names its pid, host and start.
    """
    with _locked(path) as file:
        if left := _note(path):
            say(f"took over the lock of {_owner(left)}, which is gone")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "start": datetime.now(UTC).isoformat("T", "seconds")}
        file.truncate(0)
        file.write(json.dumps(owner))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _locked(path: Path) -> TextIO:
    """The file, locked. One that its last owner removed meanwhile is no lock for those who come later: another try."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise RunInUseError(f"{path.parent}: in use by {_owner(_note(path))}") from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _note(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']}, started {owner['start']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has not written its name yet"


@contextmanager
def folder_lock(folder: Path) -> Iterator[bool]:
    """Holds a scratch folder for this process while the block lasts; False where another live process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(descriptor)
