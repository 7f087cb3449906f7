"""The policy loss of each token by its configured type."""

from dataclasses import dataclass
from typing import assert_never

from torch import Tensor

from stages.update.config import (
    CispoLoss,
    ClippedLoss,
    DppoLoss,
    GmpoLoss,
    GpgLoss,
    Loss,
    PolicyGradientLoss,
    SapoLoss,
)
from stages.update.loss.cispo import cispo
from stages.update.loss.clipped import clip_fractions, clipped
from stages.update.loss.dppo import dppo, dppo_masks
from stages.update.loss.gmpo import gmpo
from stages.update.loss.policy_gradient import policy_gradient
from stages.update.loss.ratio import importance_ratio
from stages.update.loss.sapo import sapo


@dataclass(frozen=True)
class Surrogate:
    """The policy loss before aggregation."""

    loss_N: Tensor
    ratio_N: Tensor
    """The ratio that the loss looks at."""
    bounded: dict[str, Tensor]
    """Names and booleans [N]: the tokens whose ratio the loss clips, caps or masks."""


def surrogate(config: Loss, logprobs_N: Tensor, old_N: Tensor, advantages_N: Tensor, lengths_R: Tensor) -> Surrogate:
    """The loss of each token.

    Args:
        config: which loss.
        logprobs_N: log-probabilities of the policy (nats), with gradient.
        old_N: log-probabilities of the old policy.
        advantages_N: advantage of each token.
        lengths_R: completion tokens of each row.
    """
    level = config.ratio if isinstance(config, ClippedLoss | CispoLoss | SapoLoss) else "token"
    ratio_N = importance_ratio(logprobs_N, old_N, lengths_R, level)
    match config:
        case ClippedLoss(epsilon_low=low, epsilon_high=high, dual_clip=dual, delta=delta):
            low_N, high_N = clip_fractions(ratio_N, advantages_N, low, high)
            bounded = {"low": low_N, "high": high_N}
            if (bound := dual or delta) is not None:
                bounded["dual"] = (ratio_N > bound) & (advantages_N < 0)
            return Surrogate(clipped(ratio_N, advantages_N, low, high, dual, delta), ratio_N, bounded)
        case PolicyGradientLoss() | GpgLoss():
            return Surrogate(policy_gradient(logprobs_N, advantages_N), ratio_N, {})
        case CispoLoss():
            least, cap = config.bounds()
            bounded = {"high": ratio_N > cap}
            if least is not None:
                bounded["low"] = ratio_N < least
            return Surrogate(cispo(ratio_N, logprobs_N, advantages_N, least, cap), ratio_N, bounded)
        case SapoLoss(temperature_positive=positive, temperature_negative=negative):
            return Surrogate(sapo(ratio_N, advantages_N, positive, negative), ratio_N, {})
        case GmpoLoss(epsilon_low=low, epsilon_high=high):
            loss_N = gmpo(logprobs_N, old_N, advantages_N, lengths_R, low, high)
            log_ratio_N = logprobs_N.detach() - old_N
            bounded = {
                "low": (log_ratio_N < -low) & (advantages_N < 0),
                "high": (log_ratio_N > high) & (advantages_N > 0),
            }
            return Surrogate(loss_N, ratio_N, bounded)
        case DppoLoss(threshold=threshold):
            low_N, high_N = dppo_masks(logprobs_N, old_N, advantages_N, threshold)
            return Surrogate(dppo(ratio_N, advantages_N, low_N, high_N), ratio_N, {"low": low_N, "high": high_N})
        case _:
            assert_never(config)
