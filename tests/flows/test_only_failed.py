"""What failed is judged once more, and the rest is kept: `grpo stage score RUN --iteration K --only-failed`."""

import shutil

import polars as pl
import pytest

from flows.config.loading import read_config
from flows.execution.replay import replay
from flows.execution.run_stage import perform
from flows.inspection.lineage import lineage
from flows.runs.history import History
from flows.runs.staleness import state_of
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.manifest import read_manifest
from stages.contract.paths import RunPaths
from tests.flows.conftest import SMALL, run_grpo

SERVICE = """
from pathlib import Path

HERE = Path(__file__).parent

def ask(prompts, completions, completion_ids, **columns):
    with (HERE / "asked").open("a") as asked:
        asked.write("".join(f"{c!r}\\n" for c in completions))
    if (HERE / "down").exists() and len(completion_ids[0]) % 2:
        raise ConnectionError("no answer")
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def folder(small_folder, tmp_path):
    """A copy of the small run, scored in iteration 2 by a service that was down for some rows."""
    shutil.copytree(small_folder, tmp_path / "copy")
    folder = tmp_path / "copy"
    (folder / "service.py").write_text(SERVICE)
    (folder / "down").touch()
    return folder


def test_what_failed_is_judged_once_more_and_the_rest_is_kept(folder):
    run, paths = folder / "artifacts/small", RunPaths(folder / "artifacts/small")
    reward = (
        f"{{type: python, function: {folder / 'service.py'}:ask, at_once: row, conversational: false, weight: 0.1}}"
    )
    done = run_grpo(folder, "stage", "score", "small", "--iteration", "2", "--set", f"score.rewards.2={reward}")
    assert done.returncode == 0, done.stdout + done.stderr
    before = pl.read_parquet(run / "iterations/0002/score/scores.parquet")
    failed = before.filter(pl.col("status_python") == "error").height
    assert 0 < failed < before.height
    assert before["reward"].null_count() == failed

    (folder / "down").unlink()
    (folder / "asked").unlink()
    done = run_grpo(folder, "stage", "score", "small", "--iteration", "2", "--only-failed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{failed} verdicts were asked for again, 0 rows have no reward" in " ".join(done.stdout.split())
    assert len((folder / "asked").read_text().splitlines()) == failed
    after = pl.read_parquet(run / "iterations/0002/score/scores.parquet")
    assert after["reward"].null_count() == after["error"].null_count() - after.height == 0
    whole = before["status_python"] == "ok"
    assert after.filter(whole).equals(before.filter(whole))
    assert after["reference_logprobs"].equals(before["reference_logprobs"])

    manifest = read_manifest(run / "iterations/0002/score")
    former = "superseded/0002/score.2/scores.parquet"
    assert manifest.notes["judged_again"] == {"reasoning_gym": 0, "length": 0, "python": failed}
    assert (manifest.inputs[former].rows, (run / former).is_file()) == (64, True)
    assert state_of(History(paths), read_config(SMALL, {}), 2, "score").status == "current"
    made = {stage["folder"] for stage in lineage(run / "iterations/0002/score/scores.parquet")["stages"]}
    assert {"iterations/0002/score", "superseded/0002/score.2"} <= made

    (folder / "service.py").write_text(SERVICE + "# changed")
    with pytest.raises(ConfigError, match=r"service.py has changed since: run the stage without --only-failed"):
        perform(run, "score", 2, manifest.overrides, former="iterations/0002/score/scores.parquet")
    (folder / "service.py").write_text(SERVICE)

    (replayed,) = replay(paths, read_config(SMALL, {}), 2, "score", {})
    assert replayed["equal"]
    shutil.rmtree(run / "superseded/0002/score.2")
    gone = "score of iteration 2 cannot be replayed: superseded/0002/score.2, whose verdicts it kept, is gone"
    with pytest.raises(ArtifactError, match=gone):
        replay(paths, read_config(SMALL, {}), 2, "score", {})


def test_verdicts_of_other_rewards_or_other_rollouts_are_not_kept(folder):
    run = folder / "artifacts/small"
    scores = "iterations/0002/score/scores.parquet"
    with pytest.raises(ConfigError, match="the reward 'length' was configured otherwise"):
        perform(run, "score", 2, {"score.rewards.1.target": 3}, former=scores)
    perform(run, "sample", 2, {"sample.sampling.temperature": 0.5})
    with pytest.raises(ConfigError, match="the scores of iteration 2 are of other rollouts"):
        perform(run, "score", 2, {}, former=scores)
    assert not (run / "superseded/0002/score.1").exists()
    refused = run_grpo(folder, "stage", "sample", "small", "--iteration", "2", "--only-failed")
    assert (refused.returncode, "only_failed is for the stage score, not for sample" in refused.stderr) == (2, True)
