"""Runs of older code are read, are current, and go on; those of newer code are refused by name."""

import json
import shutil
from pathlib import Path

import pytest

from flows.config.loading import make_config, read_yaml
from flows.config.stages import ITERATION
from flows.execution.run_stage import perform
from flows.inspection.queries import completions, sql
from flows.inspection.verify import verify
from flows.runs.access import open_run
from flows.runs.history import History
from flows.runs.staleness import examine
from stages.contract import tables
from stages.contract.columns import SCORES
from stages.contract.errors import ConfigError, VersionError
from stages.contract.manifest import VERSION, read_manifest
from stages.contract.paths import RunPaths
from tests.flows.conftest import run_grpo

RUNS = Path(__file__).parents[1] / "data" / "runs"
VERSIONS = [f"version{number}" for number in range(1, VERSION + 1)]


def kept(version: str, folder: Path) -> RunPaths:
    """A copy of the run that is kept of a version."""
    shutil.copytree(RUNS / version, folder / "artifacts" / "old")
    return RunPaths.named(folder / "artifacts", "old")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_of_each_version_is_whole_current_and_goes_on(version: str, tmp_path: Path) -> None:
    paths = kept(version, tmp_path)
    _, config = open_run(paths.root.parent, "old")
    states = list(examine(History(paths), config, 2))
    assert {state.status for state in states} == {"current"}, [state for state in states if state.status != "current"]
    assert [state.reason for state in states if state.reason] == ["with score.rewards.1.weight=0.2"]
    assert verify(paths).problems == []
    assert {state.manifest.version for state in states if state.manifest} == {int(version.removeprefix("version"))}
    assert len(completions(paths, 2, None, None, None)[1]) == 18
    assert sql(paths, "select count(*) as n from scores")["n"].to_list() == [36]
    before = {path: path.read_bytes() for path in paths.root.rglob("*.parquet")}
    for stage in ITERATION:
        perform(paths.root, stage, 3, {})
    assert {state.status for state in examine(History(paths), config, 3)} == {"current"}
    assert verify(paths).problems == []
    made = read_manifest(paths.stage(3, "update"))
    assert made is not None and made.version == VERSION
    assert {path: path.read_bytes() for path in before} == before


def test_columns_that_came_later_are_null_in_an_old_table(tmp_path: Path) -> None:
    paths = kept("version1", tmp_path)
    scores = tables.read(paths.stage(1, "score") / "scores.parquet", SCORES)
    assert scores["values"].null_count() == scores["step_ends"].null_count() == 18
    assert scores["reward"].null_count() == 0


def test_a_stage_of_an_old_run_is_stale_where_a_field_that_came_later_is_set(tmp_path: Path) -> None:
    paths = kept("version1", tmp_path)
    manifest = read_manifest(paths.stage(1, "update"))
    assert manifest is not None and "lora" not in manifest.config
    data = read_yaml(paths.config)
    config = make_config(data, "old")
    assert config.made_alike("update", manifest.config)
    for section in ({"mismatch": {"type": "mask"}}, {"epochs": 2}):
        other = make_config(data | {"update": data["update"] | section}, "old")
        assert not other.made_alike("update", manifest.config)
    assert not config.made_alike("update", manifest.config | {"unheard_of": None})
    assert not config.made_alike("update", manifest.config | {"critic": {}})


def test_a_run_of_a_newer_version_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    paths = kept(VERSIONS[-1], tmp_path)
    path = paths.stage(2, "score") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": VERSION + 1}))
    for read in (verify, lambda paths: list(examine(History(paths), open_run(paths.root.parent, "old")[1], 2))):
        with pytest.raises(VersionError, match=rf"has version {VERSION + 1}, this code reads up to {VERSION}: update"):
            read(paths)
    done = run_grpo(tmp_path, "train", RUNS / "old.yaml")
    assert done.returncode == 2
    assert f"has version {VERSION + 1}" in done.stderr
    assert "update grpo-flows" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (paths.root / "superseded").exists()


def test_a_newer_run_is_refused_by_name_also_where_its_configuration_has_an_unknown_field(tmp_path: Path) -> None:
    paths = kept("version2", tmp_path)
    paths.config.write_text(paths.config.read_text() + "later: 1\n")
    with pytest.raises(ConfigError, match="later"):
        open_run(paths.root.parent, "old")
    manifest = paths.stage(2, "score") / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": VERSION + 1}))
    with pytest.raises(VersionError, match=f"has version {VERSION + 1}, .*: update grpo-flows"):
        open_run(paths.root.parent, "old")
