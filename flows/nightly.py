"""The flow `nightly`: goes on with a run within a budget, evaluates, promotes or holds back, and reports."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.exceptions import Pause
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.config.loading import with_settings
from flows.config.schema import NightsConfig, RunConfig
from flows.orchestration.failures import in_one_sentence
from flows.orchestration.night_run import Desk
from flows.orchestration.prefect_ui import published
from flows.runs import observers
from flows.runs.access import ARTIFACTS, open_run, writing
from flows.runs.history import History
from flows.runs.nights import (
    Night,
    again,
    left_open,
    new_night,
    read_night,
    reason_to_skip,
    utc,
    write_night,
    zone,
)
from flows.runs.staleness import examine
from stages.contract.errors import ConfigError, GateError, GrpoError, RunInUseError
from stages.contract.paths import RunPaths


@flow(name="nightly", flow_run_name="{run} · night", persist_result=False)
@in_one_sentence
def nightly(
    run: str,
    iterations: int | None = None,
    hours: float | None = None,
    timezone: str | None = None,
    artifacts: str = str(ARTIFACTS),
) -> State[Any]:
    """Goes on with a run for a night, and promotes its policy if it is better than the promoted one beyond noise.

    Args:
        run: Name of the run.
        iterations: Iterations at most; empty takes the run's configuration.
        hours: No iteration begins that would not be over after so many hours; empty takes the run's configuration.
        timezone: Time zone of the night's date, e.g. Europe/Berlin; empty takes the machine's.
        artifacts: Folder of all runs.
    """
    paths, config = open_run(Path(artifacts), run)
    given = {f"nights.{name}": value for name, value in {"iterations": iterations, "hours": hours}.items()}
    given = {name: value for name, value in given.items() if value is not None}
    settings = with_settings(config, given, "the night").nights
    return spend(paths, config, settings, timezone, utc, flow_run.scheduled_start_time)


def spend(
    paths: RunPaths,
    config: RunConfig,
    settings: NightsConfig,
    timezone: str | None,
    clock: Callable[[], datetime],
    scheduled: datetime | None = None,
) -> State[Any]:
    """Spends a night, or what is left of it. What is current is left alone, so that a killed night goes on.

    Args:
        paths: the run.
        config: its configuration.
        settings: the night's.
        timezone: of its date; None takes the machine's.
        clock: tells the time, with its zone.
        scheduled: when the night was due; None where it was started by hand.

    Returns:
        A state that says what came of it, or why there was nothing to do.
    """
    here, now = zone(timezone), clock()
    if config.evaluate is None:
        raise ConfigError(f"{paths.root.name} has evaluate: null; a night needs held-out prompts to judge its policy")
    date = (scheduled or now).astimezone(here).date().isoformat()
    due = scheduled.astimezone(here) if scheduled else None
    try:
        with writing(paths, config, observers.say):
            night = read_night(paths, date)
            if skip := reason_to_skip(night, date, now, due, settings):
                return _skipped(skip)
            return Completed(message=_spend(paths, config, settings, date, clock, night))
    except RunInUseError as error:
        return _skipped(f"the run is being worked on: {error}; the next night goes on")


def _skipped(why: str) -> State[Any]:
    observers.say(f"skipped: {why}")
    return Completed(name="Skipped", message=why)


def _spend(
    paths: RunPaths,
    config: RunConfig,
    settings: NightsConfig,
    date: str,
    clock: Callable[[], datetime],
    night: Night | None,
) -> str:
    todo = next((s.iteration for s in examine(History(paths), config, _next(paths)) if s.status != "current"), 0)
    begun = again(night, clock()) if night else new_night(date, clock(), max(0, todo - 1), settings)
    told, last = (*begun.told, *_close(paths, date)), max(0, todo - 1)
    judged = begun.promoted if begun.last == last else None
    begun = begun.model_copy(update={"last": last, "told": told, "promoted": judged})
    write_night(paths, begun)
    desk = Desk(paths, config, settings, clock, begun)
    with published(paths, config, begun.wanted, "night, iteration"):
        try:
            desk.train(todo)
            desk.judge()
        except (Pause, GateError):
            desk.put(status="waiting", ended=clock())
            raise
        except GrpoError as error:
            desk.put(status="failed", ended=clock(), why=str(error))
            raise
    return desk.close()


def _next(paths: RunPaths) -> int:
    """The iteration after the last one of which a stage was done."""
    return History(paths).last() + 1


def _close(paths: RunPaths, date: str) -> list[str]:
    """Leaves the work of nights that never ended to this one; says so."""
    told = []
    for night in left_open(paths, date):
        write_night(paths, night.model_copy(update={"status": "cut off"}))
        how = {"waiting": "waited at a gate", "failed": "failed"}.get(night.status, "was cut off")
        told.append(f"the night of {night.date} {how} after iteration {night.last}; this one went on from there")
    return told
