"""configs/rlhf.yaml, made small: pairs → reward model → PPO with a critic, whose rewards are the model's."""

import json

import polars as pl
import pytest

from flows.config.loading import make_config, read_config
from flows.execution.rescoring import other_rewards, rescore
from flows.execution.run_stage import perform
from flows.inspection.verify import verify
from flows.runs.access import open_run
from flows.runs.history import History
from flows.runs.staleness import examine
from stages.contract.digest import file_digest
from stages.contract.errors import ConfigError
from tests.flows.conftest import ROOT, run_grpo

RLHF = ROOT / "configs" / "rlhf.yaml"
SMALLER = {
    "prompts.source.size": 300,
    "warmstart.model.hidden_size": 64,
    "warmstart.model.layers": 1,
    "warmstart.model.heads": 2,
    "warmstart.tuning.steps": 30,
    "warmstart.tuning.batch_size": 32,
    "reward_model.epochs": 1,
    "sample.prompts": 32,
    "evaluate.prompts": 16,
    "hardware.threads": 1,
}


@pytest.fixture(scope="module")
def rlhf(tmp_path_factory):
    """The run after its reward model, the digest of that, and the run after two iterations."""
    folder = tmp_path_factory.mktemp("rlhf")
    settings = [part for name, value in SMALLER.items() for part in ("--set", f"{name}={value}")]
    first = run_grpo(folder, "reward-model", RLHF, *settings)
    assert first.returncode == 0, first.stdout + first.stderr
    paths, _ = open_run(folder / "artifacts", "rlhf")
    made = sorted(path.name for path in paths.iterations.glob("*/*"))
    weights = file_digest(paths.reward_model / "model.safetensors")
    done = run_grpo(folder, "train", RLHF, *settings, "--iterations", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return paths, first.stdout, made, weights


def test_the_reward_model_is_trained_once_and_says_how_good_it_is(rlhf):
    paths, text, made, weights = rlhf
    assert made == ["prompts", "reward_model", "update"]
    manifest = json.loads((paths.stage(0, "reward_model") / "manifest.json").read_text())
    figures = manifest["metrics"]
    heldout = pl.read_parquet(paths.stage(0, "prompts") / "heldout.parquet").height
    assert figures["heldout_pairs"] == 4 * heldout
    assert f"trained on {figures['pairs']:.0f} pairs; of {4 * heldout} held-out pairs: accuracy" in text
    assert "iterations/0000/reward_model/model" in text
    assert file_digest(paths.reward_model / "model.safetensors") == weights  # by train too
    assert History(paths).manifest(0, "reward_model").started == manifest["started"]


def test_ppo_is_rewarded_by_it_and_measured_by_the_verifier(rlhf):
    paths, *_ = rlhf
    table = pl.read_parquet(paths.stage(2, "score") / "scores.parquet")
    assert table["reward"].to_list() == table["reward_reward_model"].to_list()
    assert table["reward"].n_unique() > 16
    assert set(table["reward_reasoning_gym"]) <= {0.0, 1.0}
    assert table["values"].null_count() == 0
    advantages = pl.read_parquet(paths.stage(2, "advantage") / "advantages.parquet")
    assert advantages["train"].all() and advantages["returns"].null_count() == 0
    heldout = pl.read_parquet(paths.stage(2, "evaluate") / "scores.parquet")
    success = json.loads((paths.stage(2, "evaluate") / "manifest.json").read_text())["metrics"]["heldout_success"]
    assert success == pytest.approx(heldout["reward_reasoning_gym"].mean())
    assert (paths.critic(2) / "model.safetensors").is_file()
    assert verify(paths).problems == []


def test_it_is_rescored_by_the_verifier_with_the_critics_values(rlhf, tmp_path):
    paths, *_ = rlhf
    _, config = open_run(paths.root.parent, "rlhf")
    truth = {"score.rewards.0.weight": 0, "score.rewards.1.weight": 1}
    done = rescore(paths, config, other_rewards(config, None, truth), [1, 2], tmp_path / "truth")
    rows = pl.read_parquet(done.folder / "completions.parquet").filter(~pl.col("heldout"))
    assert rows["new"].to_list() == rows["reward_reasoning_gym"].to_list()
    assert rows["reward_reward_model"].to_list() == pytest.approx(rows["old"].to_list(), abs=1e-5)
    assert rows["right"].to_list() == [value == 1 for value in rows["new"]]
    # advantages of γ = λ = 1 are the reward less the value, whitened: a right answer has more of it
    by_truth = {right: part["new_advantage"].mean() for (right,), part in rows.group_by("right")}
    assert len(by_truth) == 1 or by_truth[True] > by_truth[False]


def test_scores_are_stale_when_it_is_trained_anew(rlhf):
    paths, *_ = rlhf
    _, config = open_run(paths.root.parent, "rlhf")
    assert {state.status for state in examine(History(paths), config, 2)} == {"current"}
    perform(paths.root, "reward_model", 0, {"reward_model.batch_size": 64})
    stale = [(s.iteration, s.stage, s.reason) for s in examine(History(paths), config, 2) if s.status == "stale"]
    weights = "iterations/0000/reward_model/model/model.safetensors has changed"
    assert stale[:2] == [(0, "evaluate", weights), (1, "score", weights)]
    assert "sample" not in {stage for k, stage, _ in stale if k == 1}


def test_a_reward_model_that_nobody_trains_is_refused(tmp_path):
    data = read_config(RLHF, {}).model_dump(mode="json")
    with pytest.raises(ConfigError, match="a reward_model without a path is the run's own: add a section"):
        make_config(data | {"reward_model": None}, "x")
    none = run_grpo(tmp_path, "reward-model", ROOT / "configs" / "quickstart.yaml")
    assert none.returncode == 2
    assert "has no section `reward_model`" in none.stderr
    gone = run_grpo(tmp_path, "train", RLHF, "--set", "reward_model.model=nowhere")
    assert gone.returncode == 2
    assert "reward_model.model: nothing at nowhere" in gone.stderr
    assert not (tmp_path / "artifacts" / "rlhf").exists()
