"""Configuration of the update."""

from typing import Literal

from pydantic import Field

from stages.contract.config import Config
from stages.model.config import OptimizerConfig


class ClippedLoss(Config):
    """The clipped surrogate of PPO and GRPO."""

    type: Literal["clipped"] = "clipped"
    epsilon_low: float = Field(default=0.2, ge=0, le=1)
    """Width of the clip below a ratio of 1."""
    epsilon_high: float = Field(default=0.2, ge=0)
    """Width of the clip above a ratio of 1."""
    aggregation: Literal["sequence_mean", "token_mean"] = "token_mean"
    """Mean over each sequence, then over sequences (GRPO); or over all tokens of the optimizer batch (DAPO)."""


class KlConfig(Config):
    """The KL term towards the reference policy, by the k3 estimator, aggregated as the loss is."""

    coefficient: float = Field(default=0.0, ge=0)
    """β; above 0 it needs `score.reference`."""


class UpdateConfig(Config):
    """How a policy is trained on an iteration's rollouts."""

    epochs: int = Field(default=1, gt=0)
    """Passes over the rollouts."""
    minibatches: int = Field(default=1, gt=0)
    """Optimizer steps an epoch."""
    micro_batch_tokens: int = Field(default=16384, gt=0)
    """Padded tokens of a forward and backward pass; bounds memory, never changes the gradient."""
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    """Log-probabilities of the old policy: by a pass of the trainer, or as the sampler reported them."""
    loss: ClippedLoss = ClippedLoss()
    """The objective."""
    kl: KlConfig = KlConfig()
    """The KL term."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
