"""The stage `score`: rollouts → scores.parquet."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, assert_never

import polars as pl

from stages.contract import tables
from stages.contract.columns import KEY, ROLLOUTS, SCORES
from stages.contract.config import deciding
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.manifest import read_manifest
from stages.contract.metrics import mean
from stages.contract.paths import RunPaths
from stages.contract.progress import Progress, no_progress, part_of
from stages.contract.workspace import Job, Workspace, open_stage
from stages.model.config import CriticStart
from stages.score.answers.extract import extract
from stages.score.combine import failures, weighted
from stages.score.config import AverageReference, Reference, RefreshedReference, ScoreConfig, StartReference
from stages.score.failures import check_comparable, excluded_groups, kept, settled
from stages.score.inputs import with_inputs
from stages.score.notes import notes_metrics
from stages.score.reward_config import STEPWISE, AnswerReward, CosineReward, reward_name
from stages.score.rewards import cosine, judge
from stages.score.steps import Decode, placed
from stages.score.verdict import Item, null

GIVEN = (
    *("prompt_id", "sample", "prompt", "messages", "format", "task", "answer", "metadata"),
    *("completion", "completion_tokens"),
)
"""Columns of the rollouts that rewards are given."""


def run(job: Job, config: ScoreConfig, critic: CriticStart | None = None, former: Path | None = None) -> None:
    """Judges the rollouts of iteration k.

    Args:
        job: run and iteration.
        config: the rewards.
        critic: where there is a critic, what it was at first.
        former: a table of scores of the same rollouts; only what failed there is judged again, the rest is kept.

    Raises:
        ConfigError: the former scores are of other rollouts, or of rewards that would judge otherwise than these.
    """
    section = deciding(config) | ({"critic": deciding(critic)} if critic else {})
    with open_stage(job, "score", "score", section) as desk:
        rollouts = desk.read(job.paths.stage(job.iteration, "sample") / "rollouts.parquet", ROLLOUTS)
        judged = len(config.rewards) * rollouts.height
        total = judged + ((config.reference is not None) + (critic is not None)) * rollouts.height
        with desk.timed("rewards"):
            told = part_of(job.progress, 0, total)
            judges = with_inputs(desk, config)
            known = _former(job, desk, config, former) if former is not None else None
            decode = decoder(desk, job.paths.policy(job.iteration - 1), config)
            scores = score_rows(rollouts, judges, job.device, decode, told, job.iteration, known)
        if config.reference is not None:
            from stages.contract.policy import take_policy
            from stages.score.token_scores import reference_logprobs

            policy = reference_folder(job.paths, job.iteration, config.reference)
            desk.notes["reference_digest"] = take_policy(desk, policy)
            with desk.timed("reference"):
                told = part_of(job.progress, judged, total)
                logprobs = reference_logprobs(rollouts, policy, config.micro_batch_tokens, job.device, told)
            scores = scores.with_columns(pl.Series("reference_logprobs", logprobs, dtype=pl.List(pl.Float32)))
        if critic is not None:
            from stages.model.critic import former_critic
            from stages.score.token_scores import critic_values

            with desk.timed("values"):
                model = former_critic(desk, job.iteration, critic, job.device)
                told = part_of(job.progress, total - rollouts.height, total)
                values = critic_values(rollouts, model, config.micro_batch_tokens, job.device, told)
            scores = scores.with_columns(pl.Series("values", values, dtype=pl.List(pl.Float32)))
        desk.write("scores.parquet", scores, SCORES)
        desk.metrics |= score_metrics(scores, config)
        if known is not None:
            desk.notes["judged_again"] = {
                reward_name(reward): kept(reward, known).count(None) for reward in config.rewards
            }


def _former(job: Job, desk: Workspace, config: ScoreConfig, path: Path) -> pl.DataFrame:
    """A former table of scores whose verdicts may be kept."""
    table = desk.read(path, SCORES)
    manifest = read_manifest(path.parent)
    if manifest is None:
        raise ArtifactError(f"{path.parent}: holds no manifest; run the stage without --only-failed")
    rollouts = job.paths.relative(job.paths.stage(job.iteration, "sample") / "rollouts.parquet")
    there = manifest.inputs.get(rollouts)
    if there is None or there.digest != desk.inputs()[rollouts].digest:
        raise ConfigError(
            f"the scores of iteration {job.iteration} are of other rollouts: run the stage without --only-failed"
        )
    for name, record in desk.inputs().items():
        known = manifest.inputs.get(name)
        if not name.startswith("superseded/") and (known is None or known.digest != record.digest):
            raise ConfigError(f"{name} has changed since: run the stage without --only-failed")
    check_comparable(config.rewards, manifest.config.get("rewards", ()))
    return table


def reference_folder(paths: RunPaths, k: int, reference: Reference) -> Path:
    """The folder of the policy that iteration `k` is held near."""
    match reference:
        case StartReference():
            return paths.policy(0)
        case RefreshedReference(every=every):
            return paths.policy((k - 1) // every * every)
        case AverageReference():
            return paths.average(k - 1) if k > 1 else paths.policy(0)
        case _:
            assert_never(reference)


def score_rows(
    rollouts: pl.DataFrame,
    config: ScoreConfig,
    device: str = "cpu",
    decode: Decode | None = None,
    progress: Progress = no_progress,
    iteration: int = 0,
    former: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """The table `scores` of a table of rollouts, without log-probabilities.

    Args:
        rollouts: the completions.
        config: the rewards.
        device: where a reward that is a model computes.
        decode: tells at which tokens steps end; without it rewards of steps are only summed.
        progress: told of judgements: a reward's word on a row is one.
        iteration: of which the completions are.
        former: scores of the same completions by the same rewards; only what failed there is judged.
    """
    items = items_of(rollouts)
    total = len(config.rewards) * len(items)
    if former is not None:
        former = tables.join(rollouts.select(KEY), former, "rollouts and the former scores")
    marks = {reward_name(reward): [null() for _ in items] for reward in config.rewards}
    for i, reward in sorted(enumerate(config.rewards), key=lambda one: isinstance(one[1], CosineReward)):
        told = part_of(progress, i * len(items), total)
        known = [None] * len(items) if former is None else kept(reward, former)
        again = [at for at, mark in enumerate(known) if mark is None]
        if isinstance(reward, CosineReward):
            judged = iter(cosine.judge(reward, items, marks[reward.of]))
        else:
            judged = iter(judge(reward, [items[at] for at in again], device, told, iteration))
        marks[reward_name(reward)] = [settled(mark or next(judged), reward) for mark in known]
    left_out = excluded_groups(marks, config.rewards, [item.prompt_id for item in items])
    weights = {reward_name(reward): reward.weight for reward in config.rewards}
    columns: dict[str, Any] = {
        "prompt_id": rollouts["prompt_id"],
        "sample": rollouts["sample"],
        "reward": [
            None if item.prompt_id in left_out else reward
            for item, reward in zip(items, weighted(marks, weights), strict=True)
        ],
        "error": [
            told or (f"{left_out[item.prompt_id]}: failed in its group" if item.prompt_id in left_out else None)
            for item, told in zip(items, failures(marks), strict=True)
        ],
        "extracted": _extracted(items, config),
        **{name: [None] * rollouts.height for name in ("reference_logprobs", "values", "token_rewards", "step_ends")},
    }
    for name, column in marks.items():
        columns |= {f"reward_{name}": [m.value for m in column], f"status_{name}": [m.status for m in column]}
        columns[f"weight_{name}"] = [weights[name]] * rollouts.height
        if any(m.note is not None for m in column):
            columns[f"note_{name}"] = [m.note for m in column]
    if decode is not None:
        steps = [(weights[reward_name(r)], marks[reward_name(r)]) for r in config.rewards if isinstance(r, STEPWISE)]
        placements = [
            placed(tokens, [(weight, column[i]) for weight, column in steps], decode)
            for i, tokens in enumerate(rollouts["completion_tokens"].to_list())
        ]
        columns |= {
            "token_rewards": [earned for earned, _ in placements],
            "step_ends": [ends for _, ends in placements],
        }
    return tables.frame(SCORES, columns)


def items_of(rollouts: pl.DataFrame) -> list[Item]:
    """What the rewards are given of each row; in rollouts of older code, the prompt's text is its only message."""
    return [
        Item(
            row["completion"],
            len(row["completion_tokens"]),
            row["task"],
            row["answer"],
            json.loads(row["metadata"]),
            tuple(row["messages"] or [{"role": "user", "content": row["prompt"]}]),
            row["format"] == "chat",
            tuple(row["completion_tokens"]),
            row["prompt_id"],
            row["sample"],
        )
        for row in rollouts.select(*GIVEN).iter_rows(named=True)
    ]


def decoder(desk: Workspace, policy: Path, config: ScoreConfig) -> Decode | None:
    """The decoder of a policy, where a reward judges steps; all policies of a run have the same."""
    if not any(isinstance(reward, STEPWISE) for reward in config.rewards):
        return None
    from stages.model.load import load_tokenizer

    for path in sorted(policy.glob("*")):
        if path.suffix != ".safetensors":
            desk.take(path)
    tokenizer = load_tokenizer(policy)
    return lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def _extracted(items: list[Item], config: ScoreConfig) -> list[str | None]:
    rewards = [reward for reward in config.rewards if isinstance(reward, AnswerReward)]
    out = []
    for item in items:
        mine = [reward for reward in rewards if reward.judges(item.task)]
        out.append(extract(item.completion, mine[0].extract) if mine else None)
    return out


def score_metrics(scores: pl.DataFrame, config: ScoreConfig) -> dict[str, float | None]:
    """Means of the rewards over the rows that have them, and how many rows failed."""
    out = {"reward_mean": mean(scores["reward"]), "rows": float(scores.height)}
    out["failed"] = float(scores["reward"].null_count())
    for reward in config.rewards:
        name = reward_name(reward)
        out[f"{name}_mean"] = mean(scores[f"reward_{name}"])
        for status, count in Counter(scores[f"status_{name}"]).items():
            if status != "ok":
                out[f"{name}_{status}"] = float(count)
    return out | notes_metrics(config.rewards, scores)
