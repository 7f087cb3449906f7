"""What the rewards read beside the rollouts: files that belong to the inputs of the stage that judges."""

from stages.contract.workspace import Workspace
from stages.score.config import ScoreConfig
from stages.score.outside import outside_files
from stages.score.reward_config import Reward, RewardModelReward


def with_inputs(desk: Workspace, config: ScoreConfig) -> ScoreConfig:
    """The configuration with the place of each file that a reward reads; the files become inputs of the stage.

    Raises:
        ArtifactError: one is missing, or one of this run is not as its maker's manifest says.
        ConfigError: a function that is not there.
    """
    for path in outside_files(config.rewards):
        desk.take(path)
    return config.model_copy(update={"rewards": tuple(_noted(desk, reward) for reward in config.rewards)})


def _noted(desk: Workspace, reward: Reward) -> Reward:
    if not isinstance(reward, RewardModelReward):
        return reward
    folder = reward.path or desk.paths.reward_model
    desk.take_folder(folder)
    return reward.model_copy(update={"path": folder})
