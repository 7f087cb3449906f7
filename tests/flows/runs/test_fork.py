"""A fork shares iterations with its parent without a copy, and neither ever changes the other."""

import json
import os
import shutil
from pathlib import Path

import pytest

from flows.config.loading import read_config
from flows.config.stages import ITERATION
from flows.execution.run_stage import perform
from flows.runs.access import open_run
from flows.runs.forking import fork, link, read_fork
from flows.runs.history import History
from flows.runs.staleness import examine
from stages.contract.digest import file_digest
from stages.contract.errors import ConfigError
from tests.flows.conftest import run_grpo


@pytest.fixture
def folder(small_folder, tmp_path):
    """A copy of the small run that a test may change."""
    shutil.copytree(small_folder / "artifacts" / "small", tmp_path / "artifacts" / "small")
    return tmp_path


def files(run: Path) -> dict[str, str]:
    return {
        path.relative_to(run).as_posix(): file_digest(path) for path in sorted(run.glob("iterations/**/*.parquet"))
    } | {
        path.relative_to(run).as_posix(): file_digest(path) for path in sorted(run.glob("iterations/**/*.safetensors"))
    }


def go_on(artifacts: Path, name: str, *iterations: int) -> None:
    for k in iterations:
        for stage in (*ITERATION, "evaluate"):
            perform(artifacts / name, stage, k, {})


def states(artifacts: Path, name: str, last: int) -> dict[tuple[int, str], str]:
    paths, config = open_run(artifacts, name)
    return {(s.iteration, s.stage): s.status for s in examine(History(paths), config, last)}


def test_a_fork_without_changes_goes_on_to_the_bytes_of_its_parent(folder):
    done = run_grpo(folder, "fork", "small", "--at", "1", "--name", "twin")
    assert done.returncode == 0, done.stderr
    assert "shares iterations 0 to 1 of small; `grpo resume twin` goes on" in done.stdout
    small, twin = folder / "artifacts" / "small", folder / "artifacts" / "twin"
    weights = "iterations/0001/update/policy/model.safetensors"
    assert (small / weights).stat().st_ino == (twin / weights).stat().st_ino
    assert not (twin / "iterations/0002").exists()
    again = run_grpo(folder, "resume", "twin")
    assert again.returncode == 0, again.stdout + again.stderr
    assert files(twin) == files(small)
    assert len(files(twin)) == 36  # 9 of iteration 0 and 9 of each other one
    record = json.loads((twin / "fork.json").read_text())
    assert (record["run"], record["iteration"]) == ("small", 1)
    assert (
        record["policy"]
        == json.loads((small / "iterations/0002/update/manifest.json").read_text())["notes"]["parent_digest"]
    )
    assert "forked from small at iteration 1" in run_grpo(folder, "status", "twin").stdout


def test_a_fork_with_changes_keeps_what_it_shares_current(folder):
    artifacts = folder / "artifacts"
    before = files(artifacts / "small")
    fork(artifacts, "small", 2, "colder", {"sample.sampling.max_tokens": 4, "score.rewards.1.weight": 0.5}, print)
    assert set(states(artifacts, "colder", 2).values()) == {"current"}
    go_on(artifacts, "colder", 3)
    assert set(states(artifacts, "colder", 3).values()) == {"current"}
    manifest = History(open_run(artifacts, "colder")[0]).manifest(3, "sample")
    assert manifest is not None and manifest.config["sampling"]["max_tokens"] == 4
    assert manifest.overrides == {}
    assert files(artifacts / "small") == before
    # a stage of a shared iteration is made as its parent made it
    perform(artifacts / "colder", "sample", 2, {})
    assert set(states(artifacts, "colder", 3).values()) == {"current"}


def test_neither_run_changes_the_others_files(folder):
    artifacts = folder / "artifacts"
    fork(artifacts, "small", 3, "child", {}, print)
    small, child = files(artifacts / "small"), files(artifacts / "child")
    assert small == child
    perform(artifacts / "child", "update", 3, {"update.epochs": 1})
    assert files(artifacts / "small") == small
    other = files(artifacts / "child")
    assert {name for name in child if other[name] != child[name]} == {
        "iterations/0003/update/optimizer.safetensors",
        "iterations/0003/update/policy/model.safetensors",
        "iterations/0003/update/steps.parquet",
    }
    perform(artifacts / "small", "score", 2, {"score.rewards.1.weight": 1.0})
    assert files(artifacts / "child") == other
    assert (
        file_digest(artifacts / "child/superseded/0003/update.1/policy/model.safetensors")
        == (small["iterations/0003/update/policy/model.safetensors"])
    )
    shutil.rmtree(artifacts / "small")
    assert set(states(artifacts, "child", 2).values()) == {"current"}


def test_prompts_that_were_added_go_along(folder):
    artifacts = folder / "artifacts"
    data = artifacts / "small" / "data"
    data.mkdir()
    (data / "more.jsonl").write_text('{"prompt": "sum", "expression": "90 + 9", "answer": "99"}\n')
    perform(artifacts / "small", "prompts", 4, {})
    go_on(artifacts, "small", 4)
    (data / "later.jsonl").write_text('{"prompt": "sum", "expression": "91 + 8", "answer": "99"}\n')
    fork(artifacts, "small", 4, "child", {}, print)
    child = artifacts / "child" / "data"
    assert {path.name for path in child.iterdir()} == {"more.jsonl"}
    assert (child / "more.jsonl").stat().st_ino != (data / "more.jsonl").stat().st_ino
    before = files(artifacts / "child")
    perform(artifacts / "child", "prompts", 4, {})
    assert files(artifacts / "child") == before
    assert set(states(artifacts, "child", 4).values()) == {"current"}


def test_a_fork_of_a_fork_knows_all_configurations(folder):
    artifacts = folder / "artifacts"
    fork(artifacts, "small", 1, "one", {"update.epochs": 1}, print)
    go_on(artifacts, "one", 2)
    fork(artifacts, "one", 2, "two", {"update.minibatches": 1}, print)
    go_on(artifacts, "two", 3)
    paths, config = open_run(artifacts, "two")
    history = History(paths)
    made = [(history.config(k, config).update.epochs, history.config(k, config).update.minibatches) for k in (1, 2, 3)]
    assert made == [(2, 2), (1, 2), (1, 1)]
    assert set(states(artifacts, "two", 3).values()) == {"current"}
    assert read_fork(paths).run == "one"
    with pytest.raises(ConfigError, match="iteration 0 of one is one that it shares: fork small --at 0 instead"):
        fork(artifacts, "one", 0, "three", {}, print)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--at", "1", "--name", "small"), "artifacts/small: is there already"),
        (("--at", "1", "--name", "../out"), "run name '../out'"),
        (("--at", "4", "--name", "new"), "at iteration 4: sample of iteration 4 is missing"),
        (("--at", "1", "--name", "new", "--set", "prompts.heldout=0.5"), "prompts.heldout: decides what lies before"),
        (
            ("--at", "1", "--name", "new", "--set", "warmstart.tuning=null"),
            "warmstart.tuning: decides what lies before",
        ),
        (("--at", "1", "--name", "new", "--set", "update.epoch=2"), "did you mean 'epochs'"),
    ],
)
def test_what_cannot_be_forked_is_said_in_a_sentence_and_leaves_nothing(small_folder, arguments, told):
    done = run_grpo(small_folder, "fork", "small", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in (small_folder / "artifacts").iterdir()} == {"small", ".prefect"}


def test_a_stale_iteration_is_not_forked(folder):
    perform(folder / "artifacts/small", "score", 2, {"score.rewards.1.weight": 1.0})
    with pytest.raises(ConfigError, match="advantage of iteration 2 is stale"):
        fork(folder / "artifacts", "small", 3, "new", {}, print)
    fork(folder / "artifacts", "small", 1, "new", {}, print)


def test_the_configuration_of_a_fork_is_one_that_train_takes(folder):
    fork(folder / "artifacts", "small", 1, "child", {"update.epochs": 1}, print)
    config = read_config(folder / "artifacts/child/run.yaml", {})
    assert (config.run, config.update.epochs) == ("child", 1)
    assert read_config(folder / "artifacts/child/run.0001.yaml", {}).update.epochs == 2


def test_two_file_systems_share_by_a_copy(tmp_path):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    source = memory / f"grpo-flows-{os.getpid()}"
    source.write_bytes(b"weights")
    try:
        assert not link(source, tmp_path / "a" / "copy")
        assert (tmp_path / "a" / "copy").read_bytes() == b"weights"
        assert link(tmp_path / "a" / "copy", tmp_path / "b" / "link")
        assert (tmp_path / "b" / "link").stat().st_ino == (tmp_path / "a" / "copy").stat().st_ino
    finally:
        source.unlink()


def test_a_fork_is_made_and_trained_from_the_ui(small_folder, served):
    artifacts = served.folder / "artifacts"
    shutil.copytree(small_folder / "artifacts" / "small", artifacts / "parent")
    overrides = {"update": {"epochs": 1}}
    asked = {"run": "parent", "at": 2, "name": "offspring", "overrides": overrides, "go_on": True}
    flow_run = served.start("fork", **asked, iterations=3)
    for count in (1, 2):  # the second time as after a crash: the run is there already
        done = served.await_state(flow_run, "COMPLETED", "FAILED", "CRASHED")
        assert done["type"] == "COMPLETED", done["message"]
        assert served.api("GET", f"/flow_runs/{flow_run}")["run_count"] == count
        if count == 1:
            scheduled = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
            served.api("POST", f"/flow_runs/{flow_run}/set_state", scheduled)
    assert set(states(artifacts, "offspring", 3).values()) == {"current"}
    assert open_run(artifacts, "offspring")[1].update.epochs == 1
