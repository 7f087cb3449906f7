"""Digests of files and folders (BLAKE3, hexadecimal)."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from blake3 import blake3


def file_digest(path: Path) -> str:
    """Digest of a file's bytes."""
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update_mmap(path)
    return hasher.hexdigest()


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
