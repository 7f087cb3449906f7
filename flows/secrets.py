"""Secrets of rewards: from Prefect's Secret blocks into the environment, for as long as a stage works."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from stages.contract.errors import ConfigError
from stages.score.reward_config import JudgeReward, Reward


@contextmanager
def secrets_of(rewards: Iterable[Reward]) -> Iterator[None]:
    """Sets the variables that the judges name, from their blocks, where they are not set already.

    Raises:
        ConfigError: there is no such block.
    """
    judges = [reward for reward in rewards if isinstance(reward, JudgeReward)]
    wanted = {judge.key: judge.key_block for judge in judges if judge.key and judge.key_block}
    here = {variable: block for variable, block in wanted.items() if not os.environ.get(variable)}
    os.environ.update({variable: _value(block) for variable, block in here.items()})
    try:
        yield
    finally:
        for variable in here:
            os.environ.pop(variable, None)


def _value(block: str) -> str:
    from prefect.blocks.system import Secret

    try:
        return str(Secret.load(block).get())  # type: ignore[union-attr]
    except ValueError as error:
        raise ConfigError(
            f"score.rewards: Prefect has no Secret block {block!r}; make one in the UI, or set the variable"
        ) from error
