"""The stage `sample`: prompts, policy k-1 → rollouts.parquet."""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import torch

from stages.contract.columns import PROMPTS, ROLLOUTS, SCORES
from stages.contract.config import deciding
from stages.contract.errors import EngineError
from stages.contract.manifest import read_manifest
from stages.contract.seeds import derive
from stages.contract.workspace import Job, Workspace, open_stage
from stages.sample.collect import collect
from stages.sample.config import SampleConfig
from stages.sample.curriculum import keeps_level, reads
from stages.sample.dynamic import fill
from stages.sample.engine import Engine
from stages.sample.fidelity import fidelity, model_logprobs, spread
from stages.sample.prompt_selection import choose
from stages.sample.shards import Parts

LEVEL = "curriculum.json"
"""The level that an iteration had opened, where the next one goes by it."""


def run(
    job: Job,
    config: SampleConfig,
    engine: Engine,
    judge: Callable[[Workspace, pl.DataFrame], pl.Series] | None = None,
    section: dict[str, Any] | None = None,
) -> None:
    """Draws iteration k's prompts and answers each `group_size` times with the policy of iteration k-1.

    Args:
        job: run and iteration.
        config: this stage's configuration.
        engine: draws; is left at rest.
        judge: (desk, rollouts) → rewards, as the stage `score` gives them; needed for more than one round.
        section: all configuration that decides the output, for the manifest; None where that is `config` alone.
    """
    k = job.iteration
    parts = Parts(job.paths.parts(k, "sample"))
    with open_stage(job, "sample", "sample", section or deciding(config)) as desk:
        table, since = prompts_of(desk, k)
        first, more = chosen(desk, table, config, job, since)

        def draw(indices: Sequence[int], may_be_empty: bool = False) -> pl.DataFrame:
            return collect(
                desk,
                table[indices],
                job.paths.policy(k - 1),
                engine,
                config,
                config.group_size,
                lambda prompt_id, i: derive(job.seed, "sample", k, prompt_id, i),
                job.progress,
                parts if config.shards > 1 else None,
                may_be_empty,
            )

        if config.rounds == 1:
            rollouts = draw(first)
        else:
            assert judge is not None, "more than one round needs a judge"
            judged = functools.partial(judge, desk)
            filled = fill(draw(first), config.prompts, more, config.rounds, lambda some: draw(some, True), judged)
            rollouts = filled.rollouts
            desk.metrics |= {
                "rounds": filled.rounds,
                "groups": filled.groups,
                "useful_groups": filled.useful,
                "unfilled": float(config.prompts - filled.useful),
            }
        desk.notes |= engine.rest()
        desk.write("rollouts.parquet", rollouts, ROLLOUTS)
        lengths = rollouts["completion_tokens"].list.len()
        desk.metrics |= {
            "completions": rollouts.height,
            "completion_tokens": int(lengths.sum()),
            "mean_length": float(lengths.cast(float).sum() / rollouts.height),
            "truncated": float((rollouts["finish_reason"] == "length").sum() / rollouts.height),
        }
        if config.fidelity.completions != 0:
            with desk.timed("fidelity"):
                compare(desk, rollouts, config, engine, job.device)


def prompts_of(desk: Workspace, k: int) -> tuple[pl.DataFrame, int]:
    """The run's training prompts as iteration `k` knows them, and the iteration that added the last ones."""
    folders = {j: folder for j in range(k + 1) if (folder := desk.paths.stage(j, "prompts")).is_dir() or j == 0}
    parts = {j: desk.read(folder / "train.parquet", PROMPTS) for j, folder in folders.items()}
    return pl.concat(parts.values()), max((j for j, part in parts.items() if part.height), default=0)


def chosen(
    desk: Workspace, table: pl.DataFrame, config: SampleConfig, job: Job, since: int
) -> tuple[list[int], list[int]]:
    """The rows that iteration `job.iteration` takes, and others that it may add; reads the scores that decide it."""
    k, paths = job.iteration, desk.paths
    scores = {j: desk.read(paths.stage(j, "score") / "scores.parquet", SCORES) for j in reads(config, k)}
    choice = choose(table, config, job.seed, k, since, scores, _former_level(desk, k) if keeps_level(config) else None)
    desk.notes |= choice.notes
    if keeps_level(config):
        (desk.folder / LEVEL).write_text(json.dumps(choice.notes["curriculum"]), encoding="utf-8")
    return choice.first, choice.more


def _former_level(desk: Workspace, k: int) -> int | None:
    """The level that the iteration before had opened; None where it had no such curriculum."""
    folder = desk.paths.stage(k - 1, "sample")
    manifest = read_manifest(folder)
    if manifest is None or LEVEL not in manifest.outputs:
        return None
    level = json.loads(desk.take(folder / LEVEL).read_text(encoding="utf-8"))["level"]
    assert isinstance(level, int)
    return level


def compare(desk: Workspace, rollouts: pl.DataFrame, config: SampleConfig, engine: Engine, device: str) -> None:
    """Notes how far the sampler's log-probabilities are from the trainer's on some completions.

    Raises:
        EngineError: further than `fidelity.error`.
    """
    settings, rows = config.fidelity, spread(rollouts.height, config.fidelity.completions)
    some = rollouts[rows]
    prompts, completions = some["prompt_tokens"].to_list(), some["completion_tokens"].to_list()
    trainer = torch.cat(model_logprobs(engine.trainer_model(), prompts, completions, device, config.sampling))
    sampler = torch.tensor(some["sampler_logprobs"].explode().to_list())
    figures = fidelity(sampler, trainer)
    desk.notes["fidelity"] = {"completions": len(rows), "tokens": len(sampler), **figures}
    desk.metrics |= {f"fidelity_{name}": figures[name] for name in ("mean", "max", "kl")}
    told = f"sampler and trainer differ by {figures['mean']:.3g} nats a token in the mean, {figures['max']:.3g} at most"
    if not figures["mean"] <= settings.error:
        raise EngineError(
            f"{told}; sample.fidelity.error allows {settings.error}: the engine's precision is too low, or it computes "
            "another model"
        )
    if figures["mean"] > settings.warn:
        desk.notes["warnings"] = [*desk.notes.get("warnings", []), f"{told}; sample.fidelity.warn is {settings.warn}"]
