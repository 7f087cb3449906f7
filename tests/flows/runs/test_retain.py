"""The retention rule removes what it says, never what is needed, and a run without it is still a whole one."""

import json
import shutil
import signal
import subprocess
import sys

import pytest

from flows.config.loading import with_settings
from flows.config.schema import KeepConfig
from flows.config.stages import ITERATION
from flows.execution.run_stage import perform
from flows.inspection.disk_usage import space
from flows.inspection.verify import verify
from flows.runs.access import open_run
from flows.runs.forking import fork
from flows.runs.history import History
from flows.runs.promotion import promote
from flows.runs.requirements import removed_for_stale
from flows.runs.retention import plan, remove, retain
from flows.runs.staleness import examine
from stages.contract.digest import file_digest
from stages.contract.errors import ArtifactError, ConfigError
from tests.flows.conftest import ROOT, SMALL, environment, run_grpo


@pytest.fixture(scope="module")
def long_run(small_folder, tmp_path_factory):
    """The small run with seven iterations."""
    artifacts = tmp_path_factory.mktemp("long") / "artifacts"
    shutil.copytree(small_folder / "artifacts" / "small", artifacts / "small")
    for k in range(4, 8):
        for stage in (*ITERATION, "evaluate"):
            perform(artifacts / "small", stage, k, {})
    return artifacts / "small"


@pytest.fixture
def run(long_run, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(long_run, tmp_path / "artifacts" / "small")
    return tmp_path / "artifacts" / "small"


def opened(run):
    return open_run(run.parent, run.name)


def having(run, name):
    return {int(path.parts[-1 - len(name.split("/")) - 1]) for path in run.glob(f"iterations/*/update/{name}")}


def unfinished(run):
    paths, config = opened(run)
    history = History(paths)
    last = history.last()
    return next((s.iteration for s in examine(history, config, last) if s.status != "current"), last + 1)


def follow(run, **rule):
    paths, config = opened(run)
    remove(plan(paths, config, KeepConfig(**rule), unfinished(run)))


def best_of(run, iterations):
    history = History(opened(run)[0])
    success = {k: history.manifest(k, "evaluate").metrics["heldout_success"] for k in iterations}
    return min(success, key=lambda k: (-success[k], k))


def test_each_part_of_the_rule_keeps_what_it_says(run):
    paths, _ = opened(run)
    promote(paths, 4, "by hand")
    best = best_of(run, range(1, 8))
    before = {path: file_digest(path) for path in run.glob("iterations/*/*/*.parquet")}
    follow(run, last=2, every=3, best=1)
    assert having(run, "policy/model.safetensors") == {0, 3, 4, 6, 7, best}
    assert having(run, "optimizer.safetensors") == {7}
    assert {path: file_digest(path) for path in run.glob("iterations/*/*/*.parquet")} == before
    assert unfinished(run) == 8
    assert verify(paths).problems == []
    follow(run, last=1, best=0)
    assert having(run, "policy/model.safetensors") == {0, 4, 7}
    assert plan(paths, opened(run)[1], KeepConfig(last=1, best=0), 8) == []


def test_only_what_was_evaluated_alike_is_ranked(run):
    paths, config = opened(run)
    best = best_of(run, range(1, 8))
    other = next(k for k in (2, 3, 4) if k != best)
    perform(run, "evaluate", other, {"evaluate.samples": config.evaluate.samples + 1})
    manifest = paths.stage(other, "evaluate") / "manifest.json"
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(data | {"metrics": data["metrics"] | {"heldout_success": 1.5}}))
    follow(run, last=1, best=1)
    assert having(run, "policy/model.safetensors") == {0, 7, best}


def test_training_goes_on_from_what_stays_to_the_same_bytes(run, long_run, tmp_path):
    follow(run, last=1, best=0)
    shutil.copytree(long_run, tmp_path / "whole" / "small")
    for root in (run, tmp_path / "whole" / "small"):
        for stage in ITERATION:
            perform(root, stage, 8, {})
    assert History(opened(run)[0]).policy_digest(8) == History(opened(tmp_path / "whole" / "small")[0]).policy_digest(8)


def test_optimizer_states_stay_with_their_policies_where_the_rule_says_so(run):
    follow(run, last=1, every=3, best=0, optimizer="kept")
    assert having(run, "optimizer.safetensors") == having(run, "policy/model.safetensors") - {0} == {3, 6, 7}
    fork(run.parent, "small", 3, "child", {}, print)
    with pytest.raises(ConfigError, match="the retention rule `keep` removed iterations/0005/update/policy"):
        fork(run.parent, "small", 5, "other", {}, print)


def test_a_refreshed_reference_stays_while_an_iteration_reads_it(run):
    paths, config = opened(run)
    reference = {"type": "refresh", "every": 3}
    refreshed = with_settings(config, {"score.reference": reference}, "test")
    rule = KeepConfig(last=1, best=0)

    def stays(done: int) -> set[int]:
        policies = {r.folder for r in plan(paths, refreshed, rule, done + 1) if len(r.files) > 1}
        return {k for k in range(1, 8) if paths.stage(k, "update") not in policies}

    assert stays(5) == {3, 5, 6, 7}  # iteration 6 is held near policy 3
    assert stays(6) == {6, 7}  # iteration 7 near policy 6


def test_what_a_stale_stage_was_made_from_stays(run):
    perform(run, "score", 5, {"score.rewards.1.weight": 1.0})
    assert unfinished(run) == 5
    follow(run, last=1, best=0)
    assert having(run, "policy/model.safetensors") == {0, 4, 5, 6, 7}
    assert having(run, "optimizer.safetensors") == {4, 5, 6, 7}
    perform(run, "advantage", 5, {})
    perform(run, "update", 5, {})


def test_while_the_last_optimizer_state_is_not_there_the_one_before_it_stays(run):
    paths, config = opened(run)
    (paths.stage(7, "update") / "optimizer.safetensors").unlink()
    remove(plan(paths, config, KeepConfig(last=1, best=0), 8))
    assert having(run, "optimizer.safetensors") == {6}
    assert having(run, "policy/model.safetensors") == {0, 6, 7}
    before = History(paths).manifest(7, "update").outputs
    perform(run, "update", 7, {})
    assert History(paths).manifest(7, "update").outputs == before


KILL = """
import os, pathlib, signal, sys
from flows.config.schema import KeepConfig
from flows.runs.retention import plan, remove
from flows.runs.access import open_run
paths, config = open_run(pathlib.Path(sys.argv[1]), "small")
left, unlink = int(sys.argv[2]), pathlib.Path.unlink
def dying(self, missing_ok=False):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    unlink(self, missing_ok)
pathlib.Path.unlink = dying
pathlib.Path.rmdir = lambda self: os.kill(os.getpid(), signal.SIGKILL)
remove(plan(paths, config, KeepConfig(last=1, best=0), 8))
"""


@pytest.mark.parametrize("unlink", [1, 4, 0])  # 0: not at one, but before the first folder that is empty is removed
def test_a_kill_in_the_middle_leaves_a_whole_run(run, unlink):
    command = [sys.executable, "-c", KILL, str(run.parent), str(unlink)]
    done = subprocess.run(command, cwd=ROOT, env=environment() | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    paths, _ = opened(run)
    assert unfinished(run) == 8
    assert verify(paths).problems == []
    retain(paths, with_settings(opened(run)[1], {"keep.last": 1, "keep.best": 0}, "test"), 7, print)
    assert having(run, "policy/model.safetensors") == {0, 7}
    assert [folder for folder in run.rglob("*") if folder.is_dir() and not any(folder.iterdir())] == []


def test_what_was_removed_is_named_where_it_is_asked_for(run):
    follow(run, last=1, best=0)
    folder = run.parents[1]
    told = run_grpo(folder, "status", "small")
    assert "removed by the retention rule: optimizer of 1–6; policy of 1–6" in told.stdout
    assert "stale" not in told.stdout
    refused = run_grpo(folder, "export", "small", "--to", "out", "--iteration", "3")
    assert refused.returncode == 2
    assert "update/policy/config.json: the retention rule `keep` removed it" in refused.stderr
    for stage, file in (("sample", "policy/config.json"), ("update", "policy/config.json")):
        with pytest.raises(ArtifactError, match=f"{file}: missing; the retention rule `keep` removed it"):
            perform(run, stage, 5, {})
    assert verify(opened(run)[0]).problems == []
    paths, config = opened(run)
    assert removed_for_stale(paths, config) is None
    perform(run, "score", 5, {"score.rewards.1.weight": 1.0})
    assert removed_for_stale(paths, config) == "iterations/0004/update/policy"
    perform(run, "score", 5, {})
    assert unfinished(run) == 8


def test_a_fork_loses_nothing_when_its_parent_does(run):
    fork(run.parent, "small", 5, "child", {}, print)
    child = run.parent / "child"
    before = {path: file_digest(path) for path in child.rglob("*.safetensors")}
    rows = {row["of"]: row for row in space(opened(child)[0])}
    assert rows["5"]["all"] == rows["5"]["shared"] > rows["5"]["weights"] > 0
    follow(run, last=1, best=0)
    assert {path: file_digest(path) for path in child.rglob("*.safetensors")} == before
    rows = {row["of"]: row for row in space(opened(child)[0])}
    assert rows["5"]["shared"] == rows["5"]["all"] - rows["5"]["weights"] - rows["5"]["optimizer"]


def test_the_command_shows_before_it_removes_and_training_follows_the_rule(small_folder, tmp_path):
    shutil.copytree(small_folder / "artifacts" / "small", tmp_path / "artifacts" / "small")
    run = tmp_path / "artifacts" / "small"
    perform(run, "score", 2, {})
    assert "has no rule `keep`" in run_grpo(tmp_path, "retain", "small").stderr
    rule = ("retain", "small", "--set", "keep.last=1", "--set", "keep.best=0", "--set", "keep.superseded=false")
    shown = run_grpo(tmp_path, *rule)
    assert "would be freed; --yes does it" in shown.stdout
    assert having(run, "policy/model.safetensors") == {0, 1, 2, 3}
    freed = run_grpo(tmp_path, *rule, "--yes")
    assert freed.stdout.splitlines()[:-1] == shown.stdout.splitlines()[:-1]
    assert having(run, "policy/model.safetensors") == {0, 3}
    assert not (run / "superseded/0002/score.1").exists()
    wrong = run_grpo(tmp_path, "retain", "small", "--set", "update.epochs=1")
    assert "only settings that begin with `keep.`" in wrong.stderr
    settings = ("--iterations", "4", "--set", "keep.last=1", "--set", "keep.best=0")
    done = run_grpo(tmp_path, "train", SMALL, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert having(run, "policy/model.safetensors") == {0, 4}
    assert having(run, "optimizer.safetensors") == {4}
    assert unfinished(run) == 5
