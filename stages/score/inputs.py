"""What the rewards read beside the rollouts: files that belong to the inputs of the stage that judges."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.contract.errors import ConfigError
from stages.contract.manifest import read_manifest
from stages.contract.workspace import Workspace
from stages.score.config import ScoreConfig
from stages.score.reward_config import PythonReward, Reward, RewardModelReward
from stages.score.workers.function_lookup import located


def with_inputs(desk: Workspace, config: ScoreConfig) -> ScoreConfig:
    """The configuration with the place of each file that a reward reads; the files become inputs of the stage.

    Raises:
        ArtifactError: one is missing, or one of this run is not as its maker's manifest says.
        ConfigError: a function that is not there, or a reward model that was trained to read another format.
    """
    for path in outside_files(config.rewards):
        desk.take(path)
    return config.model_copy(update={"rewards": tuple(_noted(desk, reward) for reward in config.rewards)})


def outside_files(rewards: Iterable[Reward]) -> list[Path]:
    """The files of the rewards' own code: changed code makes what it judged stale.

    Raises:
        ConfigError: a function that is not there.
    """
    return [located(reward.function).file for reward in rewards if isinstance(reward, PythonReward)]


def _noted(desk: Workspace, reward: Reward) -> Reward:
    if not isinstance(reward, RewardModelReward):
        return reward
    folder = reward.path or desk.paths.reward_model
    desk.take_folder(folder)
    return reward.model_copy(update={"path": folder, "format": _format(reward, folder, desk.paths.reward_model.name)})


def _format(reward: RewardModelReward, folder: Path, name: str) -> Any:
    """The format that the model was trained with, where the stage `reward_model` made its folder."""
    made = read_manifest(folder.parent) if folder.name == name else None
    if made is None or made.stage != "reward_model":
        return reward.format
    trained = made.notes.get("format", made.config.get("format"))
    if reward.format is not None and trained is not None and reward.format != trained:
        raise ConfigError(
            f"score.rewards: format is {reward.format}, but {folder} was trained with {trained}: leave the reward's "
            "format out, or say it in reward_model.format"
        )
    return trained or reward.format
