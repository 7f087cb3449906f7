"""The flow `reward_model`: the reward model of a run, and what it is made from."""

from pathlib import Path
from typing import cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.config.forms import TrainOverrides
from flows.config.loading import read_config
from flows.config.preflight import check_outside
from flows.config.stages import REWARD_MODEL, StageName
from flows.orchestration.failures import in_one_sentence
from flows.orchestration.prefect_ui import published, reward_model_name
from flows.orchestration.tasks import run_stage
from flows.runs import observers
from flows.runs.access import ARTIFACTS, check_same, writing
from flows.runs.history import History
from flows.runs.phases import check_phase
from flows.runs.staleness import stages_of
from stages.contract.errors import ConfigError
from stages.contract.manifest import Manifest
from stages.contract.paths import RunPaths


@flow(name="reward_model", flow_run_name=reward_model_name, persist_result=False)
@in_one_sentence
def reward_model(
    config: str, run: str | None = None, overrides: TrainOverrides = None, artifacts: str = str(ARTIFACTS)
) -> State[None]:
    """Trains the reward model of a run from preferences; what is current is left alone. `train` goes on from there.

    Args:
        config: The configuration: a YAML file with a section reward_model, e.g. configs/rlhf.yaml.
        run: Name of the run; empty takes the configuration's.
        overrides: Fields that this run has otherwise than the file says; what is left empty stays as the file has it.
        artifacts: Folder of all runs.
    """
    resolved = read_config(Path(config), (overrides or {}) | ({"run": run} if run else {}))
    if resolved.reward_model is None:
        raise ConfigError(f"{config}: has no section `reward_model`: say there which pairs it is trained from")
    paths = RunPaths.named(Path(artifacts), resolved.run)
    if not check_same(paths, resolved):
        check_outside(resolved)
        check_phase(paths.root.parent, resolved)
    with writing(paths, resolved, observers.say), published(paths, resolved):
        for stage in stages_of(History(paths), resolved, 0):
            if stage != "evaluate":
                hardware = resolved.hardware.model_dump()
                run_stage(str(paths.root), cast(StageName, stage), 0, hardware=hardware, return_state=True).result()
    done = History(paths).manifest(0, REWARD_MODEL)
    assert done is not None, "the stage was done"
    return Completed(message=told(paths, done))


def told(paths: RunPaths, done: Manifest) -> str:
    """Where the reward model lies, and how good it is."""
    figures = done.metrics
    held = [
        f"{name} {value:.4f}"
        for name in ("accuracy", "loss", "margin")
        if (value := figures[f"heldout_{name}"]) is not None
    ]
    on = f"of {figures['heldout_pairs']:.0f} held-out pairs: {', '.join(held)}" if held else "no pairs are held out"
    return f"{paths.reward_model}: trained on {figures['pairs']:.0f} pairs; {on}"
