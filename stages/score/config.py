"""Configuration of scoring: a list of rewards, and the reference policy."""

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.contract.config import Config
from stages.score.reward_config import CosineReward, JudgeReward, Reward, reward_name


class StartReference(Config):
    """The starting policy, for the whole run."""

    type: Literal["start"]


class RefreshedReference(Config):
    """The policy of every N-th iteration: iteration k takes policy N · ⌊(k-1) / N⌋."""

    type: Literal["refresh"]
    every: int = Field(gt=0)
    """Iterations for which a reference stays (N)."""


class AverageReference(Config):
    """The exponential average of the policies up to k-1 that `update.average` keeps."""

    type: Literal["average"]


Reference = Annotated[StartReference | RefreshedReference | AverageReference, Field(discriminator="type")]


class ScoreConfig(Config):
    """The rewards of a completion."""

    rewards: tuple[Reward, ...] = Field(min_length=1)
    """Rewards, each with a column and a status of its own; their weighted sum is `reward`."""
    reference: Reference | None = None
    """Adds the log-probabilities of this policy, which a KL term needs; null saves that pass. A bare `start`
    is taken too."""
    micro_batch_tokens: int = Field(default=16384, gt=0)
    """Padded tokens of a forward pass of the reference policy; bounds memory."""

    @field_validator("reference", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = Counter(reward_name(reward) for reward in self.rewards)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"two rewards are named {twice[0]!r}: give one of them a `name`")
        judges = [reward_name(reward) for reward in self.rewards if not isinstance(reward, CosineReward)]
        for reward in self.rewards:
            if isinstance(reward, CosineReward) and reward.of not in judges:
                raise ValueError(f"`of: {reward.of}` names no reward that says what is right; there are {judges}")
        return self

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        judges = [reward for reward in self.rewards if isinstance(reward, JudgeReward) and reward.key_block]
        blocks = {reward.key: reward.key_block for reward in judges}
        for judge in judges:
            if judge.key is not None and judge.key_block != (other := blocks[judge.key]):
                raise ValueError(
                    f"two judges take the key {judge.key} from the blocks {judge.key_block!r} and {other!r}: give each "
                    "a `key` of its own"
                )
        return self
