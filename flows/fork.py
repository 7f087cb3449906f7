"""The flow `fork`: a new run that shares another one's earlier iterations, and goes on from there."""

from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from flows.config.forms import ForkOverrides
from flows.orchestration.failures import in_one_sentence
from flows.runs import forking, observers
from flows.runs.access import ARTIFACTS
from flows.train import train
from stages.contract.paths import RunPaths


@flow(name="fork", flow_run_name="{name} · fork of {run}/{at}", persist_result=False)
@in_one_sentence
def fork(
    run: str,
    at: Annotated[int, Field(ge=0)],
    name: str,
    overrides: ForkOverrides = None,
    go_on: bool = False,
    iterations: Annotated[int, Field(gt=0)] | None = None,
    artifacts: str = str(ARTIFACTS),
) -> State[Any] | None:
    """Makes a run that has the earlier iterations of another one without a copy; `train` goes on from there.

    Args:
        run: Name of the run to part from.
        at: The last iteration that both have.
        name: Name of the new run.
        overrides: Fields that the new run has otherwise from there on; what is left empty stays as it is. From code,
            dotted names do too, e.g. {"update.epochs": 2}.
        go_on: Train the new run at once; else `train` or `grpo resume` does it when you want.
        iterations: Iterations to train up to; empty takes the configuration's.
        artifacts: Folder of all runs.
    """
    new = RunPaths.named(Path(artifacts), name)
    made = forking.read_fork(new) if flow_run.run_count > 1 else None  # by this flow run, before it was started anew
    if made is None or (made.run, made.iteration, made.overrides) != (run, at, overrides or {}):
        forking.fork(Path(artifacts), run, at, name, overrides or {}, observers.say)
    # No flow run of its own: a gate could not suspend it.
    return train.fn(str(new.config), None, iterations, None, artifacts) if go_on else None
