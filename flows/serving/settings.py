"""Holds what `grpo serve` is told, as the worker's process reads it."""

from pathlib import Path

from flows.serving.notifications import Notifications
from stages.contract.config import Config


class NightSchedule(Config):
    """When nights of a run begin."""

    run: str
    """Its name."""
    cron: str
    """Minute, hour, day of the month, month, day of the week."""
    timezone: str
    """In which the cron line is read; it keeps its hour through summer time."""


class Told(Config):
    """What `grpo serve` was told."""

    artifacts: Path
    """The folder of all runs."""
    configs: tuple[str, ...]
    """Configurations to choose from, relative to the working directory."""
    slots: int
    """Flow runs at a time."""
    pool: str
    """The work pool that this machine's runs are in."""
    own_server: bool
    """Whether the server is that of this folder, not one that was configured."""
    notifications: Notifications
    """Who is told what happens."""
    nights: tuple[NightSchedule, ...] = ()
    """When nights begin by themselves."""
