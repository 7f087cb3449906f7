"""What a process has trained and needs again in the next iteration, by the digests of the files that say the same.

Disk is the truth: who asks has checked the files, and reads them where nothing is held.
"""

from collections.abc import Mapping
from typing import Any

_held: dict[str, Any] = {}


def hold(things: Mapping[str, Any]) -> None:
    """Keeps a policy and optimizer states, by digest, in place of what was held before."""
    _held.clear()
    _held.update(things)


def take(digest: str) -> Any:
    """Gives a thing away, to be changed; None where it is not held, and then nothing is any more."""
    if digest not in _held:
        _held.clear()
    return _held.pop(digest, None)
