"""How a stage says how far it has come."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total) while a stage works."""


def no_progress(done: int, total: int) -> None:
    """The progress nobody watches."""


def part_of(progress: Progress, before: int, total: int) -> Progress:
    """The progress of a part of some work, of which `before` was done already."""
    return lambda done, _: progress(before + done, total)
