"""Who watches the work: a display may register itself; without one, nothing is shown."""

from typing import Protocol

from stages.contract.paths import RunPaths
from stages.contract.workspace import Progress


class Watcher(Protocol):
    """A display."""

    def working(self, stage: str, k: int, done: int, total: int) -> None:
        """A stage has done `done` of `total`; a total of 0 means that it has just begun."""

    def iteration_done(self, paths: RunPaths, k: int) -> None:
        """All stages of an iteration are current."""

    def say(self, text: str) -> None:
        """Something worth a line."""


_watchers: list[Watcher] = []


def watch(watcher: Watcher) -> None:
    """Has all that follows told to `watcher`."""
    _watchers.append(watcher)


def reporter(stage: str, k: int) -> Progress:
    """The progress function of one stage."""

    def report(done: int, total: int) -> None:
        for watcher in _watchers:
            watcher.working(stage, k, done, total)

    report(0, 0)
    return report


def iteration_done(paths: RunPaths, k: int) -> None:
    """Tells the watchers that iteration `k` is done."""
    for watcher in _watchers:
        watcher.iteration_done(paths, k)


def say(text: str) -> None:
    """Tells the watchers something."""
    for watcher in _watchers:
        watcher.say(text)
