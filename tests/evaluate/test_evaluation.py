"""From judged completions of held-out prompts to successes, pass@k and votes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from stages.contract import tables
from stages.contract.columns import EVALUATION, PROMPTS, ROLLOUTS, SCORES
from stages.contract.errors import DataError
from stages.contract.manifest import read_manifest
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job, Workspace, open_stage
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.stage import per_prompt, run

FOUR = EvaluateConfig(samples=4, k=(1, 2, 4))


def judged(prompts: dict[str, list[tuple[float | None, str | None]]]) -> pl.DataFrame:
    """A (reward, answer) for each completion of each prompt; the mean of both rewards lies half way to 0."""
    rows = [
        {
            "prompt_id": name,
            "sample": i,
            "task": f"task of {name}",
            "reward_math": reward,
            "reward": None if reward is None else reward / 2,
            "extracted": answer,
        }
        for name, completions in prompts.items()
        for i, (reward, answer) in enumerate(completions)
    ]
    return pl.DataFrame(rows, schema_overrides={"extracted": pl.String, "reward_math": pl.Float64})


def test_successes_pass_at_k_and_votes_by_hand() -> None:
    frame = judged(
        {
            "two": [(1.0, "7"), (0.0, "8"), (1.0, "7"), (0.0, "9")],
            "one": [(0.0, "3"), (0.0, "3"), (1.0, "4"), (0.0, None)],
            "none": [(0.0, None)] * 4,
        }
    )
    table = per_prompt(frame, FOUR, "reward_math")
    assert table.to_dicts() == [
        {
            "prompt_id": "two",
            "task": "task of two",
            "samples": 4,
            "successes": 2,
            "reward_mean": 0.25,
            "majority_answer": "7",
            "majority_correct": True,
            "pass_at_1": 0.5,
            "pass_at_2": pytest.approx(5 / 6),
            "pass_at_4": 1.0,
        },
        {
            "prompt_id": "one",
            "task": "task of one",
            "samples": 4,
            "successes": 1,
            "reward_mean": 0.125,
            "majority_answer": "3",
            "majority_correct": False,
            "pass_at_1": 0.25,
            "pass_at_2": 0.5,
            "pass_at_4": 1.0,
        },
        {
            "prompt_id": "none",
            "task": "task of none",
            "samples": 4,
            "successes": 0,
            "reward_mean": 0.0,
            "majority_answer": None,
            "majority_correct": None,
            "pass_at_1": 0.0,
            "pass_at_2": 0.0,
            "pass_at_4": 0.0,
        },
    ]
    assert table.schema == tables.frame(EVALUATION, {name: [] for name in table.columns}).schema


def test_a_completion_whose_reward_failed_is_left_out() -> None:
    frame = judged({"a": [(1.0, "7"), (None, "8"), (None, "8"), (0.0, "9")], "b": [(None, None)] * 4})
    table = per_prompt(frame, FOUR, "reward_math")
    assert table["successes"].to_list() == [1, 0]
    assert table["samples"].to_list() == [2, 0]
    assert table["pass_at_1"].to_list() == [0.5, None]
    assert table["pass_at_2"].to_list() == [1.0, None]
    assert table["pass_at_4"].to_list() == [None, None]
    assert table["reward_mean"].to_list() == [0.25, None]
    assert table["majority_answer"].to_list() == ["7", None]
    assert table["majority_correct"].to_list() == [True, None]


def test_a_vote_is_right_where_any_completion_with_its_answer_is_a_success() -> None:
    frame = judged(
        {"a": [(0.0, "7"), (None, "7"), (1.0, "7"), (0.0, "8")], "b": [(1.0, "1"), (0.0, "2")] + [(0.0, "3")] * 2}
    )
    table = per_prompt(frame, FOUR, "reward_math")
    assert table["majority_answer"].to_list() == ["7", "3"]
    assert table["majority_correct"].to_list() == [True, False]


def test_the_threshold_belongs_to_the_successes() -> None:
    frame = judged({"a": [(0.49, "1"), (0.5, "2"), (0.51, "3"), (2.0, "4")]})
    for threshold, successes in ((0.5, 3), (0.51, 2), (1.0, 1), (2.5, 0), (-1.0, 4)):
        chosen = FOUR.model_copy(update={"threshold": threshold})
        assert per_prompt(frame, chosen, "reward_math")["successes"].to_list() == [successes]


def test_the_reward_that_counts_is_the_one_named() -> None:
    frame = judged({"a": [(1.0, "7")] * 4}).with_columns(reward_format=pl.Series([1.0, 0.0, 0.0, 0.0]))
    assert per_prompt(frame, FOUR, "reward_format")["successes"].to_list() == [1]


def test_rows_of_a_prompt_need_not_lie_together() -> None:
    frame = judged({"a": [(1.0, "7"), (0.0, "8")] * 2, "b": [(0.0, "9")] * 4})
    mixed = frame[[0, 4, 1, 5, 6, 2, 7, 3]]
    assert per_prompt(mixed, FOUR, "reward_math").equals(per_prompt(frame, FOUR, "reward_math"))


def test_more_tries_never_pass_less() -> None:
    everything = EvaluateConfig(samples=6, k=(1, 2, 3, 4, 5, 6))
    for successes in range(7):
        frame = judged({"a": [(1.0, "1")] * successes + [(0.0, "2")] * (6 - successes)})
        row = per_prompt(frame, everything, "reward_math").row(0, named=True)
        chances = [row[f"pass_at_{k}"] for k in everything.k]
        assert chances == sorted(chances)
        assert chances[0] == pytest.approx(successes / 6)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"samples": 4, "k": [1, 5]}, "pass@5 needs k from 1 to samples = 4"),
        ({"samples": 4, "k": [0]}, "pass@0 needs k from 1 to samples = 4"),
        ({"samples": 4, "k": [2, 2]}, "k names a number twice"),
        ({"every": 0}, "greater than 0"),
        ({"temperature": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        EvaluateConfig.model_validate(fields)


# The stage, with an engine that answers by the seed it is given and a judge who likes even answers


def answered(desk: Workspace, prompts: pl.DataFrame, policy: Path, seed_of: Callable[[str, int], int]) -> pl.DataFrame:
    digest = desk.take_folder(policy)
    keys = [(name, i) for name in prompts["prompt_id"] for i in range(4)]
    seeds = [seed_of(*key) for key in keys]
    columns = {
        "prompt_id": [name for name, _ in keys],
        "sample": [i for _, i in keys],
        "prompt": ["?"] * len(keys),
        "prompt_tokens": [[1]] * len(keys),
        "completion": [str(seed % 10) for seed in seeds],
        "completion_tokens": [[2] * (1 + i) for _, i in keys],
        "sampler_logprobs": [[-1.0] * (1 + i) for _, i in keys],
        "finish_reason": ["stop"] * len(keys),
        "temperature": [1.0] * len(keys),
        "seed": seeds,
        "task": ["digits"] * len(keys),
        "answer": [None] * len(keys),
        "metadata": ["{}"] * len(keys),
        "messages": [None] * len(keys),
        "format": [None] * len(keys),
        "policy_digest": [digest] * len(keys),
    }
    return tables.frame(ROLLOUTS, columns)


def marked(_: Workspace, rollouts: pl.DataFrame, fails: str = "") -> pl.DataFrame:
    """Answers that end in a digit of `fails` get no verdict."""
    rewards = [None if text in fails else 1.0 - int(text) % 2 for text in rollouts["completion"]]
    columns = {name: rollouts[name] for name in ("prompt_id", "sample")} | {
        "reward": rewards,
        "error": [None if reward is not None else "even: out of order" for reward in rewards],
        "extracted": rollouts["completion"],
        **dict.fromkeys(("reference_logprobs", "values", "token_rewards", "step_ends"), [None] * len(rewards)),
        "reward_even": rewards,
        "status_even": ["ok" if reward is not None else "error" for reward in rewards],
    }
    return tables.frame(SCORES, columns)


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A run of ten held-out prompts and two policies."""
    run_paths = RunPaths.named(tmp_path, "night")
    for k in (0, 1):
        with open_stage(Job(run_paths, k, seed=5), "update", "update", {}) as desk:
            (desk.folder / "policy").mkdir()
            (desk.folder / "policy" / "weights").write_bytes(bytes([k]))
    names = [f"p{i}" for i in range(10)]
    columns = {"prompt_id": names, "messages": [[{"role": "user", "content": name}] for name in names]}
    columns |= {"format": ["text"] * 10, "task": ["digits"] * 10, "answer": [None] * 10, "metadata": ["{}"] * 10}
    columns |= {"source": [None] * 10, "level": [None] * 10}
    with open_stage(Job(run_paths, 0, seed=5), "prompts", "prompts", {}) as desk:
        desk.write("heldout.parquet", tables.frame(PROMPTS, columns), PROMPTS)
    return run_paths


def evaluated(paths: RunPaths, k: int, config: EvaluateConfig) -> tuple[dict[str, float | None], pl.DataFrame]:
    run(Job(paths, k, seed=5), config, {"evaluate": config.model_dump(mode="json")}, "even", answered, marked)
    manifest = read_manifest(paths.stage(k, "evaluate"))
    assert manifest is not None
    assert "iterations/0000/prompts/heldout.parquet" in manifest.inputs
    assert f"iterations/{k:04d}/update/policy/weights" in manifest.inputs
    return manifest.metrics, tables.read(paths.stage(k, "evaluate") / "rollouts.parquet", ROLLOUTS)


def test_the_stage_measures_the_policy_of_its_iteration_and_sums_up(paths: RunPaths) -> None:
    metrics, rollouts = evaluated(paths, 0, FOUR.model_copy(update={"prompts": 6}))
    answers = [[str(seed % 10) for seed in rollouts["seed"][4 * i : 4 * i + 4]] for i in range(6)]
    even = [sum(int(answer) % 2 == 0 for answer in row) for row in answers]
    assert rollouts["prompt_id"].unique(maintain_order=True).to_list() == [f"p{i}" for i in range(6)]
    assert 0 < sum(even) < 24
    first_of_most = [max(row, key=row.count) for row in answers]
    assert metrics == {
        "heldout_success": sum(even) / 24,
        "heldout_reward": pytest.approx(sum(even) / 24),
        "heldout_length": 2.5,
        "failed": 0.0,
        "pass_at_1": pytest.approx(sum(even) / 24),
        "pass_at_2": pytest.approx(sum([0, 1 / 2, 5 / 6, 1, 1][n] for n in even) / 6),
        "pass_at_4": sum(n > 0 for n in even) / 6,
        "maj_at_4": sum(int(answer) % 2 == 0 for answer in first_of_most) / 6,
    }


def test_a_judge_that_was_down_for_half_of_them_lowers_no_figure(paths: RunPaths) -> None:
    def half_down(desk: Workspace, rollouts: pl.DataFrame) -> pl.DataFrame:
        return marked(desk, rollouts, fails="01234")

    job = Job(paths, 0, seed=5)
    run(job, FOUR, {}, "even", answered, half_down)
    manifest = read_manifest(paths.stage(0, "evaluate"))
    assert manifest is not None
    texts = tables.read(paths.stage(0, "evaluate") / "rollouts.parquet", ROLLOUTS)["completion"]
    known = [int(text) for text in texts if int(text) > 4]
    assert 10 < len(known) < 30
    assert manifest.metrics["heldout_success"] == sum(digit % 2 == 0 for digit in known) / len(known)
    assert manifest.metrics["failed"] == 40 - len(known)
    assert manifest.dropped == {"failed under even": 40 - len(known)}

    def down(desk: Workspace, rollouts: pl.DataFrame) -> pl.DataFrame:
        return marked(desk, rollouts, fails="0123456789")

    with pytest.raises(DataError, match=r"'even' failed on all 40 completions .* first time with: even: out of order"):
        run(job, FOUR, {}, "even", answered, down)


def test_two_policies_are_compared_on_the_same_seeds(paths: RunPaths) -> None:
    _, first = evaluated(paths, 0, FOUR)
    _, second = evaluated(paths, 1, FOUR)
    assert first["seed"].equals(second["seed"])
    assert first["seed"].n_unique() == 40
    assert first["policy_digest"][0] != second["policy_digest"][0]


def test_a_run_without_held_out_prompts_cannot_be_measured(paths: RunPaths) -> None:
    with open_stage(Job(paths, 0, seed=5), "prompts", "prompts", {}) as desk:
        names = [field.name for field in PROMPTS.fields]
        desk.write("heldout.parquet", tables.frame(PROMPTS, {name: [] for name in names}), PROMPTS)
    with pytest.raises(DataError, match=r"no held-out prompts; set prompts\.heldout, or evaluate to null"):
        evaluated(paths, 0, FOUR)
    assert not paths.stage(0, "evaluate").exists()
