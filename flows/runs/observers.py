"""Who watches the work: a display may register itself; without one, nothing is shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from stages.contract.paths import RunPaths
from stages.contract.progress import Progress


class Watcher(Protocol):
    """A display."""

    def working(self, stage: str, k: int, done: int, total: int) -> None:
        """A stage has done `done` of `total`; a total of 0 means that it has just begun."""

    def stage_done(self, paths: RunPaths, stage: str, k: int, told: str) -> None:
        """A stage has run, for the first time or again."""

    def iteration_done(self, paths: RunPaths, k: int) -> None:
        """All stages of an iteration are current."""

    def say(self, text: str) -> None:
        """Something worth a line."""


_watchers: list[Watcher] = []


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Has all that happens within the block told to `watcher`."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def reporter(stage: str, k: int) -> Progress:
    """The progress function of one stage."""

    def report(done: int, total: int) -> None:
        for watcher in _watchers:
            watcher.working(stage, k, done, total)

    report(0, 0)
    return report


def stage_done(paths: RunPaths, stage: str, k: int, told: str) -> None:
    """Tells the watchers that a stage has run."""
    for watcher in _watchers:
        watcher.stage_done(paths, stage, k, told)


def iteration_done(paths: RunPaths, k: int) -> None:
    """Tells the watchers that iteration `k` is done."""
    for watcher in _watchers:
        watcher.iteration_done(paths, k)


def say(text: str) -> None:
    """Tells the watchers something."""
    for watcher in _watchers:
        watcher.say(text)
