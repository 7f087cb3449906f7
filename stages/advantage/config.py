"""Configuration of the advantage methods."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from stages.contract.config import Config
from stages.model.kl_controller import KlTerm


class KlReward(KlTerm):
    """A KL penalty inside the reward: each token earns `-coefficient · KL estimate` beside its reward."""

    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Of d = log π_sampler - log π_reference: k1 = d, k2 = d²/2, k3 = exp(-d) - 1 + d."""


class Method(Config):
    """What every method has: which rows it leaves out."""

    truncated: Literal["keep", "mask"] = "keep"
    """Completions cut by length: `mask` does not train on them, though their rewards count in their group."""
    max_age: int | None = Field(default=None, ge=0)
    """Iterations that the policy which drew a row may be behind the one to be trained; null takes all rows."""


class GroupMethod(Method):
    """A method that compares the completions of one prompt."""

    constant_groups: Literal["drop", "keep"] = "drop"
    """Groups whose rewards are all equal: left out, or kept with advantages of 0, so that a mean loss counts them."""


class Grpo(GroupMethod):
    """Group-relative advantages: `(r - mean) / (std + eps)`, or `r - mean`."""

    type: Literal["grpo"] = "grpo"
    scale: Literal["group", "batch", "none", "mad"] = "group"
    """Divides by the group's standard deviation (GRPO), by that of all rewards of the iteration (`batch`), by the
    group's mean absolute deviation (`mad`), or not at all (Dr. GRPO)."""
    ddof: Literal[0, 1] = 1
    """Divisor of the variance is n - ddof: 1 as in TRL and verl, 0 for the population's."""
    eps: float = Field(default=1e-4, ge=0)
    """Added to the standard deviation."""
    baseline: Literal["group", "leave_one_out"] = "group"
    """Mean and standard deviation of the whole group, or of the group's other completions (NeMo-RL)."""
    rewards: Literal["sum_then_normalise", "normalise_then_sum"] = "sum_then_normalise"
    """Several rewards: their weighted sum is normalised, or each is, and the weighted sum of that is divided by its
    standard deviation over the iteration (GDPO)."""

    @model_validator(mode="after")
    def _others(self) -> Self:
        if self.baseline == "leave_one_out" and self.scale == "mad":
            raise ValueError("baseline leave_one_out goes with scale group, batch or none, not with mad")
        return self


class Rloo(GroupMethod):
    """The mean of the group's other completions as baseline: `G/(G-1) · (r - mean)`."""

    type: Literal["rloo"]
    kl: KlReward = KlReward()
    """KL penalty, summed over the tokens and taken from the completion's reward."""


class Reinforce(Method):
    """Each token's discounted reward-to-go, less a baseline that is the same for all."""

    type: Literal["reinforce"]
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount a token (γ)."""
    baseline: Literal["none", "batch", "running"] = "none"
    """`batch`: mean return of the iteration's completions; `running`: their moving average over earlier iterations."""
    decay: float = Field(default=0.9, ge=0, lt=1)
    """Part of the running baseline that an iteration leaves in place."""
    kl: KlReward = KlReward()
    """KL penalty, token by token."""


class ReinforcePlusPlus(Method):
    """Reward-to-go whitened over all tokens of the iteration, with or without the group's mean as baseline."""

    type: Literal["reinforce_plus_plus"]
    baseline: Literal["none", "group"] = "none"
    """`group` first takes the mean of its group from a reward (REINFORCE++-baseline)."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount a token (γ)."""
    eps: float = Field(default=1e-8, ge=0)
    """Added to the standard deviation."""
    kl: KlReward = KlReward()
    """KL penalty, token by token."""


class Gae(Method):
    """Generalised advantage estimation with the critic's values (PPO)."""

    type: Literal["gae"]
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount a token (γ)."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """λ: 1 trusts the rewards alone (no bias), 0 the critic one token ahead (least variance)."""
    whiten: bool = True
    """Advantages are shifted and scaled to mean 0 and standard deviation 1 over all tokens of the iteration."""
    eps: float = Field(default=1e-8, ge=0)
    """Added to that standard deviation."""
    kl: KlReward = KlReward()
    """KL penalty, token by token."""


class Process(GroupMethod):
    """Step rewards, normalised over all steps of the group; a token's advantage is the sum of those that follow it."""

    type: Literal["process"]
    ddof: Literal[0, 1] = 1
    """Divisor of the variance is n - ddof."""
    eps: float = Field(default=1e-4, ge=0)
    """Added to the standard deviation."""


def _grpo_unless_said(value: Any) -> Any:
    return {"type": "grpo", **value} if isinstance(value, dict) else value


AdvantageConfig = Annotated[
    Annotated[Grpo | Rloo | Reinforce | ReinforcePlusPlus | Gae | Process, Field(discriminator="type")],
    BeforeValidator(_grpo_unless_said),
]


def compares_groups(config: AdvantageConfig) -> bool:
    """Whether the method needs two rewards or more of each prompt."""
    return isinstance(config, GroupMethod) or (isinstance(config, ReinforcePlusPlus) and config.baseline == "group")


def kl_of(config: AdvantageConfig) -> KlReward:
    """The penalty inside the reward; one of coefficient 0 for a method that has none."""
    return config.kl if isinstance(config, Rloo | Reinforce | ReinforcePlusPlus | Gae) else KlReward()


def goes_on(config: AdvantageConfig) -> bool:
    """Whether an iteration starts from what the one before it handed on."""
    running = isinstance(config, Reinforce) and config.baseline == "running"
    return running or kl_of(config).adaptive is not None
