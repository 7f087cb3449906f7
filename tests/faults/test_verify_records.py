"""`grpo verify` proves a run's small records too: frozen configurations, a fork, a promotion, nights and gates."""

import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.config.stages import ITERATION
from flows.execution.run_stage import perform
from flows.inspection.verify import Problem, verify
from flows.runs.access import open_run
from flows.runs.approvals import Question, keep, open_question
from flows.runs.forking import fork
from flows.runs.history import History
from flows.runs.nights import new_night, read_night, write_night
from flows.runs.promotion import promote, promotion
from flows.runs.records import VERSION
from stages.contract.errors import VersionError
from stages.contract.paths import RunPaths
from tests.flows.conftest import run_grpo

KEPT = Path(__file__).parents[1] / "data" / "runs" / "version2"
NIGHT, GATE = "nights/2026-11-20.json", "gates/0002-before-update.json"


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A fork with a promoted policy, a night and a gate's decision."""
    shutil.copytree(KEPT, tmp_path / "artifacts/old")
    paths = fork(tmp_path / "artifacts", "old", 2, "child", {"update.epochs": 2}, print)
    config = open_run(tmp_path / "artifacts", "child")[1]
    promote(paths, 1, "by hand")
    write_night(paths, new_night("2026-11-20", datetime.now(UTC), 2, config.nights))
    keep(paths, Question(gate="before_update", iteration=2), "approved", "", {}, "somebody")
    return paths


def problems(paths: RunPaths) -> list[Problem]:
    found = verify(paths).problems
    assert all(problem.stage is None for problem in found)
    return found


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_records_that_are_true_are_no_problem(paths: RunPaths) -> None:
    assert problems(paths) == []
    for stage in ITERATION:
        perform(paths.root, stage, 3, {})
    grandchild = fork(paths.root.parent, "child", 3, "grandchild", {}, print)
    perform(grandchild.root, "update", 3, {})  # made again, as the parent made it: the record of the fork stays true
    assert problems(grandchild) == problems(paths) == []


def test_a_record_that_cannot_be_read_is_named_with_what_to_do(paths: RunPaths) -> None:
    damaged = ["fork.json", "promoted.json", NIGHT, GATE]
    for name in damaged:
        content = (paths.root / name).read_text()
        (paths.root / name).write_text(content[: len(content) // 2])
    found = {problem.file: problem for problem in problems(paths)}
    assert sorted(found) == sorted(damaged)
    assert all(problem.problem.startswith("damaged, not JSON (") for problem in found.values())
    assert {name: problem.remedy for name, problem in found.items()} == {
        "fork.json": "the run goes on without it once it is removed",
        "promoted.json": "remove it and `grpo promote child --iteration …` again",
        NIGHT: "remove it, and the night begins anew",
        GATE: "remove it, and the gate asks again",
    }
    change_to = {"fork.json": '{"run": "old"}', NIGHT: "[]", GATE: '{"gate": "before_lunch", "iteration": 2}'}
    for name, content in change_to.items():
        (paths.root / name).write_text(content)
    told = {problem.file: problem.problem for problem in problems(paths)}
    assert told["fork.json"] == "damaged (iteration: Field required)"
    assert told[NIGHT].startswith("damaged (all of it: ")
    assert told[GATE].startswith("damaged (gate: ")


def open_fork(paths: RunPaths) -> object:
    return fork(paths.root.parent, "child", 2, "grandchild", {}, print)


READERS: dict[str, Callable[[RunPaths], object]] = {
    "fork.json": open_fork,
    "promoted.json": promotion,
    NIGHT: lambda paths: read_night(paths, "2026-11-20"),
    GATE: open_question,
}


@pytest.mark.parametrize("name", READERS)
def test_a_record_of_newer_code_is_called_newer_and_not_damaged(name: str, paths: RunPaths) -> None:
    change(paths.root / name, version=VERSION + 1, something="that this code knows nothing of")
    told = re.escape(f"{name}: has version {VERSION + 1}, this code reads up to {VERSION}: update grpo-flows")
    with pytest.raises(VersionError, match=told):
        verify(paths)
    with pytest.raises(VersionError, match=told):
        READERS[name](paths)


def test_a_record_that_names_what_is_not_there_is_found(paths: RunPaths) -> None:
    change(paths.promoted, policy="0" * 64)
    change(paths.root / NIGHT, last=7)
    (paths.root / GATE).rename(paths.gates / "0003-before-update.json")
    (promoted, night, gate) = problems(paths)
    assert promoted.problem == "iteration 1 has no policy of the digest that was promoted"
    assert promoted.remedy == "`grpo promote child --iteration 1 --force`, or another iteration"
    assert night.problem == "names iteration 7, and the last one there is 2"
    assert gate.problem == "is about before_update of iteration 2"
    shutil.rmtree(paths.stage(2, "advantage"))
    (paths.gates / "0003-before-update.json").rename(paths.root / GATE)
    told = {problem.file: problem.problem for problem in verify(paths).problems if problem.stage is None}
    assert told[GATE] == "advantage of iteration 2, about which it asks, is not there"
    assert told["fork.json"] == "iterations/0002/advantage/manifest.json is shared, and not there"


def test_a_fork_that_shares_something_else_than_it_says_is_found(paths: RunPaths) -> None:
    change(paths.fork, policy="0" * 64)
    (problem,) = problems(paths)
    assert (problem.file, problem.remedy) == ("fork.json", "fork old anew")
    assert problem.problem == "the policy of iteration 2 is not the one that it names"
    former = paths.former_config(2)
    former.write_text(former.read_text().replace("seed:", "sead:"))
    damaged = next(problem for problem in problems(paths) if problem.file == "run.0002.yaml")
    assert "sead" in damaged.problem
    former.unlink()
    told = [problem.problem for problem in problems(paths)]
    assert told[0] == "run.0002.yaml, the configuration of the shared iterations, is missing"


def test_a_run_under_another_name_is_found(paths: RunPaths) -> None:
    moved = RunPaths.named(paths.root.parent, "moved")
    paths.root.rename(moved.root)
    (problem,) = problems(moved)
    assert (problem.file, problem.problem) == ("run.yaml", "names the run child")


def test_the_command_tells_of_records_and_fails(paths: RunPaths) -> None:
    folder = paths.root.parents[1]
    assert History(paths).last() == 2
    change(paths.promoted, policy="0" * 64)
    told = run_grpo(folder, "verify", "child")
    assert told.returncode == 1
    assert (
        "promoted.json: iteration 1 has no policy of the digest that was promoted; `grpo promote child" in told.stdout
    )
    change(paths.promoted, version=VERSION + 1)
    newer = run_grpo(folder, "verify", "child")
    assert newer.returncode == 2
    assert f"promoted.json: has version {VERSION + 1}, this code reads up to {VERSION}: update" in newer.stderr
    assert "Traceback" not in newer.stdout + newer.stderr
