"""What the operating system refuses, in one sentence that says what to do."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from stages.contract.errors import StorageError

REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within the quota",
    errno.EROFS: "make the file system writable, or name another folder with --artifacts",
    errno.EACCES: "allow this user to write there, or name another folder with --artifacts",
    errno.EPERM: "allow this user to write there, or name another folder with --artifacts",
    errno.EMFILE: "raise the limit of open files, e.g. `ulimit -n 4096`",
    errno.ENFILE: "raise the system's limit of open files",
    errno.EIO: "look for a failing disk in the system's log",
    errno.EFBIG: "raise the limit of a file's size, e.g. `ulimit -f unlimited`",
}


@contextmanager
def storage_errors(work: str, folder: Path) -> Iterator[None]:
    """Tells what of the disk stopped `work`; other errors pass as they are.

    Raises:
        StorageError: no room, no permission, too many open files, ….
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _number(error)
        if number not in REMEDIES:
            raise
        where = getattr(error, "filename", None) or folder
        raise StorageError(
            f"{work}: {os.strerror(number).lower()} ({where}); what was there before is as it was: {REMEDIES[number]}, "
            "and give the same command"
        ) from error


def _number(error: Exception) -> int:
    """The system's number of an error; libraries in Rust and C++ say it in words alone."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    told = str(error).lower()
    return next((number for number in REMEDIES if os.strerror(number).lower() in told), 0)
