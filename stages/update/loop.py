"""Optimizer steps over an iteration's rows.

Dimensions: N completion tokens of a micro-batch, M of some of its rows, T of one row, H hidden size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.contract.errors import DivergenceError
from stages.contract.metrics import Meter
from stages.contract.progress import Progress
from stages.model.critic import token_values
from stages.model.logprobs import chunk_tokens, head_logprobs, token_logprobs, token_states
from stages.model.optim import Optimizer
from stages.update.batch import (
    TrainingRow,
    kept_tokens,
    optimizer_batches,
    row_batches,
    row_runs,
    rows_told,
)
from stages.update.config import UpdateConfig
from stages.update.objective import LossInputs, derived, loss_of
from stages.update.value import CriticTrainer, accumulate_values

PROBED = 4
"""Rows, and tokens of prompt and completion of each, on which the policy is tried after the last step."""


def without_old_policy(rows: int, config: UpdateConfig, seed: int) -> frozenset[int]:
    """Numbers of the rows that need no pass of the old policy: the first optimizer step is taken from it, and its own
    forward pass tells their log-probabilities. All need one where entropies choose the tokens of that step."""
    if config.entropy.top < 1:
        return frozenset()
    return frozenset(next(optimizer_batches(rows, config.epochs, config.minibatches, seed), (0, 0, []))[2])


@torch.no_grad()
def with_old_policy(
    model: PreTrainedModel, rows: Sequence[TrainingRow], budget: int, device: str, spared: frozenset[int] = frozenset()
) -> list[TrainingRow]:
    """The rows with the log-probabilities and entropies [T] that the trainer's own model gives before it is changed.

    Those whose numbers are `spared` stay as they are.
    """
    out = list(rows)
    asked = [i for i in range(len(rows)) if i not in spared]
    for places, batch in row_batches(model, [rows[i] for i in asked], budget, device):
        part = [asked[place] for place in places]
        lengths = [len(rows[i].completion) for i in part]
        logprobs_N, entropy_N = token_logprobs(model, batch)
        parts = zip(part, logprobs_N.cpu().split(lengths), entropy_N.cpu().split(lengths), strict=True)
        for i, logprobs_T, entropy_T in parts:
            out[i] = replace(rows[i], old_T=logprobs_T, entropy_T=entropy_T)
    return out


def train(
    model: PreTrainedModel,
    optimizer: Optimizer,
    rows: Sequence[TrainingRow],
    config: UpdateConfig,
    seed: int,
    device: str,
    progress: Progress,
    factor: float = 1.0,
    critic: CriticTrainer | None = None,
    leave_out: Callable[[str], None] | None = None,
) -> list[dict[str, float]]:
    """Takes the optimizer steps of an iteration; returns the figures of each.

    A batch whose loss or gradient is not finite changes neither weights nor optimizer state.

    Args:
        model: the policy.
        optimizer: its optimizer.
        rows: what is trained on, with the old policy's log-probabilities; those of the first optimizer step
            (`without_old_policy`) may lack them.
        config: the objective.
        seed: of the order of rows.
        device: where the model is.
        progress: told of each step.
        factor: of the policy loss (GPG).
        critic: trained in the same steps; None without one.
        leave_out: told of each batch that is not finite, which is then left out; None stops at it.

    Raises:
        DivergenceError: a loss or gradient is not finite, the rows are named; or a step made weights so, or useless.
    """
    steps: list[dict[str, float]] = []
    rows = list(rows)
    for epoch, minibatch, numbers in optimizer_batches(len(rows), config.epochs, config.minibatches, seed):
        meter = Meter()
        chosen = [rows[i] for i in numbers]
        for i, row in zip(numbers, accumulate(model, chosen, config, device, meter, factor), strict=True):
            rows[i] = row
        if critic is not None:
            accumulate_values(critic, chosen, config.micro_batch_tokens, device, meter)
        figures = derived(meter.result())
        try:
            _check_finite(figures, optimizer.steps + 1)
            norms = [trained.clip() for trained in (optimizer, critic and critic.optimizer) if trained]
        except DivergenceError as error:
            told = f"{error}; {rows_told(chosen)}"
            if leave_out is None:
                raise DivergenceError(told) from error
            leave_out(told)
            optimizer.clear()
            if critic is not None:
                critic.optimizer.clear()
            continue
        figures |= optimizer.step(norms[0])
        if critic is not None:
            figures |= {f"critic_{name}": value for name, value in critic.optimizer.step(norms[1]).items()}
        figures |= {
            "step": optimizer.steps,
            "epoch": epoch,
            "minibatch": minibatch,
            "rows": len(chosen),
            "tokens": sum(len(row.completion) for row in chosen),
        }
        steps.append(figures)
        progress(len(steps), config.epochs * config.minibatches)
    if steps:
        _check_useful(model, rows, config, device, steps[-1], critic)
    return steps


@torch.no_grad()
def _check_useful(
    model: PreTrainedModel,
    rows: Sequence[TrainingRow],
    config: UpdateConfig,
    device: str,
    last: dict[str, float],
    critic: CriticTrainer | None,
) -> None:
    """Refuses finite weights that give no finite numbers any more, by a pass over the beginning of each of a few rows.

    Those of all steps but the last one were told by the next step's loss.
    """
    short = [replace(row, prompt=row.prompt[:PROBED], completion=row.completion[:PROBED]) for row in rows[:PROBED]]
    alone = [batch for _, batch in row_batches(model, short, 1, device)]
    given = [("policy's log-probabilities", "learning_rate", [token_logprobs(model, batch)[0] for batch in alone])]
    if critic is not None:
        values = [token_values(critic.model, batch) for batch in alone]
        given.append(("critic's values", "critic_learning_rate", values))
    for name, rate, told in given:
        if not all(bool(values_N.isfinite().all()) for values_N in told):
            raise DivergenceError(
                f"optimizer step {last['step']}: at a learning rate of {last[rate]:g} the weights stay finite, but the "
                f"{name} do not: lower it"
            )


def _check_finite(figures: dict[str, float], step: int) -> None:
    for name in ("loss", "value_loss"):
        if not math.isfinite(figures.get(name, 0.0)):
            raise DivergenceError(f"optimizer step {step}: the {name.replace('_', ' ')} is {figures[name]}")


def accumulate(
    model: PreTrainedModel,
    rows: Sequence[TrainingRow],
    config: UpdateConfig,
    device: str,
    meter: Meter,
    factor: float = 1.0,
) -> list[TrainingRow]:
    """Adds the gradient of the loss of one optimizer batch to the parameters', micro-batch by micro-batch.

    The body runs once a micro-batch, the head and the loss over as many of its rows as their logits allow. Rows without
    the old policy's log-probabilities are taken to be before their first step: the model is the old policy.

    Returns:
        The rows, each with the old policy's log-probabilities.
    """
    tokens = sum(len(row.completion) for row in rows)
    if config.entropy.top < 1:
        kept = kept_tokens([_there(row.entropy_T) for row in rows], config.entropy.top)
        rows = [replace(row, kept_T=kept_T) for row, kept_T in zip(rows, kept, strict=True)]
    bonus = config.entropy.bonus > 0
    out = list(rows)
    for part, batch in row_batches(model, rows, config.micro_batch_tokens, device):
        states_NH = token_states(model, batch)
        gradients = []
        for some, at in row_runs([len(rows[i].completion) for i in part], chunk_tokens(model)):
            states_MH = states_NH[at].detach().requires_grad_()
            given = (states_MH, batch.targets_N[at], batch.temperature_N[at])
            logprobs_M, entropy_M = head_logprobs(model, *given, entropy_gradient=bonus)
            meter.mean("entropy", float(entropy_M.detach().sum()), len(entropy_M))
            chosen = _with_old([rows[i] for i in part[some]], logprobs_M)
            inputs = _inputs(chosen, config, device)
            loss = loss_of(logprobs_M, inputs, config, len(rows), tokens, meter, entropy_M if bonus else None, factor)
            torch.autograd.backward(loss)
            gradients.append(_there(states_MH.grad))
            for i, row in zip(part[some], chosen, strict=True):
                out[i] = row
        torch.autograd.backward(states_NH, torch.cat(gradients))
    return out


def _with_old(rows: list[TrainingRow], logprobs_M: Tensor) -> list[TrainingRow]:
    """The rows with the old policy's log-probabilities; where they lack, they are the policy's own."""
    own = logprobs_M.detach().cpu().split([len(row.completion) for row in rows])
    return [row if row.old_T is not None else replace(row, old_T=old_T) for row, old_T in zip(rows, own, strict=True)]


def _inputs(rows: Sequence[TrainingRow], config: UpdateConfig, device: str) -> LossInputs:
    def joined(parts: list[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.cat(there).to(device) if there else None

    recomputed = config.old_logprobs == "recompute"
    return LossInputs(
        old_N=_there(joined([row.old_T for row in rows])),
        advantages_N=_there(joined([row.advantages_T for row in rows])),
        reference_N=joined([row.reference_T for row in rows]),
        lengths_R=torch.tensor([len(row.completion) for row in rows], device=device),
        sampler_N=joined([row.sampler_T for row in rows]) if recomputed else None,
        kept_N=joined([row.kept_T for row in rows]),
    )


def _there(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
