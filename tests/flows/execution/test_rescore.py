"""`grpo rescore`: what other rewards would have said of stored completions, and that the run stays as it is."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.config.loading import make_config
from flows.execution.rescoring import iterations_of, other_rewards, place_for, rescore
from flows.runs.access import open_run
from stages.contract.digest import file_digest
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.manifest import read_manifest
from tests.flows.conftest import ROOT, run_grpo
from tests.score.judge_server import judging

OTHER = """
rewards:
  - {type: reasoning_gym}
  - {type: length, name: brevity, target: 1, limit: 4, weight: -0.5}
"""


def all_of(folder):
    """Everything in a folder: names, content, and when it was written."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, file_digest(path) if path.is_file() else None)
        for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture(scope="module")
def rescored(small_folder, tmp_path_factory):
    """The small run rescored by the command: where, what was printed, and the run before and after."""
    folder = tmp_path_factory.mktemp("rescored")
    (folder / "other.yaml").write_text(OTHER)
    run = small_folder / "artifacts" / "small"
    before = all_of(run)
    to, artifacts = folder / "comparison", small_folder / "artifacts"
    arguments = ("--rewards", folder / "other.yaml", "--iterations", "1:2", "--to", to, "--artifacts", artifacts)
    done = run_grpo(folder, "rescore", "small", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return to, done.stdout, before, all_of(run)


def test_nothing_in_the_run_changes(rescored):
    _, _, before, after = rescored
    assert len(before) > 50
    assert after == before


def test_the_new_reward_is_the_weighted_sum_and_its_advantages_are_those_of_the_runs_method(rescored, small_folder):
    to, *_ = rescored
    rows = pl.read_parquet(to / "completions.parquet")
    train = rows.filter(~pl.col("heldout"))
    assert train.group_by("iteration").len().sort("iteration").rows() == [(1, 64), (2, 64)]
    assert rows.filter("heldout")["iteration"].unique().sort().to_list() == [1, 2]
    iterations = small_folder / "artifacts" / "small" / "iterations"
    old = pl.read_parquet(iterations / "0002" / "score" / "scores.parquet")
    mine = train.filter(iteration=2).join(old, on=["prompt_id", "sample"], suffix="_stored", validate="1:1")
    assert mine["old"].to_list() == mine["reward"].to_list()
    assert mine["reward_reasoning_gym"].to_list() == mine["reward_reasoning_gym_stored"].to_list()
    assert mine["right"].to_list() == [value >= 1 for value in mine["reward_reasoning_gym_stored"]]
    brevity = ((4 - mine["length"]) / 3).clip(0, 1)
    wanted = mine["reward_reasoning_gym"] - 0.5 * brevity
    assert mine["new"].to_list() == pytest.approx(wanted.to_list())
    groups = mine.with_columns(wanted.alias("wanted")).group_by("prompt_id", maintain_order=True)
    for _, group in groups:
        mean, std = group["wanted"].mean(), group["wanted"].std()
        constant = group["wanted"].max() == group["wanted"].min()
        by_hand = [0.0 if constant else (value - mean) / (std + 1e-4) for value in group["wanted"]]
        assert group["new_advantage"].to_list() == pytest.approx(by_hand, abs=1e-5)
    advantages = pl.read_parquet(iterations / "0002" / "advantage" / "advantages.parquet")
    used = advantages.join(mine, on=["prompt_id", "sample"], validate="1:1")
    assert used["old_advantage"].to_list() == pytest.approx(used["advantages"].list.first().to_list())
    turned = train.filter(pl.col("sides").is_in(["+-", "-+"]))
    assert turned.height > 0
    assert ((turned["old_advantage"] > 0) == (turned["sides"] == "+-")).all()


def test_what_is_printed_fits_a_terminal_and_is_what_the_tables_hold(rescored):
    to, text, *_ = rescored
    moves = pl.read_parquet(to / "iterations.parquet").filter(~pl.col("heldout"))
    assert moves["iteration"].to_list() == [1, 2, None]
    [line] = [line.split() for line in text.splitlines() if line.strip().startswith("all ")]
    assert [int(cell) for cell in line[4:]] == [
        moves.row(2, named=True)[name] for name in ("up", "down", "gained", "lost")
    ]
    for title in ("brevity", "constant", "held-out completions", "wrong answer", "they would change sides"):
        assert title in text
    everything = pl.read_parquet(to / "rewards.parquet").filter(pl.col("iteration").is_null() & ~pl.col("heldout"))
    assert everything["reward"].to_list() == ["old", "new", "reasoning_gym", "brevity"]
    assert f"{everything['mean'][1]:.4f}" in text
    tables = [line for line in text.splitlines() if not line.startswith((" ", "/"))]
    assert max(map(len, tables)) <= 80
    assert not any("…" in line for line in tables)


def test_the_manifest_says_what_was_read_and_written(rescored):
    to, *_ = rescored
    manifest = read_manifest(to)
    assert manifest is not None
    assert set(manifest.outputs) == {"completions.parquet", "rewards.parquet", "iterations.parquet"}
    assert {"iterations/0001/sample/rollouts.parquet", "iterations/0002/score/scores.parquet"} <= set(manifest.inputs)
    assert "iterations/0003/score/scores.parquet" not in manifest.inputs
    assert manifest.config["iterations"] == [1, 2]
    assert manifest.config["rewards"][1]["weight"] == -0.5


@pytest.mark.parametrize("version", ["version1", "version2"])
def test_runs_of_older_code_are_rescored_too(version, tmp_path):
    shutil.copytree(ROOT / "tests" / "data" / "runs" / version, tmp_path / "artifacts" / "old")
    paths, config = open_run(tmp_path / "artifacts", "old")
    before = all_of(paths.root)
    rewards = [{"type": "length", "target": 0, "limit": 4}, {"type": "equations", "weight": 0.5}]
    (tmp_path / "other.yaml").write_text(json.dumps({"score": {"rewards": rewards}}))
    other = other_rewards(config, tmp_path / "other.yaml", {"score.rewards.0.limit": 5})
    done = rescore(paths, config, other, iterations_of(paths, None), place_for(paths, "other"))
    assert done.folder == tmp_path / "artifacts" / ".rescored" / "old" / "other"
    assert place_for(paths, "other").name == "other.2"
    rows = pl.read_parquet(done.folder / "completions.parquet")
    assert rows.filter(~pl.col("heldout")).height == 36
    assert rows["reward_length"].to_list() == pytest.approx(((5 - rows["length"]) / 5).clip(0, 1).to_list())
    assert all_of(paths.root) == before
    with pytest.raises(ArtifactError, match="is there already"):
        rescore(paths, config, other, [1], done.folder)


def test_a_judge_is_asked_once_more_with_the_key_of_the_environment_and_its_cost_is_told(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "tests/data/runs/version2", tmp_path / "artifacts/old")
    monkeypatch.setenv("JUDGE_KEY", "sk-mine")
    with judging() as server:
        reward = {"type": "judge", "model": "m", "rubric": "r", "url": server.url}
        keys = {"key": "JUDGE_KEY", "key_block": "nowhere", "price": {"prompt": 1, "completion": 0}}
        (tmp_path / "other.yaml").write_text(json.dumps({"rewards": [reward | keys]}))
        options = ["--rewards", str(tmp_path / "other.yaml"), "--artifacts", str(tmp_path / "artifacts")]
        done = CliRunner().invoke(app, ["rescore", "old", *options, "--to", str(tmp_path / "to")])
    assert done.exit_code == 0, done.output
    assert set(server.keys) == {"Bearer sk-mine"}
    assert not (tmp_path / "artifacts" / ".prefect").exists()  # no block was needed, and no server
    manifest, rows = read_manifest(tmp_path / "to"), pl.read_parquet(tmp_path / "to" / "completions.parquet")
    assert rows["note_judge"].null_count() == 0
    assert manifest.metrics["judge_prompt_tokens"] == 100 * rows.height == 100 * len(server.asked)
    assert manifest.metrics["judge_cost"] == pytest.approx(rows.height * 100 / 1e6)


def test_rewards_that_may_say_others_now_can_be_asked_again(small_folder):
    _, config = open_run(small_folder / "artifacts", "small")
    data = config.model_dump(mode="json")
    judge = {"type": "judge", "model": "m", "rubric": "r", "url": "http://a/v1"}
    data |= {"score": {"rewards": [judge], "reference": "start"}, "evaluate": None}
    judged = make_config(data, "here")
    again = other_rewards(judged, None, {})
    assert again.rewards == judged.score.rewards
    assert other_rewards(judged, None, {"score.rewards.0.url": "http://b/v1"}).rewards[0].url == "http://b/v1"


def test_json_and_single_settings(small_folder, tmp_path):
    settings = ["--set", "score.rewards.0.weight=0", "--iterations", "3", "--json", "--to", str(tmp_path / "c")]
    done = CliRunner().invoke(app, ["rescore", "small", *settings, "--artifacts", str(small_folder / "artifacts")])
    read = json.loads(done.stdout)
    assert [row["reward"] for row in read["rewards"][:4]] == ["old", "new", "reasoning_gym", "length"]
    assert read["rewards"][1]["mean"] == pytest.approx(0.1 * read["rewards"][3]["mean"])
    assert read["iterations"][0]["iteration"] == 3


def test_what_cannot_be_used_is_said_and_leaves_nothing(small_folder, tmp_path):
    paths, config = open_run(small_folder / "artifacts", "small")

    def refused(message, text=None, settings=None, iterations=None, to=tmp_path / "to"):
        (tmp_path / "other.yaml").write_text(text or OTHER)
        with pytest.raises((ConfigError, ArtifactError), match=message):
            other = other_rewards(config, tmp_path / "other.yaml", settings or {})
            rescore(paths, config, other, iterations_of(paths, iterations), to)
        assert not to.exists()

    refused("has no list `rewards`", text="run: x")
    refused("no file|cannot be used", text="rewards: []")
    refused(r"score\.rewards\.0: .*'lenth'|lenth", text="rewards: [{type: lenth}]")
    with_curriculum = config.model_dump(mode="json")
    with_curriculum["sample"]["curriculum"] = {"type": "success", "reward": "reasoning_gym"}
    curriculum = make_config(with_curriculum, "here")
    (tmp_path / "other.yaml").write_text("rewards: [{type: length, target: 1, limit: 4}]")
    assert len(other_rewards(curriculum, tmp_path / "other.yaml", {}).rewards) == 1
    refused("these are the run's own rewards", text=json.dumps(config.model_dump(mode="json")))
    refused(r"update\.epochs: only settings that begin with `score\.rewards\.`", settings={"update.epochs": 2})
    refused("a range like 1:40", iterations="a:b")
    refused("a range like 1:40", iterations="-1")
    refused(r"no scores of iterations 7:; there are 1–3", iterations="7:")
    refused("no such|missing or empty", text=f"rewards: [{{type: reward_model, path: {tmp_path / 'nowhere'}}}]")
    refused("add a section `reward_model`", text="rewards: [{type: reward_model}]")
    refused("lies in the run small", to=paths.root / "comparison")
    other_run = shutil.copytree(ROOT / "tests/data/runs/version2", tmp_path / "artifacts/other")
    refused("lies in the run other", to=other_run / "some/comparison")
    shutil.rmtree(tmp_path / "artifacts")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["other.yaml"]
