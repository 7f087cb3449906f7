"""The flow `evaluate`: policies of a run on its held-out prompts, on demand."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from flows.config.forms import EvaluateOverrides
from flows.config.overrides import without_hardware
from flows.orchestration.failures import in_one_sentence
from flows.orchestration.prefect_ui import published
from flows.orchestration.tasks import run_stage
from flows.runs import observers
from flows.runs.access import ARTIFACTS, held, open_run
from flows.runs.history import History, chosen
from stages.contract.errors import ConfigError
from stages.contract.paths import RunPaths


@flow(name="evaluate", flow_run_name="evaluate · {run}", persist_result=False)
@in_one_sentence
def evaluate(
    run: str,
    first: Annotated[int, Field(ge=0)] | None = None,
    last: Annotated[int, Field(ge=0)] | None = None,
    overrides: EvaluateOverrides = None,
    artifacts: str = str(ARTIFACTS),
) -> State[None]:
    """Measures policies of a run on its held-out prompts; one that was measured so already is left alone.

    Args:
        run: Name of the run, which is also its folder's, e.g. quickstart.
        first: Iteration whose policy is measured, 0 for the starting policy; empty takes the last one.
        last: Measure the policies up to this iteration's; empty measures the first alone.
        overrides: Settings of the evaluation that it has otherwise than the run, this once, e.g. more completions a
            prompt; what is left empty is as the run has it.
        artifacts: Folder of all runs.
    """
    paths, config = open_run(Path(artifacts), run)
    settings = overrides or {}
    wanted = _policies(paths, first, last)
    with held(paths, observers.say), published(paths, config):
        for k in wanted:
            done = History(paths).manifest(k, "evaluate")
            otherwise = done is not None and done.overrides != without_hardware(settings)
            run_stage(str(paths.root), "evaluate", k, otherwise, settings, return_state=True).result()
    return Completed(message="; ".join(_told(History(paths), k) for k in wanted))


def _policies(paths: RunPaths, first: int | None, last: int | None) -> list[int]:
    """The iterations to measure.

    Raises:
        ConfigError: one of them has no policy, or the last comes before the first.
    """
    start = chosen(paths, "update/manifest.json", first, "policy")
    end = start if last is None else last
    if end < start:
        raise ConfigError(f"last is {end}: an iteration from {start} on, the first one, is wanted")
    return [chosen(paths, "update/manifest.json", k, "policy") for k in range(start, end + 1)]


def _told(history: History, k: int) -> str:
    manifest = history.manifest(k, "evaluate")
    figures = manifest.metrics if manifest else {}
    shown = [f"{name} {value:.4f}" for name, value in figures.items() if value is not None and "length" not in name]
    return f"iteration {k}: {', '.join(shown)}"
