"""The stage `sample`: prompts, policy k-1 → rollouts.parquet."""

from stages.contract.columns import PROMPTS, ROLLOUTS
from stages.contract.seeds import derive
from stages.contract.workspace import Job, open_stage
from stages.sample.collect import collect
from stages.sample.config import SampleConfig
from stages.sample.draw import prompt_indices
from stages.sample.engine import Engine


def run(job: Job, config: SampleConfig, engine: Engine) -> None:
    """Draws iteration k's prompts and answers each `group_size` times with the policy of iteration k-1."""
    k = job.iteration
    with open_stage(job, "sample", "sample", config.model_dump(mode="json")) as desk:
        table = desk.read(job.paths.stage(0, "prompts") / "train.parquet", PROMPTS)
        prompts = table[prompt_indices(table.height, config.prompts, job.seed, k)]
        rollouts = collect(
            desk,
            prompts,
            job.paths.policy(k - 1),
            engine,
            config,
            config.group_size,
            lambda prompt_id, i: derive(job.seed, "sample", k, prompt_id, i),
            job.progress,
        )
        desk.write("rollouts.parquet", rollouts, ROLLOUTS)
        lengths = rollouts["completion_tokens"].list.len()
        desk.notes["engine"] = config.engine.type
        desk.metrics |= {
            "completions": rollouts.height,
            "completion_tokens": int(lengths.sum()),
            "mean_length": float(lengths.cast(float).sum() / rollouts.height),
            "truncated": float((rollouts["finish_reason"] == "length").sum() / rollouts.height),
        }
