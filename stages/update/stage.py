"""The stage `update`: rollouts, scores, advantages, policy and optimizer k-1 → those of k, and steps.parquet."""

from collections.abc import Sequence

from stages.contract import tables
from stages.contract.columns import ADVANTAGES, ROLLOUTS, SCORES, STEPS
from stages.contract.metrics import Meter
from stages.contract.seeds import derive
from stages.contract.weights import read_tensors, write_tensors
from stages.contract.workspace import Job, open_stage
from stages.model.load import load_model, save_policy
from stages.model.logprobs import check_head
from stages.model.optim import Optimizer
from stages.update.batch import training_rows
from stages.update.config import UpdateConfig
from stages.update.loop import mismatch, old_logprobs, train

OPTIMIZER = "optimizer.safetensors"


def run(job: Job, config: UpdateConfig) -> None:
    """Trains policy k-1 on the rollouts of iteration k; with nothing to train on, policy k is policy k-1."""
    k, paths = job.iteration, job.paths
    with open_stage(job, "update", "update", config.model_dump(mode="json")) as desk:
        rows = training_rows(
            desk.read(paths.stage(k, "sample") / "rollouts.parquet", ROLLOUTS),
            desk.read(paths.stage(k, "score") / "scores.parquet", SCORES),
            desk.read(paths.stage(k, "advantage") / "advantages.parquet", ADVANTAGES),
            with_reference=config.kl.coefficient > 0,
        )
        with desk.timed("load"):
            parent = paths.policy(k - 1)
            desk.notes["parent_digest"] = desk.take_folder(parent)
            model = load_model(parent, job.device)
            check_head(model)
            optimizer = Optimizer(model, config.optimizer)
            if k > 1:
                optimizer.restore(read_tensors(desk.take(paths.stage(k - 1, "update") / OPTIMIZER)))
        old = [row.sampler_T for row in rows]
        if rows and config.old_logprobs == "recompute":
            with desk.timed("old_logprobs"):
                old = old_logprobs(model, rows, config.micro_batch_tokens, job.device)
            desk.metrics |= mismatch(old, rows)
        with desk.timed("train"):
            seed = derive(job.seed, "update", k)
            steps = train(model, optimizer, rows, old, config, seed, job.device, job.progress)
        with desk.timed("save"):
            save_policy(model, desk.folder / "policy", parent)
            write_tensors(desk.folder / OPTIMIZER, optimizer.state())
        names = sorted({name for step in steps for name in step} | {field.name for field in STEPS.fields})
        columns = {name: [step.get(name) for step in steps] for name in names}
        desk.write("steps.parquet", tables.frame(STEPS, columns), STEPS)
        desk.metrics |= summary(steps)


def summary(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """The figures of an iteration: means weighted by tokens, extremes, and the last learning rate."""
    meter = Meter()
    for step in steps:
        for name in ("kl", "entropy", "clip_fraction_low", "clip_fraction_high", "ratio_mean"):
            if name in step:
                meter.mean(name, step[name] * step["tokens"], step["tokens"])
        for name in ("loss", "gradient_norm"):
            meter.mean(name, step[name], 1)
        meter.min("ratio_min", step["ratio_min"])
        meter.max("ratio_max", step["ratio_max"])
    out = meter.result() | {"optimizer_steps": float(len(steps))}
    return out | {"learning_rate": steps[-1]["learning_rate"]} if steps else out
