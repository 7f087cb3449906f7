"""Secrets of rewards: each judge's key from its Prefect Secret block, for that judge alone."""

import os

from stages.contract.errors import ConfigError
from stages.score.config import ScoreConfig
from stages.score.reward_config import JudgeReward, Reward


def with_keys(config: ScoreConfig) -> ScoreConfig:
    """The configuration with the key of each judge whose variable is not set, from the block that it names.

    Raises:
        ConfigError: there is no such block.
    """
    return config.model_copy(update={"rewards": tuple(_with_key(reward) for reward in config.rewards)})


def asks_for_block(reward: Reward) -> bool:
    """Whether a reward takes a secret from a block of Prefect's server."""
    if not isinstance(reward, JudgeReward) or reward.key is None or reward.key_block is None:
        return False
    return not os.environ.get(reward.key)


def _with_key(reward: Reward) -> Reward:
    if not isinstance(reward, JudgeReward) or reward.key_block is None or not asks_for_block(reward):
        return reward
    return reward.with_secret(_value(reward.key_block))


def _value(block: str) -> str:
    from prefect.blocks.system import Secret

    try:
        return str(Secret.load(block).get())  # type: ignore[union-attr]
    except ValueError as error:
        raise ConfigError(
            f"score.rewards: Prefect has no Secret block {block!r}; make one in the UI, or set the variable"
        ) from error
