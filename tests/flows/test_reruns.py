"""A stage rerun alone: what it replaces, what it makes stale, and how training goes on."""

import json
import shutil

import polars as pl
import pytest

from flows.execution.run_stage import perform
from stages.contract.errors import ConfigError
from tests.flows.conftest import SMALL, run_grpo


@pytest.fixture
def folder(small_folder, tmp_path):
    """A copy of the small run that a test may change."""
    shutil.copytree(small_folder, tmp_path / "copy")
    return tmp_path / "copy"


def states(folder):
    read = json.loads(run_grpo(folder, "status", "small", "--json").stdout)
    return {
        (entry["iteration"], stage): (state["status"], state["reason"])
        for entry in read["iterations"]
        for stage, state in entry["stages"].items()
    }


def test_a_rerun_that_changes_nothing_makes_nothing_stale(folder):
    before = (folder / "artifacts/small/iterations/0002/score/scores.parquet").read_bytes()
    done = run_grpo(folder, "stage", "score", "small", "--iteration", "2", "--set", "hardware.device=auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is stale" in done.stdout
    manifest = json.loads((folder / "artifacts/small/iterations/0002/score/manifest.json").read_text())
    assert (manifest["overrides"], manifest["threads"]) == ({}, 1)
    assert (folder / "artifacts/small/iterations/0002/score/scores.parquet").read_bytes() == before
    assert (folder / "artifacts/small/superseded/0002/score.1/scores.parquet").read_bytes() == before
    assert {status for status, _ in states(folder).values()} == {"current"}


def test_a_rerun_with_another_weight_makes_stale_what_follows_and_training_makes_it_again(folder):
    run = folder / "artifacts" / "small"
    done = run_grpo(folder, "stage", "score", "small", "--iteration", "2", "--set", "score.rewards.1.weight=1.0")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pl.read_parquet(run / "iterations/0002/score/scores.parquet")
    assert rows["reward"].to_list() == pytest.approx((rows["reward_reasoning_gym"] + rows["reward_length"]).to_list())

    after = states(folder)
    assert after[2, "score"] == ("current", "with score.rewards.1.weight=1.0")
    assert after[2, "advantage"] == ("stale", "iterations/0002/score/scores.parquet has changed")
    assert after[2, "update"][0] == after[3, "sample"][0] == after[3, "evaluate"][0] == "stale"
    assert after[3, "sample"][1] == "update of iteration 2 is not current"
    assert {status for (k, stage), (status, _) in after.items() if k < 2 or (k, stage) == (2, "sample")} == {"current"}
    assert "advantage of iteration 2: iterations/0002/score/scores.parquet has changed" in done.stdout

    again = run_grpo(folder, "train", SMALL)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "advantage of iteration 2 is stale (iterations/0002/score/scores.parquet has changed)" in again.stdout
    final = states(folder)
    assert {status for status, _ in final.values()} == {"current"}
    assert final[2, "score"][1] == "with score.rewards.1.weight=1.0"
    assert (run / "superseded/0003/update.1/policy/model.safetensors").is_file()
    assert (run / "superseded/0002/score.1").is_dir()
    assert not (run / "superseded/0001").exists()


def test_a_cascade_ends_with_its_iteration_or_with_the_one_asked_for(folder):
    run = folder / "artifacts" / "small"
    weights = run / "iterations/0003/update/policy/model.safetensors"
    original = weights.read_bytes()
    rerun = ("stage", "score", "small", "--iteration", "2", "--set", "score.rewards.1.weight=1.0")
    for asked, stale in (
        (("--cascade",), ["sample", "score", "advantage", "update", "evaluate"]),
        (("--through", "3"), []),
    ):
        done = run_grpo(folder, *rerun, *asked)
        assert done.returncode == 0, done.stdout + done.stderr
        found = [(k, stage) for (k, stage), (status, _) in states(folder).items() if status != "current"]
        assert found == [(3, stage) for stage in stale]
        assert ("nothing is stale" in done.stdout) == (not stale)
        assert (weights.read_bytes() == original) == bool(stale)
    assert (run / "superseded/0003/update.1/policy/model.safetensors").read_bytes() == original
    refused = run_grpo(folder, *rerun, "--through", "4")
    assert refused.returncode == 2
    assert "through is 4: an iteration from 2 to 3, the last one there is, is wanted" in refused.stderr


def test_settings_of_several_stages_have_to_fit_in_their_iteration_alone(folder):
    run = folder / "artifacts" / "small"
    without = {"score.reference": None}
    with pytest.raises(ConfigError, match=r"update.kl.coefficient is above 0, which needs `score.reference: start`"):
        perform(run, "score", 2, without)
    perform(run, "update", 2, {"update.kl.coefficient": 0.0})
    perform(run, "score", 2, without)
    perform(run, "advantage", 2, {})
    perform(run, "update", 2, {"update.kl.coefficient": 0.0})
    after = states(folder)
    assert [after[2, stage] for stage in ("score", "advantage", "update")] == [
        ("current", "with score.reference=None"),
        ("current", ""),
        ("current", "with update.kl.coefficient=0.0"),
    ]
    assert pl.read_parquet(run / "iterations/0002/score/scores.parquet")["reference_logprobs"].null_count() == 64
    perform(run, "update", 1, {})
    with pytest.raises(ConfigError, match=r"needs `score.reference: start`"):
        perform(run, "score", 1, without)
    with pytest.raises(ConfigError, match="the scores hold no reference_logprobs"):
        perform(run, "update", 2, {})


def test_a_damaged_file_is_made_again_by_training(folder):
    path = folder / "artifacts/small/iterations/0003/advantage/advantages.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert states(folder)[3, "advantage"] == ("stale", "advantages.parquet is damaged or missing")
    done = run_grpo(folder, "train", SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert path.read_bytes() == whole


def test_a_run_can_go_on_for_more_iterations(folder):
    done = run_grpo(folder, "train", SMALL, "--iterations", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(folder)[4, "update"][0] == "current"
    assert (folder / "artifacts/small/iterations/0003/update/manifest.json").stat().st_mtime < (
        folder / "artifacts/small/iterations/0004/sample/manifest.json"
    ).stat().st_mtime
    assert not (folder / "artifacts/small/superseded").exists()
