"""Large files that are written while their maker's process goes on; the manifest names them, by digest, before.

Such a file grows beside its place under a lock that the kernel drops with the process, so that everyone can tell one
that is coming from one that was lost.
"""

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from stages.contract.commit import aside, sync
from stages.contract.digest import parts_digest, remember
from stages.contract.manifest import FileRecord
from stages.contract.storage import storage_errors

PIECE = 1 << 24
"""Bytes that are written at a time, between which the writing can be given up."""
NO_SUCH_CALL = (errno.EOPNOTSUPP, errno.EINVAL)


class Content(Protocol):
    """What is to be written: bytes that are in memory already, in parts."""

    size: int

    def parts(self) -> Iterator[memoryview]:
        """The bytes, in order; each time the same."""


class Growing:
    """A file whose room on the disk is taken, and which is still to be written."""

    def __init__(self, path: Path, content: Content) -> None:
        """Takes the room beside `path`, so that a full disk is told before anything is committed."""
        self.name = path.name
        self.record = FileRecord(digest=parts_digest(content.parts()), size=content.size)
        self._content = content
        self._lock = os.open(aside(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            _take_room(self._lock, content.size)
        except BaseException:
            self.close()
            raise

    def write(self, folder: Path, given_up: threading.Event) -> None:
        """Writes the file into `folder`, where its maker's output is by now; without a trace where it is given up."""
        growing = aside(folder / self.name)
        try:
            if pour(growing, self._content.parts(), given_up):
                growing.replace(folder / self.name)
                remember(folder / self.name, self.record.digest)
                sync(folder)
        finally:
            growing.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Lets go of the file."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1


def pour(path: Path, parts: Iterable[memoryview], given_up: threading.Event) -> bool:
    """Writes `parts` into a file that is there, piece by piece, and syncs it; whether it came to the end."""
    with path.open("r+b", buffering=0) as file:
        for piece in _pieces(parts):
            if given_up.is_set():
                return False
            _write(file.fileno(), piece)
        os.fsync(file.fileno())
    return True


def _pieces(parts: Iterable[memoryview]) -> Iterator[memoryview]:
    """The same bytes in pieces of one size, the last one shorter, each at the beginning of a page of memory."""
    buffer = memoryview(mmap.mmap(-1, PIECE))
    filled = 0
    for left in parts:
        while len(left):
            count = min(PIECE - filled, len(left))
            buffer[filled : filled + count] = left[:count]
            filled, left = filled + count, left[count:]  # noqa: PLW2901 - what is left of it
            if filled == PIECE:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


def _write(file: int, piece: memoryview) -> None:
    """Writes a piece; a whole one past the page cache, where that is possible.

    Room in the cache costs as much of the cores, which the work that goes on wants, as all the rest.
    """
    flags, done = fcntl.fcntl(file, fcntl.F_GETFL), 0
    if len(piece) == PIECE:
        with suppress(OSError):  # what is wrong beside that is told below
            fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT)
            done = os.write(file, piece)
        fcntl.fcntl(file, fcntl.F_SETFL, flags)
    while done < len(piece):
        done += os.write(file, piece[done:])


def _take_room(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in NO_SUCH_CALL:  # a file system that cannot promise room tells of it later
            raise


class Background:
    """Writes for the one writer of a run, in a thread; to be used by one thread at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._work = ""
        self._error: BaseException | None = None
        self._given_up = threading.Event()

    def write(self, work: str, folder: Path, files: Sequence[Growing]) -> None:
        """Begins to write files into `folder`; what was begun before is waited for first.

        Args:
            work: what is written, for an error's message.
            folder: the stage's folder, in place.
            files: what grows in it.
        """
        self.wait()

        def run() -> None:
            try:
                with storage_errors(work, folder):
                    write_all(folder, files, self._given_up)
            except BaseException as error:  # told by `wait`
                self._error = error

        self._work = work
        self._thread = threading.Thread(target=run, name="background")
        self._thread.start()

    def check(self) -> None:
        """Tells of a writing that has failed by now, and waits for none.

        Raises:
            StorageError: no room, no permission, …; the files are not there.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def at_work(self) -> str | None:
        """What is being written; None where all is."""
        return self._work if self._thread is not None and self._thread.is_alive() else None

    def wait(self) -> None:
        """Waits until all is written.

        Raises:
            StorageError: no room, no permission, …; the files are not there.
        """
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error

    def give_up(self) -> None:
        """Ends what is being written, where it is at, and leaves nothing of it."""
        self._given_up.set()
        if self._thread is not None:
            self._thread.join()


def write_all(folder: Path, files: Sequence[Growing], given_up: threading.Event | None = None) -> None:
    """Writes files one after the other; lets go of all where one fails."""
    left = list(files)
    try:
        while left:
            left.pop(0).write(folder, given_up or threading.Event())
    finally:
        for file in left:
            file.close()
            aside(folder / file.name).unlink(missing_ok=True)


def is_coming(path: Path) -> bool:
    """Whether a file is there, or a live process is still writing it."""
    try:
        descriptor = os.open(aside(path), os.O_RDONLY)
    except FileNotFoundError:
        return path.is_file()  # it may have come meanwhile
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return path.is_file()


def await_all(folder: Path) -> None:
    """Waits until what a live process is writing into a stage's folder is there, or the process is gone."""
    for growing in folder.glob(".*.partial"):
        try:
            descriptor = os.open(growing, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)
