"""The flow `fork`: a new run that shares another one's earlier iterations, and goes on from there."""

from pathlib import Path

from prefect import flow

from flows import branch, progress
from flows.failing import in_one_sentence
from flows.forms import ForkOverrides
from flows.runs import ARTIFACTS
from flows.train import train


@flow(name="fork", flow_run_name="{name} · fork of {run}/{at}", persist_result=False)
@in_one_sentence
def fork(
    run: str,
    at: int,
    name: str,
    overrides: ForkOverrides = None,
    go_on: bool = False,
    iterations: int | None = None,
    artifacts: str = str(ARTIFACTS),
) -> None:
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
    new = branch.fork(Path(artifacts), run, at, name, overrides or {}, progress.say)
    if go_on:
        train(str(new.config), None, iterations, None, artifacts)
