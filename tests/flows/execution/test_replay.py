"""A stage done again gives the same bytes, or it is said which rows differ and by how much; the run stays as it was."""

import json
import shutil

import polars as pl
import pytest

from flows.config.schema import KeepConfig
from flows.execution.replay import replay, varying
from flows.execution.run_stage import perform
from flows.runs.access import open_run
from flows.runs.history import History
from flows.runs.promotion import promote
from flows.runs.retention import plan, remove
from stages.contract import tables
from stages.contract.columns import SCORES
from stages.contract.digest import file_digest
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.manifest import read_manifest
from stages.contract.weights import read_tensors, write_tensors
from tests.flows.conftest import run_grpo


@pytest.fixture
def run(small_folder, tmp_path):
    """A copy of the small run that a test may change."""
    shutil.copytree(small_folder / "artifacts" / "small", tmp_path / "artifacts" / "small")
    return tmp_path / "artifacts" / "small"


def again(run, k, stage=None):
    return replay(*open_run(run.parent, run.name), k, stage, {})


def contents(folder):
    return {
        path.relative_to(folder): (file_digest(path), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and ".prefect" not in path.parts
    }


def record(run, place, name, **manifest):
    """Makes the manifest say what the changed file is now."""
    path = run / "iterations" / place / "manifest.json"
    data = json.loads(path.read_text())
    data["outputs"][name]["digest"] = file_digest(path.parent / name)
    data["outputs"][name]["size"] = (path.parent / name).stat().st_size
    path.write_text(json.dumps(data | manifest))


def test_every_stage_gives_the_same_bytes_and_nothing_changes(small_folder):
    before = contents(small_folder / "artifacts")
    for k, files in ((0, 13), (2, 13)):
        done = run_grpo(small_folder, "replay", "small", "--iteration", k, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        stages = json.loads(done.stdout)["stages"]
        assert [stage["equal"] for stage in stages] == [True] * len(stages)
        assert sum(len(stage["outputs"]) for stage in stages) == files
    assert contents(small_folder / "artifacts") == before
    assert {path.name for path in (small_folder / "artifacts").iterdir()} == {"small", ".prefect"}


def test_rows_that_differ_are_named_with_how_much_and_what_may_explain_it(run):
    path = run / "iterations/0002/score/scores.parquet"
    scores = tables.read(path, SCORES)
    index = pl.int_range(pl.len())
    raised = scores.with_columns(pl.when(index == 7).then(pl.col("reward") + 0.25).otherwise(pl.col("reward")))
    tables.write(path, raised, SCORES)
    packages = json.loads((run / "iterations/0002/score/manifest.json").read_text())["packages"]
    record(run, "0002/score", "scores.parquet", packages=packages | {"torch": "1.0"}, host="elsewhere")
    done = run_grpo(run.parents[1], "replay", "small", "--iteration", "2", "--stage", "score")
    assert done.returncode == 1, done.stderr
    told = " ".join(done.stdout.split())
    first = f"{scores['prompt_id'][7]} {scores['sample'][7]}"
    assert f"scores.parquet: 1 of 64 rows differ, first {first}" in told
    assert "reward: 1 rows differ, by up to 0.25" in told
    assert f"torch: 1.0 then, {packages['torch']} now" in told
    assert "host: elsewhere then" in told


def test_weights_that_differ_are_named_with_how_much(run):
    path = run / "iterations/0003/update/policy/model.safetensors"
    tensors = read_tensors(path)
    name = sorted(tensors)[1]
    changed = {key: tensor.clone() for key, tensor in tensors.items()}
    changed[name].view(-1)[3] += 0.5
    write_tensors(path, changed)
    record(run, "0003/update", "policy/model.safetensors")
    (result,) = again(run, 3, "update")
    assert {file for file, output in result["outputs"].items() if not output["equal"]} == {"policy/model.safetensors"}
    far = result["outputs"]["policy/model.safetensors"]
    assert (far["tensors"], far["in"], far["of"]) == (1, name, len(tensors))
    assert far["greatest"] == pytest.approx(0.5)
    assert (result["circumstances"], result["varying"]) == ({}, [])
    done = run_grpo(run.parents[1], "replay", "small", "--iteration", "3", "--stage", "update")
    assert done.returncode == 1
    assert "this is a fault of grpo-flows" in " ".join(done.stdout.split())


def test_another_processor_or_mode_is_named_where_the_bytes_differ(run):
    path = run / "iterations/0003/update/policy/model.safetensors"
    write_tensors(path, {key: tensor + 0.5 for key, tensor in read_tensors(path).items()})
    manifest = json.loads((path.parents[1] / "manifest.json").read_text())
    assert (manifest["threads"], manifest["deterministic"]) == (1, True)
    there = manifest["processor"] | {"torch": "OTHER"}
    record(run, "0003/update", "policy/model.safetensors", processor=there, deterministic=None)
    (result,) = again(run, 3, "update")
    assert result["circumstances"] == {
        "deterministic": (None, True),
        "processor, torch": ("OTHER", manifest["processor"]["torch"]),
    }


@pytest.mark.parametrize(
    ("reward", "outputs", "reasons"),
    [
        ({"type": "math"}, {"scores.parquet": {"columns": {"reward": {"rows": 1}}}}, 0),
        ({"type": "math"}, {"scores.parquet": {"columns": {"status_math": {"rows": 1}}}}, 1),
        ({"type": "judge", "name": "tone"}, {}, 1),
        ({"type": "python"}, {"scores.parquet": {"columns": {"status_python": {"rows": 1}}}}, 2),
    ],
)
def test_what_no_manifest_can_note_is_named_too(small_folder, reward, outputs, reasons):
    manifest = read_manifest(small_folder / "artifacts/small/iterations/0001/score")
    for stage, section in (("score", {"rewards": [reward]}), ("evaluate", {"score": {"rewards": [reward]}})):
        assert len(varying(manifest.model_copy(update={"stage": stage, "config": section}), outputs)) == reasons


def test_a_stage_is_replayed_with_the_settings_of_its_rerun(run):
    perform(run, "advantage", 3, {"advantage.scale": "none"})
    (result,) = again(run, 3, "advantage")
    assert result["equal"]


def test_what_the_retention_rule_removed_is_proved_by_its_digest(run):
    paths, config = open_run(run.parent, run.name)
    promote(paths, 1, "by hand")
    remove(plan(paths, config, KeepConfig(last=1, best=0, optimizer="kept"), 4))
    assert History(paths).pruned(2, "update")
    (result,) = again(run, 2, "update")
    assert result["equal"]
    with pytest.raises(
        ArtifactError, match=r"update of iteration 3 cannot be replayed: .*0002/update/.*`keep` removed"
    ):
        again(run, 3, "update")


def test_what_is_not_current_is_not_replayed(run):
    perform(run, "score", 2, {"score.rewards.1.weight": 1.0})
    with pytest.raises(ConfigError, match="advantage of iteration 2 cannot be replayed: it is stale"):
        again(run, 2, "advantage")
    with pytest.raises(ConfigError, match="sample of iteration 4 cannot be replayed: it is missing"):
        again(run, 4)
    with pytest.raises(ConfigError, match="prompts is not a stage of iteration 1"):
        again(run, 1, "prompts")


@pytest.mark.parametrize("setting", ["deterministic=maybe", "deterministic=null", "threads=0", "nothing=0"])
def test_hardware_that_no_configuration_takes_is_refused_by_its_field(run, setting):
    done = run_grpo(run.parents[1], "replay", "small", "--iteration", "1", "--set", f"hardware.{setting}")
    assert done.returncode == 2
    assert f"hardware.{setting.partition('=')[0]}" in done.stderr
    assert "Traceback" not in done.stderr
