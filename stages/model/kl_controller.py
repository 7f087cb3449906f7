"""The KL term, which one room places in the reward and another in the loss, and a coefficient that follows a target."""

import math
from typing import Self

from pydantic import Field, model_validator

from stages.contract.config import Config


class AdaptiveKl(Config):
    """A coefficient that follows a target (Ziegler et al. 2019): β (1 + gain · clip(KL / target - 1, -0.2, 0.2))."""

    target: float = Field(gt=0)
    """KL aimed at, nats a token: the mean of the estimate over the tokens of an iteration."""
    gain: float = Field(default=0.1, gt=0, lt=5)
    """How fast the coefficient follows, an iteration."""


class KlTerm(Config):
    """What a KL term has wherever it is placed."""

    coefficient: float = Field(default=0.0, ge=0)
    """β; above 0 it needs `score.reference`."""
    clamp: float | None = Field(default=None, gt=0)
    """Bound of a token's estimate (nats) on both sides, 10 in some frameworks; null sets none."""
    adaptive: AdaptiveKl | None = None
    """Changes β after each iteration; null keeps it."""

    @model_validator(mode="after")
    def _adapts_something(self) -> Self:
        if self.adaptive is not None and self.coefficient == 0:
            raise ValueError("adaptive multiplies the coefficient, which is 0: set it to the β to begin with")
        return self


def next_coefficient(term: KlTerm, kl: float | None) -> float:
    """β of the next iteration: β (1 + gain · clip(KL / target - 1, -0.2, 0.2)).

    Ziegler et al. 2019, arXiv:1909.08593, section 2.2, with gain 0.1.

    Args:
        term: this iteration's β, target and gain.
        kl: mean estimate over this iteration's tokens (nats a token); None, for no tokens, changes nothing, nor does
            one that is not finite.
    """
    if term.adaptive is None or kl is None or not math.isfinite(kl):
        return term.coefficient
    return term.coefficient * (1 + term.adaptive.gain * min(max(kl / term.adaptive.target - 1, -0.2), 0.2))
