"""Holds what `grpo serve` is told, as the worker's process reads it."""

from pathlib import Path

from flows.serving.notifications import Notifications
from stages.contract.config import Config
from stages.contract.errors import ConfigError


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


def check_cron(line: str) -> None:
    """Checks when nights are to begin. Prefect is imported here, so its environment has to stand.

    Raises:
        ConfigError: it is no cron line.
    """
    from prefect.schedules import Cron

    try:
        Cron(line)
    except ValueError as error:
        raise ConfigError(f"--cron {line!r}: a cron line like '0 2 * * *' is wanted") from error
