"""Works through a night, step by step, and keeps each step in its record."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext
from prefect.events import emit_event

from flows.config.loading import with_settings
from flows.config.schema import NightsConfig, RunConfig
from flows.inspection.metrics import seconds
from flows.inspection.night_report import headline, morning
from flows.orchestration.approval_gate import pass_gate
from flows.orchestration.iteration import train_iteration
from flows.orchestration.new_prompts import take_up
from flows.orchestration.prefect_ui import key_of
from flows.orchestration.tasks import run_stage
from flows.runs import observers
from flows.runs.history import History
from flows.runs.nights import Night, reason_to_stop, record_of, write_night
from flows.runs.promotion import against_promoted, baseline, promote, promoted, promotion, verdict
from flows.runs.retention import retain
from flows.runs.staleness import state_of
from stages.contract.commit import write_text
from stages.contract.config import config_digest
from stages.contract.errors import ArtifactError, RejectedError
from stages.contract.paths import RunPaths

HELD_BACK = "grpo-flows.night.held-back"
"""The event that tells that a night's policy was not promoted."""


class Desk:
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
