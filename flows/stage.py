"""The flow `stage`: one stage of one iteration, for reruns."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows import progress
from flows.runs import ARTIFACTS, held, open_run
from flows.tasks import StageName, run_stage
from stages.contract.errors import ConfigError


@flow(name="stage", flow_run_name="{stage} · {run}/{iteration}", persist_result=False)
def stage(
    stage: StageName,
    run: str,
    iteration: int,
    force: bool = True,
    overrides: dict[str, Any] | None = None,
    artifacts: str = str(ARTIFACTS),
) -> None:
    """Runs one stage of one iteration again; what it replaces moves to the run's folder `superseded`.

    Args:
        stage: The stage to run.
        run: Name of the run.
        iteration: Iteration, from 1; 0 for prompts, warmstart and evaluate of the starting policy.
        force: Run it even if its output is current.
        overrides: Dotted names of this stage's configuration fields and their values, e.g. {"advantage.scale": "none"}.
        artifacts: Folder of all runs.
    """
    paths, _ = open_run(Path(artifacts), run)
    if (stage in {"prompts", "warmstart"}) != (iteration == 0) and stage != "evaluate":
        raise ConfigError(f"{stage} is not a stage of iteration {iteration}")
    with held(paths, progress.say):
        run_stage(str(paths.root), stage, iteration, force, overrides or {}, return_state=True).result()
