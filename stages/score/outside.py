"""What rewards read from outside the run, for the manifest: changed code makes what it judged stale."""

from collections.abc import Iterable
from pathlib import Path

from stages.score.located import located
from stages.score.reward_config import PythonReward, Reward


def outside_files(rewards: Iterable[Reward]) -> list[Path]:
    """The files of the rewards' own code.

    Raises:
        ConfigError: a function that is not there.
    """
    return [located(reward.function).file for reward in rewards if isinstance(reward, PythonReward)]
