"""Runs one stage of one iteration: binds the run's configuration to the stage's function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from flows.config.overrides import without_hardware
from flows.config.schema import HardwareConfig, RunConfig
from flows.execution.engines import warm_engine
from flows.execution.secrets import with_keys
from flows.runs import observers
from flows.runs.access import background_of, open_run
from flows.runs.history import History
from flows.runs.phases import policy_before, prompts_before
from flows.runs.staleness import departing
from stages.contract.errors import ConfigError
from stages.contract.machine import Machine
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job, Workspace

SCORES = "scores.parquet"


def perform(
    root: Path,
    stage: str,
    k: int,
    overrides: dict[str, Any],
    hardware: dict[str, Any] | None = None,
    former: str | None = None,
    artifacts: Path | None = None,
) -> None:
    """Runs a stage, whether or not its output is current.

    Args:
        root: the run's folder.
        stage: the stage's name.
        k: the iteration.
        overrides: dotted names and values by which this stage departs from the run's configuration.
        hardware: the machine; None takes that of the run's configuration.
        former: of `score`, the table of scores, by its name in the run, of which only what failed is judged again.
        artifacts: the folder of the other runs, where the run's folder is a copy somewhere else.
    """
    paths, latest = open_run(root.parent, root.name)
    history = History(paths)
    config = history.config(k, latest).model_copy(update={"hardware": latest.hardware})
    own = without_hardware(overrides)
    if foreign := [name for name in own if name.split(".")[0] not in (stage, *_DECIDED_BY.get(stage, ()))]:
        raise ConfigError(f"{foreign[0]}: the stage {stage} takes settings that begin with `{stage}.`")
    config = departing(history, config, k, overrides)
    machine = prepared(config.hardware if hardware is None else HardwareConfig.model_validate(hardware))
    job = Job(paths, k, config.seed, own, observers.reporter(stage, k), machine, background_of(paths))
    if stage in _JUDGING:
        config = config.model_copy(update={"score": with_keys(config.score)})
    home = RunPaths(artifacts / root.name) if artifacts else paths
    from stages.model.determinism import refusals_named

    with refusals_named():
        _run(job, stage, config, paths.root / former if former else None, home)


_JUDGING = ("sample", "score", "evaluate")
_DECIDED_BY = {"evaluate": ("sample", "score"), "score": ("critic",), "update": ("critic",)}


def _run(job: Job, stage: str, config: RunConfig, former: Path | None, home: RunPaths) -> None:
    match stage:
        case "prompts":
            import stages.prompts.added
            import stages.prompts.stage

            if job.iteration:
                stages.prompts.added.run(job, config.prompts)
            else:
                stages.prompts.stage.run(job, config.prompts, prompts_before(home, config))
        case "warmstart":
            import stages.warmstart.stage

            stages.warmstart.stage.run(job, config.warmstart, policy_before(home, config))
        case "reward_model":
            import stages.reward_model.stage

            if config.reward_model is None:
                raise ConfigError("reward_model is null in this run's configuration")
            stages.reward_model.stage.run(job, config.reward_model)
        case "sample":
            import stages.sample.stage

            engine = warm_engine(config, job)
            stages.sample.stage.run(job, config.sample, engine, _judge(config, job), config.section("sample"))
        case "score":
            import stages.score.stage

            stages.score.stage.run(job, config.score, config.critic.start if config.critic else None, former)
        case "advantage":
            import stages.advantage.stage

            stages.advantage.stage.run(job, config.advantage)
        case "update":
            import stages.update.stage

            stages.update.stage.run(job, config.update, config.critic)
        case "evaluate":
            _evaluate(job, config)
        case _:
            raise AssertionError(stage)


def _judge(config: RunConfig, job: Job) -> Callable[[Workspace, pl.DataFrame], pl.Series]:
    """Gives completions the rewards that the stage `score` will give them, but for a judge, which may say others."""

    def judge(desk: Workspace, rollouts: pl.DataFrame) -> pl.Series:
        from stages.score.inputs import with_inputs
        from stages.score.stage import score_rows

        judges = with_inputs(desk, config.score)
        return score_rows(rollouts, judges, job.device, iteration=job.iteration)["reward"]

    return judge


def _evaluate(job: Job, config: RunConfig) -> None:
    import stages.evaluate.stage
    from stages.sample.collect import collect
    from stages.score.inputs import with_inputs
    from stages.score.notes import notes_metrics
    from stages.score.stage import score_rows

    if config.evaluate is None:
        raise ConfigError("evaluate is null in this run's configuration")
    settings = config.evaluate
    sampling = config.sample.sampling.model_copy(update={"temperature": settings.temperature})
    drawing = config.sample.model_copy(update={"sampling": sampling})
    engine = warm_engine(config, job)

    def draw(desk: Workspace, prompts: pl.DataFrame, policy: Path, seed_of: Any) -> pl.DataFrame:
        rollouts = collect(desk, prompts, policy, engine, drawing, settings.samples, seed_of, job.progress)
        desk.notes |= engine.rest()
        return rollouts

    def judge(desk: Workspace, rollouts: pl.DataFrame) -> pl.DataFrame:
        scores = score_rows(rollouts, with_inputs(desk, config.score), job.device, iteration=job.iteration)
        desk.metrics |= notes_metrics(config.score.rewards, scores)
        return scores

    section = config.section("evaluate")
    stages.evaluate.stage.run(job, settings, section, config.success(), draw, judge)


def prepared(hardware: HardwareConfig) -> Machine:
    """The machine as the calling thread will use it: torch's threads and deterministic algorithms are set for it."""
    import torch

    from stages.model.determinism import processor, set_deterministic, set_threads

    set_deterministic(hardware.deterministic)
    device = hardware.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("hardware.device is cuda, but torch finds no GPU; use auto or cpu")
    threads = set_threads(hardware.threads)
    return Machine(device, threads, hardware.deterministic, tuple(sorted(processor(device).items())))
