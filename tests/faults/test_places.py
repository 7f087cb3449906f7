"""What counts as a stage of a run: its folder in place, inside the run; nothing aside, and nothing behind a link."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.config.schema import KeepConfig
from flows.config.stages import ITERATION
from flows.execution.run_stage import perform
from flows.inspection.compare import compare
from flows.inspection.lineage import lineage
from flows.inspection.queries import sql
from flows.inspection.verify import verify
from flows.runs.access import open_run
from flows.runs.forking import fork
from flows.runs.history import History, chosen
from flows.runs.retention import plan
from stages.contract.digest import file_digest
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.lock import folder_lock
from stages.contract.manifest import stage_folders
from stages.contract.paths import RunPaths
from stages.contract.pruned import note_pruned

KEPT = Path(__file__).parents[1] / "data" / "runs" / "version2"


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    shutil.copytree(KEPT, tmp_path / "artifacts" / "old")
    return RunPaths.named(tmp_path / "artifacts", "old")


def test_what_stands_aside_counts_for_nothing(paths: RunPaths) -> None:
    before = stage_folders(paths.iterations)
    shutil.copytree(paths.iteration(2), paths.iterations / "0002.old")
    shutil.copytree(paths.iteration(2), paths.iterations / "3")
    shutil.copytree(paths.stage(2, "sample"), paths.partial(4, "sample"))
    assert stage_folders(paths.iterations) == before
    assert [folder.relative_to(paths.iterations).as_posix() for folder in before][3:7] == [
        f"0001/{stage}" for stage in ("advantage", "sample", "score", "update")
    ]
    assert History(paths).last() == 2
    assert verify(paths).problems == []
    assert chosen(paths, "update/manifest.json", None, "policy") == 2
    assert sql(paths, "select max(iteration) as k, count(*) as n from scores").row(0) == (2, 36)


def test_nothing_behind_a_link_is_proved_removed_or_shared(paths: RunPaths, tmp_path: Path) -> None:
    outside, policy = tmp_path / "elsewhere", paths.policy(1)
    policy.rename(outside)
    policy.symlink_to(outside)
    names = {path.name for path in outside.iterdir()}
    problems = verify(paths).problems
    assert {problem.problem for problem in problems} == {"behind a symbolic link, iterations/0001/update/policy"}
    assert len(problems) == len(names)
    config = open_run(paths.root.parent, "old")[1]
    told = "0001/update/policy: a symbolic link, and what it leads to is no part of the run"
    with pytest.raises(ArtifactError, match=told):
        plan(paths, config, KeepConfig(last=1, best=0), 3)
    with pytest.raises(ArtifactError, match=told):
        fork(paths.root.parent, "old", 1, "child", {}, print)
    assert {path.name for path in outside.iterdir()} == names
    assert {path.name for path in paths.root.parent.iterdir()} == {"old"}


def test_what_reruns_replaced_is_not_removed_behind_a_link(paths: RunPaths, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    shutil.copytree(paths.iteration(1), outside)
    (paths.root / "superseded").mkdir()
    (paths.root / "superseded" / "0001").symlink_to(outside)
    with pytest.raises(ArtifactError, match="superseded/0001: a symbolic link"):
        plan(paths, open_run(paths.root.parent, "old")[1], KeepConfig(superseded=False), 3)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"update.lora": {"rank": 4, "alpha": 8}}, "0001/update/policy/adapter_config.json, which was never made"),
        ({"update.average": {"decay": 0.9}}, "0001/update/average, which was never made"),
        (
            {"advantage": {"type": "reinforce", "baseline": "running"}},
            "0001/advantage/state.parquet, which was never made",
        ),
    ],
)
def test_a_fork_that_wants_what_was_never_made_is_refused_at_once(
    paths: RunPaths, overrides: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        fork(paths.root.parent, "old", 1, "child", overrides, print)
    fork(paths.root.parent, "old", 0, "child", overrides, print)
    fork(paths.root.parent, "old", 1, "plain", {"update.epochs": 3}, print)


def test_what_killed_forks_and_replays_left_is_removed_unless_one_lives(paths: RunPaths) -> None:
    artifacts = paths.root.parent
    dead, living, other = (artifacts / name for name in (".replay-dead", ".replay-living", ".child.partial"))
    for folder in (dead / "old", living / "old", other):
        shutil.copytree(KEPT, folder)
    with pytest.raises(ConfigError, match=r"there are: old$"):
        open_run(artifacts, "none")
    with folder_lock(living) as held:
        assert held
        fork(artifacts, "old", 1, "new", {}, print)
    assert {path.name for path in artifacts.iterdir()} == {"old", "new", living.name}


def test_the_lineage_of_a_path_with_dots_passes_by_a_damaged_superseded_output(paths: RunPaths) -> None:
    bad = paths.superseded(1, "score", 1)
    shutil.copytree(paths.stage(1, "score"), bad)
    (bad / "manifest.json").write_text("{")
    scores = paths.stage(1, "score") / "manifest.json"
    scores.write_text(scores.read_text().replace(file_digest(scores.parent / "scores.parquet"), "0" * 64))
    file = "advantage/advantages.parquet"
    traced = lineage(paths.iteration(2) / ".." / "0001" / file)
    assert traced["file"] == f"iterations/0001/{file}"
    lost = {entry["name"] for entry in traced["stages"][0]["inputs"] if entry["lost"]}
    assert lost == {"iterations/0001/score/scores.parquet"}


def test_what_the_rule_removed_is_counted_by_itself(paths: RunPaths) -> None:
    before, optimizer = verify(paths), paths.stage(1, "update") / "optimizer.safetensors"
    note_pruned(optimizer.parent, frozenset({optimizer.name}))
    size = optimizer.stat().st_size
    optimizer.unlink()
    after = verify(paths)
    assert (after.files, after.size, after.pruned) == (before.files - 1, before.size - size, 1)
    assert after.problems == [] and before.pruned == 0


def test_what_makes_a_damaged_file_again_first_makes_what_the_rule_removed(paths: RunPaths) -> None:
    for k in (3, 4):  # by this code, whose rounding need not be that of the code that made the kept iterations
        for stage in ITERATION:
            perform(paths.root, stage, k, {})
    optimizer, weights = (paths.stage(k, "update") / "optimizer.safetensors" for k in (3, 4))
    weights.unlink()
    assert [problem.remedy for problem in verify(paths).problems] == ["grpo stage update old --iteration 4"]
    note_pruned(optimizer.parent, frozenset({optimizer.name}))
    optimizer.unlink()
    (problem,) = verify(paths).problems
    assert problem.remedy == "grpo stage update old --iteration 3 && grpo stage update old --iteration 4"
    for k in (3, 4):
        perform(paths.root, "update", k, {})
    assert verify(paths).problems == []


def test_what_was_evaluated_otherwise_is_not_compared(paths: RunPaths) -> None:
    shutil.copytree(paths.root, paths.root.with_name("other"))
    runs = [open_run(paths.root.parent, name) for name in ("old", "other")]
    alike = compare(History(runs[0][0]), runs[0][1], History(runs[1][0]), runs[1][1])
    assert alike["heldout"]
    perform(runs[1][0].root, "evaluate", 2, {"evaluate.samples": 5})
    apart = compare(History(runs[0][0]), runs[0][1], History(runs[1][0]), runs[1][1])
    assert not apart["heldout"]
