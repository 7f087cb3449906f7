"""Configuration of the optimizer, of adapters and of the critic. Light: torch is not imported."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.contract.config import Config


class ScheduleConfig(Config):
    """The learning rate over optimizer steps: linear warm-up, then constant, or a descent to `final_ratio`."""

    type: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps from 0 to the full rate."""
    decay_steps: int = Field(default=1000, gt=0)
    """Optimizer steps, after the warm-up, in which `linear` and `cosine` come down; then the rate stays there."""
    final_ratio: float = Field(default=0.0, ge=0, le=1)
    """Part of the full rate that is left at the end of the descent."""


class OptimizerConfig(Config):
    """AdamW (arXiv:1711.05101)."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Full learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the moment estimates."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients of a greater norm are scaled down to it."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over the steps."""


class LoraConfig(Config):
    """Low-rank adapters (arXiv:2106.09685): only they are trained, the starting policy stays as it is."""

    rank: int = Field(default=16, gt=0, le=512)
    """Rank r of the change of each weight."""
    alpha: float = Field(default=32, gt=0)
    """The change is scaled by alpha / r."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which layers, by the ends of their names; `all-linear` takes all but the output head."""


class PolicyStart(Config):
    """The starting policy's body with a head of zeros."""

    type: Literal["policy"] = "policy"


class FolderStart(Config):
    """A model of its own."""

    type: Literal["folder"]
    path: Path
    """Hugging Face folder: a critic that a run left (`update/critic`), or a language model, which is given a head of
    zeros. Its token ids must be the policy's."""


CriticStart = Annotated[PolicyStart | FolderStart, Field(discriminator="type")]


class CriticConfig(Config):
    """The critic of `advantage.type: gae`; it is trained on the same rows and in the same steps as the policy."""

    start: CriticStart = PolicyStart()
    """What it is at first."""
    clip: float | None = Field(default=None, gt=0)
    """Change of a value, in units of the reward, beyond which its loss is clipped; null does not clip."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    """Its own optimizer."""
