"""Configuration of the advantage methods."""

from typing import Literal

from pydantic import Field

from stages.contract.config import Config


class Grpo(Config):
    """Group-relative advantages: `(r - mean) / (std + eps)`, or `r - mean`."""

    type: Literal["grpo"] = "grpo"
    scale: Literal["group", "none"] = "group"
    """`group` divides by the group's standard deviation (GRPO); `none` does not (Dr. GRPO)."""
    ddof: Literal[0, 1] = 1
    """Divisor of the variance is n - ddof: 1 as in TRL and verl, 0 for the population's."""
    eps: float = Field(default=1e-4, ge=0)
    """Added to the standard deviation."""


AdvantageConfig = Grpo
