"""The flow `nightly`: goes on with a run within a budget, evaluates, promotes or holds back, and reports."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import Pause
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.config.loading import with_settings
from flows.config.schema import NightsConfig, RunConfig
from flows.inspection.metrics import seconds
from flows.inspection.report import inline, markdown_table, report, row
from flows.orchestration.approval_gate import pass_gate
from flows.orchestration.failures import in_one_sentence
from flows.orchestration.new_prompts import take_up
from flows.orchestration.prefect_ui import key_of, published
from flows.orchestration.tasks import run_stage
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
    reason_to_stop,
    record_of,
    utc,
    write_night,
    zone,
)
from flows.runs.promotion import against_promoted, baseline, promote, promoted, promotion, verdict
from flows.runs.requirements import missing_for
from flows.runs.retention import retain
from flows.runs.staleness import examine, state_of
from flows.train import train_iteration
from stages.contract.commit import write_text
from stages.contract.config import config_digest
from stages.contract.errors import ArtifactError, ConfigError, GateError, GrpoError, RejectedError, RunInUseError
from stages.contract.paths import RunPaths

HELD_BACK = "grpo-flows.night.held-back"
"""The event that tells that a night's policy was not promoted."""


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
    desk = _Desk(paths, config, settings, clock, begun)
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


class _Desk:
    """A night at work: each step is kept in its record."""

    def __init__(
        self, paths: RunPaths, config: RunConfig, settings: NightsConfig, clock: Callable[[], datetime], night: Night
    ) -> None:
        self._paths, self._config, self._settings, self._clock, self.night = paths, config, settings, clock, night

    def put(self, **changes: Any) -> None:
        """Changes the record."""
        self.night = self.night.model_copy(update=changes)
        write_night(self._paths, self.night)

    def train(self, first: int) -> None:
        """Trains from iteration `first` on, until the budget is used up."""
        k = first
        if k == 0:
            train_iteration(self._paths, self._config, 0)
            k = 1
        if promoted(self._paths) is None:
            promote(self._paths, baseline(self._paths), "the policy that the run began with, which has nothing to beat")
        taken = take_up(self._paths, self._config)
        counts = {what: self.night.prompts.get(what, 0) + count for what, count in taken.prompts.items()}
        self.put(prompts=self.night.prompts | counts, told=(*dict.fromkeys((*self.night.told, *taken.problems)),))
        while (stop := reason_to_stop(self.night, self._clock(), self._pace(k))) is None:
            train_iteration(self._paths, self._config, k)
            self.put(last=k, promoted=None)
            k += 1
        retain(self._paths, self._config, k - 1, observers.say)
        self.put(stopped=stop)

    def _pace(self, k: int) -> list[float]:
        history = History(self._paths)
        return [sum(seconds(history, self._config, i).values()) for i in range(max(1, k - 3), k)]

    def judge(self) -> None:
        """Evaluates the last policy and the promoted one alike, and promotes the last one if it is better.

        A night that was killed after its verdict keeps it.
        """
        if self.night.promoted is not None:
            return
        old, new = baseline(self._paths), self.night.last
        if new == old:
            done = promotion(self._paths) if new > self.night.before else None
            none = f"there is no policy after the promoted one, that of iteration {old}"
            self.put(promoted=done is not None, why=done.why if done else none)
            return
        for k in (old, new):
            self._measure(k)
        try:
            comparison = against_promoted(self._paths, self._config, new)
        except ArtifactError as error:
            self.put(promoted=False, why=f"it could not be compared: {error}")
            return
        why = verdict(comparison, self._config)
        if comparison.better:
            try:
                pass_gate(self._paths, self._config, "before_promote", new)
            except RejectedError as error:
                self.put(promoted=False, why=f"{why}; but {error}")
                return
            promote(self._paths, new, why, comparison)
        self.put(promoted=comparison.better, why=why)

    def _measure(self, k: int) -> None:
        """Evaluates the policy of iteration `k` with the night's settings, unless it was already."""
        history = History(self._paths)
        own = {"prompts": self._settings.prompts, "samples": self._settings.samples}
        given = {f"evaluate.{name}": value for name, value in own.items() if value}
        wanted = with_settings(self._config, given, "the night's evaluation").section("evaluate")
        state = state_of(history, self._config, k, "evaluate")
        if (
            state.status == "current"
            and state.manifest is not None
            and state.manifest.config_digest == config_digest(wanted)
        ):
            return
        there = history.config(k, self._config).section("evaluate")
        changes = departures(there, wanted)
        hardware = self._config.hardware.model_dump()
        run_stage(str(self._paths.root), "evaluate", k, True, changes, hardware, return_state=True).result()

    def close(self) -> str:
        """Ends the night: its report as a file and as an artifact, an event where its policy was held back.

        It is over when all of this is done; one that is killed before reports again.
        """
        night, name = self.night.model_copy(update={"ended": self._clock()}), self._paths.root.name
        page = morning(self._paths, self._config, night)
        write_text(record_of(self._paths, night.date).with_suffix(".md"), page)
        if FlowRunContext.get() is not None:
            try:
                create_markdown_artifact(page, key_of(name, "night"), f"{name}: the night of {night.date}")
            except Exception as error:  # the report is on disk, and a display is not worth a night
                observers.say(f"the UI does not show the report: {str(error) or type(error).__name__}")
        if not night.promoted and night.last > night.before:
            emit_event(
                HELD_BACK,
                resource={"prefect.resource.id": f"grpo-flows.run.{name}", "prefect.resource.name": name},
                payload={
                    "run": name,
                    "iteration": night.last,
                    "date": night.date,
                    "message": f"{name}: the policy of iteration {night.last} was held back: {night.why}",
                },
            )
        self.put(status="done", ended=night.ended)
        told = f"{headline(night)}: {night.why}"
        observers.say(told)
        return told


def departures(there: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Dotted names and values by which an evaluation has to depart from its iteration's; a part there may be null."""
    return {
        f"{part}.{name}": value
        for part, fields in wanted.items()
        for name, value in fields.items()
        if (there[part] or {}).get(name) != value
    }


def headline(night: Night) -> str:
    """What came of a night, in few words."""
    if night.last == night.before and not night.promoted:
        return f"no iteration trained after iteration {night.last}"
    return f"iteration {night.last} {'promoted' if night.promoted else 'held back'}"


def morning(paths: RunPaths, config: RunConfig, night: Night) -> str:
    """The report of a night: what came of it and why, then the run's page."""
    history, name, trained = History(paths), paths.root.name, night.last - night.before
    took = (night.ended or night.began) - night.began
    lines = [
        f"# {name} · night of {night.date}",
        f"**{inline(headline(night).capitalize())}**: {inline(night.why)}.",
        f"- {trained} iterations were trained ({night.before + 1} to {night.last})"
        if trained > 0
        else "- no iteration was trained",
        f"- it took {took.total_seconds() / 3600:.2f} h and ended because {inline(night.stopped)}",
    ]
    if night.starts > 1:
        lines.append(f"- it was begun {night.starts} times: in between it was killed, failed, or waited at a gate")
    lines += [f"- {count} {inline(what)}" for what, count in night.prompts.items()]
    lines += [f"- {inline(told)}" for told in night.told]
    if not night.promoted and trained > 0:
        kept = promoted(paths) or 0
        gone = missing_for(history, history.config(kept + 1, config), kept + 1)
        how = f"to train on from it: `grpo fork {name} --at {kept} --name …`"
        how = f"to train on from it, {gone[0]} is missing, which the retention rule `keep` removed" if gone else how
        lines.append(f"- the promoted policy is still that of iteration {kept}; {how}")
    rows = [row(history, config, k) for k in range(night.before, night.last + 1)]
    return "\n".join([lines[0], "", lines[1], "", *lines[2:], "", markdown_table(rows), "", report(history, config)])
