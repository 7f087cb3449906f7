"""Digests of files and folders (BLAKE3, hexadecimal)."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from blake3 import blake3

BLOCK = 1 << 22
"""Bytes that are read at a time."""
LARGE = 1 << 24
"""Bytes from which on it pays to remember a file's digest."""
_known: dict[tuple[int, ...], str] = {}


def file_digest(path: Path) -> str:
    """Digest of a file's bytes, read block by block: a whole file that is mapped would count as memory in use."""
    hasher = blake3(max_threads=blake3.AUTO)
    with path.open("rb", buffering=0) as file:
        block = memoryview(bytearray(min(BLOCK, path.stat().st_size)))
        while count := file.readinto(block):
            hasher.update(block[:count])
    return hasher.hexdigest()


def known_digest(path: Path) -> str:
    """The same; a large file that this process has read or written, and that nobody has touched since, is not read."""
    state = _state(path)
    if state not in _known:
        digest = file_digest(path)
        if path.stat().st_size < LARGE or _state(path) != state:
            return digest
        _known[state] = digest
    return _known[state]


def remember(path: Path, digest: str) -> None:
    """Notes the digest of a file that was just written from memory."""
    _known[_state(path)] = digest


def _state(path: Path) -> tuple[int, ...]:
    """What becomes another when a file does; its change time nobody can set."""
    stat = path.stat()
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def parts_digest(parts: Iterable[memoryview]) -> str:
    """Digest of the file that these bytes, one after the other, make."""
    hasher = blake3(max_threads=blake3.AUTO)
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()


def names_digest(digests: Mapping[str, str]) -> str:
    """Digest of a set of named contents; a folder's digest is that of its relative names and file digests."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return blake3(lines.encode()).hexdigest()
