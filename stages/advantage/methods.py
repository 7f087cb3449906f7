"""From a batch to advantages: calls the method that the configuration names. Pure.

Dimensions: N rows, M tokens of all rows in row order, S judged steps of all rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from stages.advantage import gae, grpo, process, reinforce, reinforce_plus_plus, rloo
from stages.advantage.batch import Batch
from stages.advantage.config import (
    AdvantageConfig,
    Gae,
    Grpo,
    KlReward,
    Process,
    Reinforce,
    ReinforcePlusPlus,
    Rloo,
    kl_of,
)
from stages.advantage.groups import Bools, Floats, Groups, group_statistics
from stages.advantage.ragged import row_sums, starts
from stages.advantage.rewards import kl_penalty, rest, token_rewards
from stages.contract.errors import ConfigError
from stages.model.kl_controller import next_coefficient

BASELINE, COEFFICIENT, KL = "baseline", "kl_coefficient", "kl_in_reward"
"""Names of what an iteration hands on, and of the figure that moves the coefficient."""


@dataclass(frozen=True)
class Estimate:
    """What a method gives."""

    advantages_M: NDArray[np.floating[Any]]
    returns_M: Floats | None = None
    """What the critic is to foretell; None for methods without a critic."""
    state: dict[str, float] = field(default_factory=dict)
    """What the next iteration starts from, by name."""
    figures: dict[str, float] = field(default_factory=dict)


def current(config: AdvantageConfig, former: Mapping[str, float]) -> AdvantageConfig:
    """The configuration with the KL coefficient that the iteration before handed on."""
    if kl_of(config).adaptive is None or COEFFICIENT not in former:
        return config
    return config.model_copy(update={"kl": kl_of(config).model_copy(update={"coefficient": former[COEFFICIENT]})})


def group_view(batch: Batch, config: AdvantageConfig) -> Groups:
    """The statistics of each row's group; `constant_N` says where the method has nothing to compare."""
    groups = group_statistics(batch.reward_N, batch.group_N, config.ddof if isinstance(config, Grpo | Process) else 1)
    match config:
        case Grpo(rewards="normalise_then_sum"):
            parts = [np.where(np.isnan(batch.reward_N), np.nan, values_N) for _, values_N in batch.parts.values()]
            useful = [group_statistics(values_N, batch.group_N, 0).useful_N for values_N in parts]
            return replace(groups, constant_N=~np.any(useful, axis=0) if useful else groups.constant_N)
        case Rloo() if config.kl.coefficient > 0:
            shaped_N = _less_penalty(batch, _penalty(batch, config.kl))
            return replace(groups, constant_N=group_statistics(shaped_N, batch.group_N, 1).constant_N)
        case Process():
            useful_N = group_statistics(_rest(batch), batch.group_N, 0).useful_N
            _, steps = _steps(batch, config.ddof)
            useful_P = np.bincount(batch.group_N[batch.step_row_S], weights=steps.useful_N, minlength=_size(batch)) > 0
            return replace(groups, constant_N=~(useful_N | useful_P[batch.group_N]))
        case _:
            return groups


def estimate(batch: Batch, train_N: Bools, config: AdvantageConfig, former: Mapping[str, float]) -> Estimate:
    """Advantages of every token; 0 for rows without a reward.

    Args:
        batch: the rows.
        train_N: rows that are trained on: those over whose tokens a method whitens.
        config: the method.
        former: what the iteration before handed on.
    """
    result = _estimate(batch, train_N, config, former)
    if (kl := kl_of(config)).adaptive is not None:
        result.state[COEFFICIENT] = next_coefficient(kl, result.figures.get(KL))
    scored_N = ~np.isnan(batch.reward_N)
    if not scored_N.all():
        result.advantages_M[batch.tokens(~scored_N)] = 0.0
    return result


def _estimate(batch: Batch, train_N: Bools, config: AdvantageConfig, former: Mapping[str, float]) -> Estimate:
    if isinstance(config, Grpo | Process):
        return Estimate(_within_groups(batch, config))
    counted_M = batch.tokens(train_N)
    match config:
        case Rloo():
            penalty_M = _penalty(batch, config.kl)
            shaped_N = _less_penalty(batch, penalty_M)
            row_N = rloo.advantages(shaped_N, group_statistics(shaped_N, batch.group_N, 1))
            return Estimate(_for_each_token(row_N, batch), figures=_kl_figures(penalty_M, counted_M, config.kl))
        case Reinforce():
            earned_M, figures = _earned(batch, batch.reward_N, counted_M, config.kl)
            scored_N = ~np.isnan(batch.reward_N) & (batch.length_N > 0)
            baseline = former.get(BASELINE)
            values_M, after = reinforce.advantages(earned_M, batch.length_N, scored_N, config, baseline)
            return Estimate(values_M, state={} if after is None else {BASELINE: after}, figures=figures)
        case ReinforcePlusPlus():
            rewards_N = batch.reward_N
            if config.baseline == "group":
                rewards_N = reinforce_plus_plus.centred(rewards_N, group_statistics(rewards_N, batch.group_N, 1))
            earned_M, figures = _earned(batch, rewards_N, counted_M, config.kl)
            return Estimate(
                reinforce_plus_plus.advantages(earned_M, batch.length_N, counted_M, config), figures=figures
            )
        case Gae():
            if batch.values_M is None:
                raise ConfigError("advantage.type gae needs a critic's values in the scores, which hold none")
            earned_M, figures = _earned(batch, batch.reward_N, counted_M, config.kl)
            values_M, returns_M = gae.advantages(earned_M, batch.values_M, batch.length_N, counted_M, config)
            return Estimate(values_M, returns_M, figures=figures)
        case _:
            assert_never(config)


def _within_groups(batch: Batch, config: Grpo | Process) -> NDArray[np.floating[Any]]:
    if isinstance(config, Process):
        rewards_S, steps = _steps(batch, config.ddof)
        rest_N = _rest(batch)
        outcome = group_statistics(rest_N, batch.group_N, config.ddof)
        return process.advantages(
            process.normalised(rewards_S, steps, config.eps),
            batch.step_row_S,
            batch.step_end_S,
            process.normalised(rest_N, outcome, config.eps),
            batch.length_N,
        )
    if config.rewards == "normalise_then_sum":
        row_N = grpo.decoupled(list(batch.parts.values()), batch.reward_N, batch.group_N, config)
    else:
        row_N = grpo.relative(batch.reward_N, batch.group_N, config)
    return _for_each_token(row_N, batch)


def _for_each_token(row_N: Floats, batch: Batch) -> NDArray[np.float32]:
    return np.repeat(row_N.astype(np.float32), batch.length_N)


def _earned(batch: Batch, rewards_N: Floats, counted_M: Bools, kl: KlReward) -> tuple[Floats, dict[str, float]]:
    earned_M, penalty_M = token_rewards(rewards_N, batch.earned_M, batch.length_N), _penalty(batch, kl)
    return earned_M if penalty_M is None else earned_M + penalty_M, _kl_figures(penalty_M, counted_M, kl)


def _less_penalty(batch: Batch, penalty_M: Floats | None) -> Floats:
    """The rows' rewards with the penalties of their tokens."""
    return batch.reward_N if penalty_M is None else batch.reward_N + row_sums(penalty_M, batch.length_N)


def _penalty(batch: Batch, kl: KlReward) -> Floats | None:
    """-β KL of each token; None where β is 0."""
    if kl.coefficient == 0:
        return None
    if batch.sampler_M is None or batch.reference_M is None:
        raise ConfigError(
            "advantage.kl.coefficient is above 0, but the scores hold no reference_logprobs: set score.reference"
        )
    return kl_penalty(batch.sampler_M, batch.reference_M, kl)


def _kl_figures(penalty_M: Floats | None, counted_M: Bools, kl: KlReward) -> dict[str, float]:
    if penalty_M is None or not counted_M.any():
        return {}
    return {KL: float(-penalty_M[counted_M].mean() / kl.coefficient)}


def _rest(batch: Batch) -> Floats:
    """The part of each row's reward that no step earned; NaN without a reward."""
    return np.where(np.isnan(batch.reward_N), np.nan, rest(batch.reward_N, batch.earned_M, batch.length_N))


def _steps(batch: Batch, ddof: int) -> tuple[Floats, Groups]:
    """The reward of each step, NaN in a row without a reward, and the statistics of all steps of its group."""
    if batch.earned_M is None:
        raise ConfigError(
            "advantage.type process needs rewards of steps: put a reward that judges steps, such as `equations`, into "
            "score.rewards"
        )
    rewards_S = batch.earned_M[starts(batch.length_N)[batch.step_row_S] + batch.step_end_S]
    rewards_S = np.where(np.isnan(batch.reward_N)[batch.step_row_S], np.nan, rewards_S)
    return rewards_S, group_statistics(rewards_S, batch.group_N[batch.step_row_S], ddof)


def _size(batch: Batch) -> int:
    return int(batch.group_N.max(initial=-1)) + 1
