"""The flow `train`: iterations of sample → score → advantage → update (→ evaluate)."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.config.forms import TrainOverrides
from flows.config.loading import read_config
from flows.config.preflight import check_outside
from flows.orchestration.failures import in_one_sentence
from flows.orchestration.iteration import train_iteration
from flows.orchestration.new_prompts import next_to_draw, take_up
from flows.orchestration.prefect_ui import published, train_name
from flows.runs import observers
from flows.runs.access import ARTIFACTS, check_same, writing
from flows.runs.history import History
from flows.runs.phases import check_phase
from flows.runs.retention import retain
from flows.runs.staleness import examine
from stages.contract.paths import RunPaths


@flow(name="train", flow_run_name=train_name, persist_result=False)
@in_one_sentence
def train(
    config: str,
    run: str | None = None,
    iterations: Annotated[int, Field(gt=0)] | None = None,
    overrides: TrainOverrides = None,
    artifacts: str = str(ARTIFACTS),
) -> None:
    """Trains a run from its configuration, or goes on with it: what is current is left alone.

    Args:
        config: The configuration: a YAML file, e.g. configs/quickstart.yaml.
        run: Name of the run; empty takes the configuration's. Another name starts another run.
        iterations: Iterations to train up to; empty takes the configuration's. A greater number goes on for longer.
        overrides: Fields that this run has otherwise than the file says; what is left empty stays as the file has it.
            From code, dotted names do too, e.g. {"update.epochs": 2}.
        artifacts: Folder of all runs.
    """
    named = (overrides or {}) | ({"run": run} if run else {})
    resolved = read_config(Path(config), named)
    paths = RunPaths.named(Path(artifacts), resolved.run)
    if not check_same(paths, resolved):
        check_outside(resolved)
        check_phase(paths.root.parent, resolved)
    last = iterations or resolved.iterations
    with writing(paths, resolved, observers.say), published(paths, resolved, last, "iteration"):
        if next_to_draw(paths) <= last:
            take_up(paths, resolved)
        history = History(paths)
        todo = [state for state in examine(history, resolved, last) if state.status != "current"]
        first = todo[0].iteration if todo else None
        if stale := next((state for state in todo if state.status == "stale"), None):
            observers.say(
                f"{stale.stage} of iteration {stale.iteration} is stale ({stale.reason}): it and what follows from it "
                "are made again, what they replace moves to superseded"
            )
        for k in range(last + 1 if first is None else first, last + 1):
            train_iteration(paths, resolved, k)
        retain(paths, resolved, last, observers.say)
