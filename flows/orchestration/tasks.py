"""Stages as Prefect tasks: the only file with `@task`."""

from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.config.stages import StageName
from flows.execution.run_stage import SCORES, perform
from flows.orchestration.failures import in_one_sentence
from flows.orchestration.prefect_ui import task_name
from flows.runs import observers
from flows.runs.access import open_run
from flows.runs.history import History
from flows.runs.staleness import state_of


@task(
    name="stage",
    task_run_name=task_name,  # type: ignore[arg-type]  # Prefect's protocol is one that no function fulfils
    cache_policy=NO_CACHE,
    persist_result=False,
)
@in_one_sentence
def run_stage(
    run: str,
    stage: StageName,
    iteration: int,
    force: bool = False,
    overrides: dict[str, Any] | None = None,
    hardware: dict[str, Any] | None = None,
    only_failed: bool = False,
) -> State[None]:
    """Runs a stage, or leaves it alone where its output is current.

    Args:
        run: The run's folder.
        stage: The stage.
        iteration: The iteration.
        force: Run it even if its output is current.
        overrides: Dotted names of configuration fields and their values, for this stage of this iteration alone.
        hardware: The machine; empty takes the run's configuration.
        only_failed: Of `score`, judge again only what failed.
    """
    root = Path(run)
    paths, config = open_run(root.parent, root.name)
    state = state_of(History(paths), config, iteration, stage)
    if state.status == "current" and not force:
        return Completed(name="Reused", message=state.reason or "its output is current")
    if overrides is None:
        overrides = state.manifest.overrides if state.manifest and not force else {}
    former = paths.relative(paths.stage(iteration, stage) / SCORES) if only_failed else None
    perform(root, stage, iteration, overrides, hardware, former)
    again = state.reason if state.status == "stale" else "it was asked for"
    told = "done for the first time" if state.status == "missing" else f"done again: {again}"
    observers.stage_done(paths, stage, iteration, told)
    return Completed(message=told)
