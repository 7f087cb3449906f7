"""The stage `update`: rollouts, scores, advantages, policy and optimizer k-1 → those of k, and steps.parquet."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from stages.contract import tables
from stages.contract.columns import ADVANTAGES, ROLLOUTS, SCORES, STEPS
from stages.contract.errors import ConfigError
from stages.contract.metrics import Meter
from stages.contract.seeds import derive
from stages.contract.weights import read_tensors, write_tensors
from stages.contract.workspace import Job, open_stage
from stages.model.adapter import add_adapter, is_adapted, take_policy
from stages.model.load import load_model, save_policy
from stages.model.logprobs import check_head
from stages.model.optim import Optimizer
from stages.update.batch import group_counts, training_rows
from stages.update.config import GpgLoss, UpdateConfig
from stages.update.loop import train, with_old_policy
from stages.update.loss.gpg import gpg_factor

OPTIMIZER = "optimizer.safetensors"


def run(job: Job, config: UpdateConfig) -> None:
    """Trains policy k-1 on the rollouts of iteration k; with nothing to train on, policy k is policy k-1."""
    k, paths = job.iteration, job.paths
    with open_stage(job, "update", "update", config.model_dump(mode="json")) as desk:
        rollouts = desk.read(paths.stage(k, "sample") / "rollouts.parquet", ROLLOUTS)
        scores = desk.read(paths.stage(k, "score") / "scores.parquet", SCORES)
        advantages = desk.read(paths.stage(k, "advantage") / "advantages.parquet", ADVANTAGES)
        rows = training_rows(rollouts, scores, advantages, with_reference=config.kl.coefficient > 0)
        with desk.timed("load"):
            parent = paths.policy(k - 1)
            desk.notes["parent_digest"] = take_policy(desk, parent)
            model = load_model(parent, job.device)
            adapt(model, config, derive(job.seed, "lora"))
            check_head(model)
            optimizer = Optimizer(model, config.optimizer)
            if k > 1:
                optimizer.restore(read_tensors(desk.take(paths.stage(k - 1, "update") / OPTIMIZER)))
        if config.old_logprobs == "sampler":
            rows = [replace(row, old_T=row.sampler_T) for row in rows]
        else:
            with desk.timed("old_logprobs"):
                rows = with_old_policy(model, rows, config.micro_batch_tokens, job.device)
        factor = gpg_factor(*group_counts(rollouts, advantages)) if isinstance(config.loss, GpgLoss) else 1.0
        with desk.timed("train"):
            seed = derive(job.seed, "update", k)
            steps = train(model, optimizer, rows, config, seed, job.device, job.progress, factor)
        with desk.timed("save"):
            base = Path(os.path.relpath(paths.policy(0), paths.policy(k)))
            save_policy(model, desk.folder / "policy", parent, base)
            write_tensors(desk.folder / OPTIMIZER, optimizer.state())
        names = sorted({name for step in steps for name in step} | {field.name for field in STEPS.fields})
        columns = {name: [step.get(name) for step in steps] for name in names}
        desk.write("steps.parquet", tables.frame(STEPS, columns), STEPS)
        desk.metrics |= summary(steps)


def adapt(model: PreTrainedModel, config: UpdateConfig, seed: int) -> None:
    """Adds the first adapter where one is to be trained.

    Raises:
        ConfigError: the policy has an adapter already, and the configuration knows of none.
    """
    if config.lora is None and is_adapted(model):
        raise ConfigError("update.lora is null, but the policy is an adapter; `grpo export` merges it with its base")
    if config.lora is not None and not is_adapted(model):
        add_adapter(model, config.lora, seed)


def summary(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """The figures of an iteration: extremes, the last learning rate, and of the others the means.

    Means are weighted by tokens, but for those of the steps themselves (losses, gradient norms).
    """
    meter = Meter()
    for step in steps:
        for name in sorted(step.keys() - {field.name for field in STEPS.fields}):
            if name.endswith("_max"):
                meter.max(name, step[name])
            elif name.endswith("_min"):
                meter.min(name, step[name])
            elif not name.endswith("_loss"):
                meter.mean(name, step[name] * step["tokens"], step["tokens"])
        for name in ("loss", "gradient_norm"):
            meter.mean(name, step[name], 1)
    out = meter.result() | {"optimizer_steps": float(len(steps))}
    return out | {"learning_rate": steps[-1]["learning_rate"]} if steps else out
