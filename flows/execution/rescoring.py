"""Stored rollouts scored with other rewards, without sampling, into a comparison. Nothing in the run changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from flows.config.loading import make_config, read_yaml
from flows.config.overrides import apply_overrides
from flows.config.schema import RunConfig
from flows.execution.run_stage import prepared
from flows.execution.secrets import with_keys
from flows.runs import observers
from flows.runs.history import History, ranges
from flows.runs.staleness import departing
from stages.advantage.config import AdvantageConfig, goes_on
from stages.contract import tables
from stages.contract.columns import (
    ADVANTAGE_STATE,
    ADVANTAGES,
    KEY,
    RESCORED,
    RESCORED_ITERATIONS,
    RESCORED_REWARDS,
    ROLLOUTS,
    SCORES,
)
from stages.contract.commit import new_folder, write_text
from stages.contract.config import deciding
from stages.contract.errors import ConfigError
from stages.contract.paths import MANIFEST, RunPaths
from stages.contract.workspace import Job, Workspace
from stages.score.config import ScoreConfig
from stages.score.notes import notes_metrics
from stages.score.reward_config import JudgeReward, PythonReward, RewardModelReward

RESCORED_FOLDER = ".rescored"
"""The folder, beside the runs, of comparisons: they are no part of the run."""


@dataclass(frozen=True)
class Comparison:
    """What came out, and where it lies."""

    folder: Path
    rewards: pl.DataFrame
    """Table `rescored_rewards`."""
    iterations: pl.DataFrame
    """Table `rescored_iterations`."""

    def examples(self, paths: RunPaths, count: int) -> dict[str, list[dict[str, Any]]]:
        """Completions to look at, by what they are examples of; each with prompt and completion."""
        rows = tables.read(self.folder / "completions.parquet", RESCORED)
        moved = rows.filter(pl.col("sides").is_in(["+-", "-+"])).with_columns(
            (pl.col("new_advantage") - pl.col("old_advantage")).abs().alias("by")
        )
        suspected = rows.filter(pl.col("new_suspect").is_not_null())
        chosen = {
            "they would change sides": moved.sort("by", descending=True, maintain_order=True),
            "suspected of hacking the new rewards": suspected.sort("new", descending=True, maintain_order=True),
        }
        return {
            title: [_with_text(paths, row) for row in some.head(count).to_dicts()] for title, some in chosen.items()
        }


def _with_text(paths: RunPaths, row: dict[str, Any]) -> dict[str, Any]:
    place = "evaluate" if row["heldout"] else "sample"
    drawn = tables.read(paths.stage(row["iteration"], place) / "rollouts.parquet", ROLLOUTS)
    [texts] = drawn.filter(prompt_id=row["prompt_id"], sample=row["sample"]).select("prompt", "completion").to_dicts()
    return row | texts


def other_rewards(config: RunConfig, file: Path | None, overrides: Mapping[str, Any]) -> ScoreConfig:
    """The rewards of a file, or the run's own, with single settings changed.

    Args:
        config: the run's.
        file: YAML with a list `rewards`, or a whole configuration, of which `score.rewards` is read; None takes the
            run's rewards.
        overrides: dotted names and values that begin with `score.rewards.`.

    Raises:
        ConfigError: the file has no rewards, they cannot be used, or they can say nothing other than the run's own.
    """
    data = config.model_dump(mode="json")
    if file is not None:
        told = read_yaml(file)
        score = told.get("score")
        rewards = told.get("rewards", score.get("rewards") if isinstance(score, dict) else None)
        if rewards is None:
            raise ConfigError(f"{file}: has no list `rewards`; say there with which rewards to score")
        data["score"] = {**data["score"], "rewards": rewards}
    if foreign := [name for name in overrides if not name.startswith("score.rewards.")]:
        raise ConfigError(f"{foreign[0]}: only settings that begin with `score.rewards.` can be other ones")
    data["evaluate"] = None  # whose success may be a reward that is not among these, as that of a curriculum
    data["sample"] = data["sample"] | {"curriculum": None}
    score_config = make_config(apply_overrides(data, overrides), str(file or "score")).score
    changing = (PythonReward, JudgeReward, RewardModelReward)  # which may say others now than they said then
    same = deciding(score_config)["rewards"] == deciding(config.score)["rewards"]
    if same and not any(isinstance(reward, changing) for reward in score_config.rewards):
        raise ConfigError("these are the run's own rewards: name a file with other ones, or settings that differ")
    return score_config


def iterations_of(paths: RunPaths, wanted: str | None) -> list[int]:
    """The iterations of a range like `1:40`, `7` or `30:` that were scored; all of them where none is given.

    Raises:
        ConfigError: it is no such range, or none of it was scored.
    """
    history = History(paths)
    scored = [k for k in range(1, history.last() + 1) if history.manifest(k, "score") and history.manifest(k, "sample")]
    first, colon, last = (wanted or ":").partition(":")
    if (first and not first.isdecimal()) or (last and not last.isdecimal()) or not (first or colon):
        raise ConfigError(f"iterations {wanted!r}: a range like 1:40, one iteration like 7, or 30: is wanted")
    low, high = int(first or 1), int(last) if last else history.last() if colon else int(first)
    chosen = [k for k in scored if low <= k <= high]
    if not chosen:
        raise ConfigError(
            f"{paths.root}: no scores of iterations {wanted or 'at all'}; there are {ranges(scored) or 'none'}"
        )
    return chosen


def place_for(paths: RunPaths, name: str) -> Path:
    """The first free place for a comparison of this name."""
    folder, n = paths.root.parent / RESCORED_FOLDER / paths.root.name, 1
    while (place := folder / (name if n == 1 else f"{name}.{n}")).exists():
        n += 1
    return place


def rescore(paths: RunPaths, config: RunConfig, score: ScoreConfig, ks: Sequence[int], to: Path) -> Comparison:
    """Scores the completions of iterations, and of the held-out prompts measured in them, with other rewards.

    Args:
        paths: the run; it is only read.
        config: its configuration.
        score: the other rewards.
        ks: the iterations.
        to: the folder to make.

    Raises:
        ArtifactError: a table is missing or damaged, or the folder is there already.
        ConfigError: the rewards cannot judge these completions.
    """
    from stages.model.determinism import refusals_named
    from stages.score.comparison import iteration_figures, reward_figures
    from stages.score.inputs import with_inputs

    if inside := [above for above in to.resolve().parents if RunPaths(above).config.is_file()]:
        raise ConfigError(f"{to}: lies in the run {inside[0].name}, in which nothing changes; name a folder elsewhere")
    machine = prepared(config.hardware)
    score = with_keys(score)
    with refusals_named(), new_folder(to) as folder:
        desk = Workspace(paths, folder)
        judges = with_inputs(desk, score)
        parts: list[pl.DataFrame] = []
        former: dict[str, float] | None = None
        for k in ks:
            train, former = _trained(desk, config, judges, k, former, machine.device)
            parts += [train, *_heldout(desk, config, judges, k, machine.device)]
        rows = pl.concat(parts, how="diagonal")
        figures, moves = reward_figures(rows), iteration_figures(rows)
        desk.write("completions.parquet", rows, RESCORED)
        desk.write("rewards.parquet", figures, RESCORED_REWARDS)
        desk.write("iterations.parquet", moves, RESCORED_ITERATIONS)
        section = {"rewards": deciding(score)["rewards"], "iterations": list(ks)}
        desk.metrics |= {"rows": float(rows.height)} | notes_metrics(score.rewards, rows)
        desk.notes["run"] = paths.root.name
        job = Job(paths, ks[-1], config.seed, machine=machine)
        manifest = desk.manifest(job, "rescore", section)
        write_text(folder / MANIFEST, manifest.model_dump_json(indent=1))
    return Comparison(to, figures, moves)


def _trained(
    desk: Workspace,
    config: RunConfig,
    judges: ScoreConfig,
    k: int,
    former: Mapping[str, float] | None,
    device: str,
) -> tuple[pl.DataFrame, dict[str, float]]:
    """The completions that iteration `k` was trained on, compared, and what they hand on to the next one."""
    from stages.advantage.stage import advantage_rows, joined
    from stages.score.comparison import compared
    from stages.score.stage import decoder, score_rows

    paths = desk.paths
    rollouts = desk.read(paths.stage(k, "sample") / "rollouts.parquet", ROLLOUTS)
    old = desk.read(paths.stage(k, "score") / "scores.parquet", SCORES)
    decode = decoder(desk, paths.policy(0), judges)
    new = score_rows(rollouts, judges, device, decode, observers.reporter("rescore", k), k)
    frozen = ("reference_logprobs", "values")
    judged = tables.join(new.drop(frozen), old.select(*KEY, *frozen), f"scores of iteration {k}")
    method = _method(desk, config, k)
    before = former if former is not None else _handed_on(desk, method, k)
    advantages, result = advantage_rows(joined(rollouts, judged), method, None, before)
    pair = _stored(desk, rollouts, k), advantages
    return compared(rollouts, old, new, pair, k, False, _success(config)), dict(result.state)


def _heldout(desk: Workspace, config: RunConfig, judges: ScoreConfig, k: int, device: str) -> list[pl.DataFrame]:
    """The completions of held-out prompts that policy `k` gave, compared, where it was measured."""
    from stages.score.comparison import compared
    from stages.score.stage import score_rows

    folder = desk.paths.stage(k, "evaluate")
    if not (folder / MANIFEST).is_file():
        return []
    rollouts, old = desk.read(folder / "rollouts.parquet", ROLLOUTS), desk.read(folder / "scores.parquet", SCORES)
    new = score_rows(rollouts, judges, device, iteration=k)
    return [compared(rollouts, old, new, (None, None), k, True, _success(config))]


def _method(desk: Workspace, config: RunConfig, k: int) -> AdvantageConfig:
    """How iteration `k` made its advantages."""
    history = History(desk.paths)
    made = history.manifest(k, "advantage")
    return departing(history, history.config(k, config), k, made.overrides if made else {}).advantage


def _handed_on(desk: Workspace, method: AdvantageConfig, k: int) -> dict[str, float]:
    """What the iteration before `k` handed on to it, as the run was trained."""
    from stages.advantage.stage import STATE

    path = desk.paths.stage(k - 1, "advantage") / STATE
    if not goes_on(method) or not path.is_file():
        return {}
    return dict(desk.read(path, ADVANTAGE_STATE).select("name", "value").iter_rows())


def _stored(desk: Workspace, rollouts: pl.DataFrame, k: int) -> pl.DataFrame | None:
    """The advantages that the run was trained with; None where there are none of these completions."""
    path = desk.paths.stage(k, "advantage") / "advantages.parquet"
    if not path.is_file():
        return None
    table = desk.read(path, ADVANTAGES)
    return table if table.select(KEY).sort(KEY).equals(rollouts.select(KEY).sort(KEY)) else None


def _success(config: RunConfig) -> tuple[str, float]:
    return config.success(), config.evaluate.threshold if config.evaluate else 1.0
