"""The stage `update`: rollouts, scores, advantages, models and optimizers k-1 → those of k, and steps.parquet."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from stages.contract import tables
from stages.contract.columns import ADVANTAGES, ROLLOUTS, SCORES, STEPS
from stages.contract.config import deciding
from stages.contract.errors import ConfigError, DivergenceError
from stages.contract.manifest import read_manifest
from stages.contract.metrics import Meter
from stages.contract.policy import adapter_digest, take_policy
from stages.contract.seeds import derive
from stages.contract.weights import Serialised, read_ahead, read_tensors, write_tensors
from stages.contract.workspace import Job, Workspace, open_stage
from stages.model import policy_cache
from stages.model.adapter import add_adapter, check_adapter, is_adapted
from stages.model.config import CriticConfig, OptimizerConfig
from stages.model.critic import former_critic, save_critic
from stages.model.kl_controller import next_coefficient
from stages.model.load import load_model, save_policy
from stages.model.logprobs import check_head
from stages.model.optim import Optimizer
from stages.update.batch import TrainingRow, group_counts, training_rows
from stages.update.config import GpgLoss, KlConfig, UpdateConfig
from stages.update.ema import move_towards
from stages.update.loop import train, with_old_policy, without_old_policy
from stages.update.loss.gpg import gpg_factor
from stages.update.value import CriticTrainer

REMEDY = (
    "Policy and optimizer stay as they were; lower update.optimizer.learning_rate, or set update.on_nonfinite to "
    "{choices}: in this iteration alone by `grpo stage update {run} --iteration {k} --set …`, from here on "
    "by `grpo fork {run} --at {before} --name … --set …`"
)
OPTIMIZER, CRITIC_OPTIMIZER, KL = "optimizer.safetensors", "critic_optimizer.safetensors", "kl.safetensors"


def run(job: Job, config: UpdateConfig, critic: CriticConfig | None = None) -> None:
    """Trains policy k-1, and the critic where there is one, on the rollouts of iteration k.

    With nothing to train on, policy k is policy k-1.
    """
    k, paths = job.iteration, job.paths
    section = deciding(config) | ({"critic": deciding(critic)} if critic else {})
    with open_stage(job, "update", "update", section) as desk:
        rollouts = desk.read(paths.stage(k, "sample") / "rollouts.parquet", ROLLOUTS)
        scores = desk.read(paths.stage(k, "score") / "scores.parquet", SCORES)
        advantages = desk.read(paths.stage(k, "advantage") / "advantages.parquet", ADVANTAGES)
        rows = training_rows(
            rollouts, scores, advantages, with_reference=config.kl.coefficient > 0, with_returns=critic is not None
        )
        with desk.timed("load"):
            trained = _former(job, desk, config, critic)
            config = config.model_copy(update={"kl": _current(job, desk, config.kl)})
        if config.old_logprobs == "sampler":
            rows = [replace(row, old_T=row.sampler_T) for row in rows]
        else:
            with desk.timed("old_logprobs"):
                spared = without_old_policy(len(rows), config, _order(job))
                rows = with_old_policy(trained.model, rows, config.micro_batch_tokens, job.device, spared)
        factor = gpg_factor(*group_counts(rollouts, advantages)) if isinstance(config.loss, GpgLoss) else 1.0
        with desk.timed("train"):
            steps = _steps(job, desk, trained, rows, config, factor)
            if rolled_back := steps is None:
                del trained  # first, so that memory never holds both
                trained = _former(job, desk, config, critic)
        model, trainee, steps = trained.model, trained.trainee, steps or []
        desk.metrics |= summary(steps)
        with desk.timed("save"):
            parent = paths.policy(k - 1)
            base = Path(os.path.relpath(paths.policy(0), paths.policy(k)))
            save_policy(model, desk.folder / "policy", parent, base)
            desk.write_later(OPTIMIZER, Serialised(trained.optimizer.state()))
            if trainee is not None:
                save_critic(trainee.model, desk.folder / "critic")
                desk.write_later(CRITIC_OPTIMIZER, Serialised(trainee.optimizer.state()))
            if config.average is not None:
                _save_average(job, desk, None if rolled_back else model, config.average.decay)
            if config.kl.adaptive is not None:
                _save_next(desk, config.kl)
        names = sorted({name for step in steps for name in step} | {field.name for field in STEPS.fields})
        columns = {name: [step.get(name) for step in steps] for name in names}
        desk.write("steps.parquet", tables.frame(STEPS, columns), STEPS)
    if job.device == "cpu" and not is_adapted(model):  # a GPU's memory is the sampler's until the next update
        _hold(job, model)


@dataclass(frozen=True)
class Trained:
    """The models in training, with their optimizers."""

    model: PreTrainedModel
    optimizer: Optimizer
    trainee: CriticTrainer | None


def _former(job: Job, desk: Workspace, config: UpdateConfig, critic: CriticConfig | None) -> Trained:
    """All as iteration k-1 left it."""
    parent = job.paths.policy(job.iteration - 1)
    desk.notes["parent_digest"] = digest = take_policy(desk, parent)
    model = policy_cache.take(digest, job.device) or load_model(parent, job.device)
    adapt(model, config, job.iteration, derive(job.seed, "lora"))
    check_head(model)
    optimizer = _optimizer(job, desk, model, config.optimizer, OPTIMIZER)
    return Trained(model, optimizer, _trainee(job, desk, critic) if critic else None)


def _hold(job: Job, model: PreTrainedModel) -> None:
    """Keeps in memory the policy that the next iteration begins with."""
    manifest = read_manifest(job.paths.stage(job.iteration, "update"))
    assert manifest is not None, "it was just written"
    policy_cache.hold(adapter_digest(manifest.outputs), model)


def _steps(
    job: Job, desk: Workspace, trained: Trained, rows: list[TrainingRow], config: UpdateConfig, factor: float
) -> list[dict[str, float]] | None:
    """Trains; the steps' figures, or None where what was not finite rolls the iteration back.

    Raises:
        DivergenceError: something is not finite, and the update is to stop.
    """
    seed, policy = _order(job), config.on_nonfinite
    left_out: list[str] = []
    leave_out = left_out.append if policy == "skip_step" else None
    model, optimizer, trainee = trained.model, trained.optimizer, trained.trainee
    try:
        steps = train(model, optimizer, rows, config, seed, job.device, job.progress, factor, trainee, leave_out)
    except DivergenceError as error:
        if policy != "rollback":
            k = job.iteration
            choices = "rollback" if policy == "skip_step" else "skip_step or rollback"
            remedy = REMEDY.format(run=job.paths.root.name, k=k, before=k - 1, choices=choices)
            raise DivergenceError(f"update of iteration {k}: {error}. {remedy}") from error
        desk.metrics["rolled_back"] = 1.0
        desk.notes["warnings"] = [f"rolled back: {error}"]
        return None
    if policy == "skip_step":
        desk.metrics["skipped_steps"] = float(len(left_out))
    if left_out:
        desk.notes["warnings"] = [f"left out: {told}" for told in left_out]
    return steps


def _order(job: Job) -> int:
    """The seed of the order of rows."""
    return derive(job.seed, "update", job.iteration)


def adapt(model: PreTrainedModel, config: UpdateConfig, k: int, seed: int) -> None:
    """Adds the adapter in iteration 1, where one is to be trained.

    Raises:
        ConfigError: the policy has an adapter and the configuration none, or the other way round, or another one.
    """
    if config.lora is None:
        if is_adapted(model):
            raise ConfigError("update.lora is null, but the policy is an adapter; a run keeps to what it began with")
    elif k == 1:
        add_adapter(model, config.lora, seed)
    elif is_adapted(model):
        check_adapter(model, config.lora)
    else:
        raise ConfigError(f"update.lora: policy {k - 1} is a whole model; a run trains an adapter from iteration 1 on")


def summary(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """The figures of an iteration: extremes, the last learning rate, and of the others the means.

    Means are weighted by tokens, but for the loss and gradient norm, which belong to a step.
    """
    meter = Meter()
    for step in steps:
        for name in sorted(step.keys() - {field.name for field in STEPS.fields}):
            if name.endswith("_max"):
                meter.max(name, step[name])
            elif name.endswith("_min"):
                meter.min(name, step[name])
            else:
                meter.mean(name, step[name] * step["tokens"], step["tokens"])
        for name in ("loss", "gradient_norm"):
            meter.mean(name, step[name], 1)
    out = meter.result() | {"optimizer_steps": float(len(steps))}
    return out | {"learning_rate": steps[-1]["learning_rate"]} if steps else out


def _optimizer(job: Job, desk: Workspace, model: PreTrainedModel, config: OptimizerConfig, name: str) -> Optimizer:
    """A model's optimizer, which goes on where the iteration before left it."""
    optimizer = Optimizer(model, config)
    if job.iteration > 1:
        path = desk.take(job.paths.stage(job.iteration - 1, "update") / name)
        read_ahead(path)
        optimizer.restore(partial(read_tensors, path))
    return optimizer


def _trainee(job: Job, desk: Workspace, config: CriticConfig) -> CriticTrainer:
    critic = former_critic(desk, job.iteration, config.start, job.device)
    return CriticTrainer(critic, _optimizer(job, desk, critic, config.optimizer, CRITIC_OPTIMIZER), config.clip)


def _current(job: Job, desk: Workspace, config: KlConfig) -> KlConfig:
    """The configuration with β as it stands in this iteration: an adaptive one is what the iteration before left."""
    if config.adaptive is None or job.iteration == 1:
        return config
    left = read_tensors(desk.take(job.paths.stage(job.iteration - 1, "update") / KL))
    return config.model_copy(update={"coefficient": float(left["coefficient"])})


def _save_next(desk: Workspace, config: KlConfig) -> None:
    """Writes β for the next iteration; without a step it stays."""
    desk.metrics["kl_coefficient"] = config.coefficient
    coefficient = next_coefficient(config, desk.metrics.get("kl"))
    write_tensors(desk.folder / KL, {"coefficient": torch.tensor(coefficient, dtype=torch.float64)})


def _save_average(job: Job, desk: Workspace, model: PreTrainedModel | None, decay: float) -> None:
    """Writes the average of the policies up to this one; that of iteration 0 is its policy.

    Where the iteration was rolled back there is no such policy, and the average stays as it was.
    """
    k, paths = job.iteration, job.paths
    folder = paths.average(k - 1) if k > 1 else paths.policy(0)
    desk.take_folder(folder)
    average = load_model(folder, job.device)
    if model is not None:
        move_towards(average, model, decay)
    save_policy(average, desk.folder / "average", paths.policy(k - 1))
