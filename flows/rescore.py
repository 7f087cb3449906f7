"""The flow `rescore`: what other rewards would have said of a run's stored completions."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from flows.config.forms import RescoreOverrides
from flows.execution.rescoring import iterations_of, other_rewards, place_for
from flows.execution.rescoring import rescore as compare
from flows.orchestration.failures import in_one_sentence
from flows.orchestration.prefect_ui import key_of
from flows.runs.access import ARTIFACTS, open_run


@flow(name="rescore", flow_run_name="rescore · {run}", persist_result=False)
@in_one_sentence
def rescore(
    run: str,
    rewards: str | None = None,
    overrides: RescoreOverrides = None,
    iterations: Annotated[str, Field(pattern=r"^\d*:?\d*$")] | None = None,
    artifacts: str = str(ARTIFACTS),
) -> State[None]:
    """Scores stored completions with other rewards, without sampling; nothing in the run changes.

    Args:
        run: Name of the run, which is also its folder's, e.g. quickstart.
        rewards: A YAML file with a list rewards, or a configuration; empty takes the run's own rewards.
        overrides: Rewards that are to be other ones; what is left empty is as in the file, or in the run.
        iterations: A range like 1:40, one iteration like 7, or 30: for all from there on; empty takes all.
        artifacts: Folder of all runs.
    """
    paths, config = open_run(Path(artifacts), run)
    score = other_rewards(config, Path(rewards) if rewards else None, overrides or {})
    place = place_for(paths, Path(rewards).stem if rewards else "changed")
    compared = compare(paths, config, score, iterations_of(paths, iterations), place)
    create_table_artifact(
        compared.rewards.to_dicts(), key=key_of(run, "rescored"), description=f"Other rewards of {run}: {place}."
    )
    return Completed(message=f"{place}: {compared.rewards.height} rows of figures")
