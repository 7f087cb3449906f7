"""The flow `stage`: one stage of one iteration, for reruns."""

from pathlib import Path
from typing import Annotated, Any, cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.config.forms import StageOverrides
from flows.config.overrides import without_hardware
from flows.config.stages import StageName, place_of
from flows.orchestration.failures import in_one_sentence
from flows.orchestration.iteration import make
from flows.orchestration.prefect_ui import published
from flows.orchestration.tasks import run_stage
from flows.runs import observers
from flows.runs.access import ARTIFACTS, held, open_run
from flows.runs.history import History
from flows.runs.staleness import after, examine, stages_of, stale
from stages.contract.errors import ConfigError

SHOWN = 3
"""Stale stages that the flow run's message names."""


@flow(name="stage", flow_run_name="{stage} · {run}/{iteration}", persist_result=False)
@in_one_sentence
def stage(
    stage: StageName,
    run: str,
    iteration: Annotated[int, Field(ge=0)],
    force: bool = True,
    overrides: StageOverrides = None,
    through: Annotated[int, Field(ge=0)] | None = None,
    artifacts: str = str(ARTIFACTS),
    only_failed: bool = False,
) -> State[None]:
    """Runs one stage of one iteration again; what it replaces moves to the run's folder `superseded`.

    Args:
        stage: The stage to run.
        run: Name of the run, which is also its folder's, e.g. quickstart.
        iteration: Iteration, from 1; 0 for prompts, warmstart, reward_model and evaluate of the starting policy.
        force: Run it even if its output is current; a retry of this flow run leaves alone what it has made itself.
        overrides: Fields of this stage's sections that it has otherwise than the run, this once; what is left empty is
            as the run has it. From code, dotted names do too, e.g. {"advantage.scale": "none"}.
        through: Also make what of it follows, up to the end of this iteration; empty runs the stage alone.
        artifacts: Folder of all runs.
        only_failed: Of the stage score, judge again only what failed, and keep the other verdicts; fields that it was
            last made with are kept too.
    """
    paths, config = open_run(Path(artifacts), run)
    settings = overrides or {}
    if only_failed:
        if stage != "score":
            raise ConfigError(f"only_failed is for the stage score, not for {stage}")
        made = History(paths).manifest(iteration, stage)
        settings = (made.overrides if made else {}) | settings
    if stage not in (*stages_of(History(paths), config, iteration), "evaluate"):
        raise ConfigError(f"{stage} is not a stage of iteration {iteration}")
    last = History(paths).last()
    if through is not None and not iteration <= through <= last:
        raise ConfigError(
            f"through is {through}: an iteration from {iteration} to {last}, the last one there is, is wanted"
        )
    with held(paths, observers.say), published(paths, config):
        force = force and not (flow_run.run_count > 1 and _made_with(History(paths), iteration, stage, settings))
        done = run_stage(str(paths.root), stage, iteration, force, settings, None, only_failed, return_state=True)
        done.result()
        for k, following in after(History(paths), config, iteration, stage, through) if through is not None else ():
            make(paths, config, k, cast(StageName, following))
    told = stale(examine(History(paths), config, last))
    more = [f"and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
    made_stale = f"stale now, and made again by train: {'; '.join([*told[:SHOWN], *more])}"
    return Completed(message=f"{stage} of iteration {iteration} is done; {made_stale if told else 'nothing is stale'}")


def _made_with(history: History, k: int, stage: str, settings: dict[str, Any]) -> bool:
    """Whether the stage was last made with these settings."""
    done = history.manifest(k, place_of(stage))
    return done is not None and done.overrides == without_hardware(settings)
