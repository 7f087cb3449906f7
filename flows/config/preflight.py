"""What a configuration names outside itself: files, functions, verifiers, a sandbox. Checked before a run begins."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flows.config.schema import RunConfig
from stages.contract.errors import ConfigError
from stages.prompts.config import ReasoningGymSource
from stages.score.inputs import outside_files
from stages.score.reward_config import CodeReward, JudgeReward, ReasoningGymReward

MODELS = ".models"
"""The folder, beside the runs, of the models that `grpo model` makes."""


def check_outside(config: RunConfig) -> None:
    """Checks what the configuration names outside itself, before anything is written.

    Raises:
        ConfigError: a file, folder or function that is not there, a reasoning-gym family that is unknown or not to be
            trusted, a sandbox that does not work on this host, a judge without its client or key.
    """
    for name, path in named_paths(config):
        if not path.exists():
            made = f"; `grpo model {path.name} --to {path}` makes it" if path.parent.name == MODELS else ""
            raise ConfigError(f"{name}: nothing at {path}; paths count from the working directory {Path.cwd()}{made}")
    outside_files(config.score.rewards)
    for reward in config.score.rewards:
        if isinstance(reward, CodeReward):
            from stages.score.rewards.code import check_sandbox

            check_sandbox(reward)
        if isinstance(reward, JudgeReward):
            from stages.score.rewards.judge import check_reachable

            check_reachable(reward)
    if rewards := [reward for reward in config.score.rewards if isinstance(reward, ReasoningGymReward)]:
        from stages.score.rewards.reasoning_gym import check_family

        for source in config.prompts.plain_sources().values():
            if isinstance(source, ReasoningGymSource):
                check_family(source.dataset, [family for reward in rewards for family in reward.trust])


def named_paths(part: Any, name: str = "") -> Iterator[tuple[str, Path]]:
    """Each file or folder that a configuration names, with its dotted name."""
    if isinstance(part, Path):
        yield name, part
    fields = [(field, getattr(part, field)) for field in type(part).model_fields] if isinstance(part, BaseModel) else ()
    for key, value in enumerate(part) if isinstance(part, tuple) else fields:
        yield from named_paths(value, f"{name}.{key}" if name else str(key))
