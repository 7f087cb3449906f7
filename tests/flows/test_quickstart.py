"""The README's first command, on the real configuration: it learns, as its own tables say."""

import json
import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.flows.conftest import ROOT, run_grpo


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The folder and printed text of a whole quickstart; `$QUICKSTART` may name one that was just trained."""
    if ready := os.environ.get("QUICKSTART"):
        return Path(ready), (Path(ready) / "output.txt").read_text()
    folder = tmp_path_factory.mktemp("quickstart")
    done = run_grpo(folder, "train", ROOT / "configs" / "quickstart.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def with_vllm(quickstart, tmp_path_factory):
    """A folder in which the same starting policy was trained for twelve iterations with vLLM as the sampler."""
    folder = tmp_path_factory.mktemp("quickstart_vllm")
    run = folder / "artifacts" / "quickstart"
    shutil.copytree(quickstart[0] / "artifacts/quickstart/iterations/0000", run / "iterations" / "0000")
    shutil.copyfile(quickstart[0] / "artifacts/quickstart/run.yaml", run / "run.yaml")
    config = ROOT / "configs" / "quickstart.yaml"
    done = run_grpo(folder, "train", config, "--set", "sample.engine.type=vllm", "--iterations", "12")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def successes(folder, k):
    table = pl.read_parquet(folder / f"artifacts/quickstart/iterations/{k:04d}/evaluate/evaluation.parquet")
    return table["successes"].sum() / table["samples"].sum()


def test_held_out_success_rises_from_a_third_to_nine_tenths(quickstart):
    folder, _ = quickstart
    last = max(int(path.name) for path in (folder / "artifacts/quickstart/iterations").iterdir())
    assert 0.25 <= successes(folder, 0) <= 0.45
    assert successes(folder, last) >= 0.90


def test_the_reward_of_training_rises_too(quickstart):
    folder, _ = quickstart
    files = sorted((folder / "artifacts/quickstart/iterations").glob("*/score/scores.parquet"))
    rewards = [pl.read_parquet(file)["reward"].mean() for file in files]
    tenth = len(rewards) // 10
    assert sum(rewards[:tenth]) / tenth < 0.6
    assert sum(rewards[-tenth:]) / tenth > 0.85


def test_held_out_problems_were_sampled_at_temperature_one_and_never_trained_on(quickstart):
    folder, _ = quickstart
    iterations = folder / "artifacts/quickstart/iterations"
    heldout = [pl.read_parquet(file) for file in iterations.glob("*/evaluate/rollouts.parquet")]
    assert {value for table in heldout for value in table["temperature"]} == {1.0}
    asked = {prompt for table in heldout for prompt in table["prompt"]}
    trained = {p for file in iterations.glob("*/sample/rollouts.parquet") for p in pl.read_parquet(file)["prompt"]}
    assert len(asked) == 256
    assert not asked & trained


def test_the_starting_policy_saw_wrong_demonstrations(quickstart):
    folder, _ = quickstart
    rows = pl.read_parquet(folder / "artifacts/quickstart/iterations/0000/update/demonstrations.parquet")
    assert 0.3 < rows["correct"].mean() < 0.7


def test_it_prints_a_line_an_iteration_and_says_where_everything_lies(quickstart):
    folder, text = quickstart
    status = json.loads(run_grpo(folder, "status", "quickstart", "--json").stdout)
    lines = [line for line in text.splitlines() if "update " in line and "sample " in line]
    assert len(lines) == len(status["iterations"]) - 1
    assert f"{status['iterations'][-1]['metrics']['heldout_success']:.4f}" in lines[-1]
    for title in ("reward", "held-out", "KL", "entropy", "length", "seconds"):
        assert title in text
    assert "artifacts/quickstart" in text
    assert "grpo show quickstart" in text


def test_with_vllm_it_learns_as_with_the_transformers_engine(quickstart, with_vllm):
    # 256 prompts a policy: the standard error of the difference of two is 0.044 at most, and both runs waver
    assert abs(successes(with_vllm, 0) - successes(quickstart[0], 0)) < 0.14
    learnt = [sum(successes(folder, k) for k in (10, 11, 12)) / 3 for folder in (with_vllm, quickstart[0])]
    assert min(learnt) > 0.55
    assert abs(learnt[0] - learnt[1]) < 0.14


def test_one_vllm_engine_drew_them_all_as_the_trainer_would(with_vllm):
    iterations = with_vllm / "artifacts" / "quickstart" / "iterations"
    notes = [json.loads(file.read_text())["notes"] for file in iterations.glob("*/sample/manifest.json")]
    assert len(notes) == 12
    assert {note["engine"]["type"] for note in notes} == {"vllm"}
    assert len({tuple(note["engine"]["pids"]) for note in notes}) == 1
    assert all(0 < note["fidelity"]["max"] < 1e-4 for note in notes)
    assert all(note["fidelity"]["completions"] == 8 for note in notes)
