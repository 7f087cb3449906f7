"""What a night is allowed to do, and what is kept of it: a record a date, in the run's folder `nights`.

Times are UTC in the records; the date of a night is that of its beginning in its time zone.
"""

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import Field

from flows.config.schema import NightsConfig
from flows.runs.records import Record, read_record, write_record
from stages.contract.errors import ConfigError
from stages.contract.paths import RunPaths

PACE = 3
"""Iterations by which the time of the next one is judged: it is taken to last as long as the longest of them."""


class Night(Record):
    """One night of a run."""

    date: str
    status: Literal["running", "waiting", "failed", "done", "cut off"] = "running"
    """`running` without a living process was killed, and goes on; `cut off` was left to a later night."""
    began: datetime
    ended: datetime | None = None
    """Also the time since which a gate waits."""
    until: datetime | None = None
    """No iteration begins that would not be over by then."""
    before: int
    """The last whole iteration when the night began."""
    wanted: int | None = None
    """The last iteration that it may train."""
    last: int
    """The last whole iteration now."""
    starts: int = 1
    """How often it was begun: above 1 it was killed, failed or waited in between."""
    stopped: str = ""
    """Why it trains no further."""
    promoted: bool | None = None
    why: str = ""
    """Why its last policy was promoted, or held back."""
    prompts: dict[str, int] = Field(default_factory=dict)
    """New prompts that were taken up, and those left out by reason."""
    told: tuple[str, ...] = ()
    """What else is worth a line in the morning."""


def new_night(date: str, now: datetime, before: int, config: NightsConfig) -> Night:
    """A night that begins."""
    until = None if config.hours is None else now + timedelta(hours=config.hours)
    wanted = None if config.iterations is None else before + config.iterations
    return Night(date=date, began=now, until=until, before=before, wanted=wanted, last=before)


def again(night: Night, now: datetime) -> Night:
    """A night that goes on; the time for which a gate waited is not counted."""
    waited = now - night.ended if night.status == "waiting" and night.ended else timedelta(0)
    until = None if night.until is None else night.until + waited
    return night.model_copy(update={"status": "running", "ended": None, "until": until, "starts": night.starts + 1})


def reason_to_skip(
    night: Night | None, date: str, now: datetime, scheduled: datetime | None, config: NightsConfig
) -> str | None:
    """Why nothing is to be done; None where the night begins, or goes on.

    Args:
        night: the record of that date; None where there is none.
        date: the night's.
        now: the time.
        scheduled: when it was due; None for one that was started by hand.
        config: how late a night may begin.
    """
    if night is not None and night.status == "done":
        return f"the night of {date} was spent already"
    if night is not None and night.status == "cut off":
        return f"the night of {date} was cut off, and a later one has gone on with its work"
    if night is None and scheduled is not None and now - scheduled > timedelta(hours=config.late):
        return (
            f"the night of {date} was missed: it was due at {scheduled:%Y-%m-%d %H:%M %Z}, more than {config.late:g} h "
            "ago; the next one goes on"
        )
    return None


def reason_to_stop(night: Night, now: datetime, seconds: Sequence[float]) -> str | None:
    """Why no further iteration begins; None where one does.

    Args:
        night: the night.
        now: the time.
        seconds: of the iterations before, the last one last.
    """
    if night.wanted is not None and night.last >= night.wanted:
        count = night.wanted - night.before
        return f"it had trained {count} iteration{'' if count == 1 else 's'}"
    if night.until is None:
        return None
    left, longest = (night.until - now).total_seconds(), max(seconds[-PACE:], default=0.0)
    if left <= 0:
        return "its hours were over"
    if longest > left:
        return f"another iteration takes some {longest:.0f} s, and {left:.0f} s of its hours were left"
    return None


def read_night(paths: RunPaths, date: str) -> Night | None:
    """The record of a date; None where there is none.

    Raises:
        ArtifactError: it is damaged.
    """
    return read_record(record_of(paths, date), Night, "remove it, and the night begins anew")


def write_night(paths: RunPaths, night: Night) -> None:
    """Keeps a record."""
    write_record(record_of(paths, night.date), night)


def record_of(paths: RunPaths, date: str) -> Path:
    """The file of a night's record; the report for people is beside it, in Markdown."""
    return paths.nights / f"{date}.json"


def left_open(paths: RunPaths, date: str) -> list[Night]:
    """Nights of other dates that never ended."""
    others = [path.stem for path in sorted(paths.nights.glob("*.json")) if path.stem != date]
    found = [read_night(paths, other) for other in others]
    return [night for night in found if night is not None and night.status not in ("done", "cut off")]


def zone(name: str | None) -> ZoneInfo:
    """A time zone by its name; None takes this machine's.

    Raises:
        ConfigError: there is none of that name.
    """
    wanted = name or local_zone()
    try:
        return ZoneInfo(wanted)
    except (KeyError, ValueError, OSError):
        raise ConfigError(f"there is no time zone {wanted!r}; one like Europe/Berlin or UTC is wanted") from None


def local_zone() -> str:
    """The name of this machine's time zone; UTC where it has none."""
    if named := os.environ.get("TZ", "").lstrip(":"):
        return named
    _, _, found = str(Path("/etc/localtime").resolve()).partition("zoneinfo/")
    return found or "UTC"


def utc() -> datetime:
    """The time."""
    return datetime.now(UTC)
