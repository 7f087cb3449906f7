"""Phases: a run that starts from the policy of another one."""

from pathlib import Path

from flows.config.schema import RunConfig
from flows.runs import observers
from flows.runs.access import open_run
from flows.runs.export import proved_policy
from flows.runs.history import History, chosen
from flows.runs.promotion import proved_promoted
from stages.contract.errors import ConfigError
from stages.contract.paths import MANIFEST, RunPaths
from stages.warmstart.config import RunModel


def check_phase(artifacts: Path, config: RunConfig) -> None:
    """Checks that the run which this one starts from has that policy, whole, before anything is written.

    Raises:
        ConfigError: it has not.
        ArtifactError: a file of it is missing or damaged, or the retention rule removed it.
    """
    policy_before(RunPaths.named(artifacts, config.run), config)


def policy_before(home: RunPaths, config: RunConfig) -> Path | None:
    """The folder of the policy of another run that this one starts from, proved by its manifest; None for no such one.

    Args:
        home: this run's place among the others, where it need not be yet.
        config: its configuration.

    Raises:
        ConfigError: there is none.
        ArtifactError: a file of it is missing or damaged.
    """
    if not isinstance(config.warmstart.model, RunModel):
        return None
    paths, iteration = phase_before(home, config.warmstart.model)
    proved_policy(paths, iteration)
    return paths.policy(iteration)


def prompts_before(home: RunPaths, config: RunConfig) -> list[Path]:
    """The folders of the prompts that the phases before were trained on, up to the policies that they handed on.

    Raises:
        ConfigError: the run before is not there.
    """
    folders: list[Path] = []
    seen = set[str]()
    while isinstance(model := config.warmstart.model, RunModel) and model.run not in seen:
        if seen and not RunPaths.named(home.root.parent, model.run).config.is_file():
            observers.say(f"the run {model.run}, where {home.root.name} began, is gone: its prompts are not compared")
            break
        seen.add(model.run)
        home, k = phase_before(home, model)
        config = open_run(home.root.parent, model.run)[1]
        made = (home.stage(j, "prompts") for j in range(k + 1))
        folders += [folder for folder in made if (folder / MANIFEST).is_file()]
    return folders


def phase_before(home: RunPaths, model: RunModel) -> tuple[RunPaths, int]:
    """The run before, and the iteration whose policy it hands on: where this run has started, the one that it took."""
    made = History(home).manifest(0, "update")
    if made is not None and "phase" in made.notes and made.config["model"] == model.model_dump(mode="json"):
        return open_run(home.root.parent, model.run)[0], int(made.notes["phase"]["iteration"])
    return _named(home.root.parent, home.root.name, model)


def _named(artifacts: Path, own: str, model: RunModel) -> tuple[RunPaths, int]:
    if model.run == own:
        raise ConfigError(f"warmstart.model.run: {own} cannot start from itself; give this run another name with --run")
    paths, _ = open_run(artifacts, model.run)
    if model.iteration == "promoted":
        return paths, proved_promoted(paths)
    wanted = None if model.iteration == "last" else model.iteration
    return paths, chosen(paths, "update/manifest.json", wanted, "policy")
