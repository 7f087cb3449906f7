"""Configuration of evaluation, and of comparing two policies by it."""

from typing import Self

from pydantic import Field, model_validator

from stages.contract.config import Config


class EvaluateConfig(Config):
    """How a policy is measured on held-out prompts: drawn as `sample` draws, judged as `score` judges."""

    every: int = Field(default=1, gt=0)
    """Evaluates the policies of iterations 0, `every`, 2·`every`, …"""
    prompts: int = Field(default=256, gt=0)
    """Held-out prompts at most."""
    samples: int = Field(default=1, gt=0)
    """Completions a prompt (n)."""
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of sampling; 0 takes the most likely token."""
    k: tuple[int, ...] = (1,)
    """The k of pass@k; none above `samples`."""
    success: str | None = None
    """Name of the reward that says what a success is; null takes the first of `score.rewards`."""
    threshold: float = 1.0
    """A completion is a success where that reward is at least this."""

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if wrong := [k for k in self.k if not 1 <= k <= self.samples]:
            raise ValueError(f"pass@{wrong[0]} needs k from 1 to samples = {self.samples}")
        if len(set(self.k)) < len(self.k):
            raise ValueError(f"k names a number twice: {list(self.k)}")
        return self


class PromotionConfig(Config):
    """When a policy takes the place of the promoted one: where it is better beyond noise."""

    measure: str = Field(default="success", pattern=r"^(success|reward|pass_at_[1-9]\d*)$")
    """What is compared: `success`, `reward`, or `pass_at_K` for a K of `evaluate.k`; of each held-out prompt."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Confidence of the interval of the difference, from a paired bootstrap over the held-out prompts."""
    margin: float = Field(default=0.0, ge=0)
    """A new policy is promoted where the lower end of that interval is above this."""
    resamples: int = Field(default=10_000, ge=100)
    """Resamples of the bootstrap."""
