"""Phases: a run that starts from the policy of another one, and what it knows of the run before."""

import shutil
from pathlib import Path

import pytest
import yaml

from flows.config.loading import dump_config, make_config
from flows.execution.replay import replay
from flows.execution.run_stage import perform
from flows.inspection.lineage import lineage
from flows.inspection.prompts import look_at
from flows.runs.access import open_run
from flows.runs.history import History
from flows.runs.phases import check_phase
from stages.contract import tables
from stages.contract.errors import ArtifactError
from stages.contract.paths import RunPaths
from stages.contract.pruned import note_pruned
from stages.prompts.stage import asked
from tests.flows.conftest import SMALL, run_grpo


def phase(artifacts, name, **sections):
    """A run, made up to its starting policy, that goes on from the run `small`."""
    data = yaml.safe_load(SMALL.read_text()) | {"run": name, "evaluate": None}
    data |= {"warmstart": {"model": {"type": "run", "run": "small"}}} | sections
    paths = RunPaths.named(artifacts, name)
    paths.root.mkdir()
    paths.config.write_text(dump_config(make_config(data, name)))
    for stage in ("prompts", "warmstart"):
        perform(paths.root, stage, 0, {})
    return paths


@pytest.fixture
def second(small_folder, tmp_path):
    """The second of two phases, in a folder that a test may change."""
    shutil.copytree(small_folder / "artifacts" / "small", tmp_path / "artifacts" / "small")
    return phase(tmp_path / "artifacts", "second")


def test_a_phase_is_replayed_from_the_policy_that_it_took(second):
    def again():
        return replay(second, open_run(second.root.parent, "second")[1], 0, None, {})

    assert [(result["stage"], result["equal"]) for result in again()] == [("prompts", True), ("warmstart", True)]
    perform(second.root.parent / "small", "update", 3, {"update.optimizer.learning_rate": 0.01})
    with pytest.raises(ArtifactError, match=r"warmstart of iteration 0 .* replayed: .*/policy/.* has changed since"):
        again()


def test_what_the_run_before_was_trained_on_is_held_out_in_no_wording(second):
    small = RunPaths(second.root.parent / "small")
    perform(second.root, "prompts", 0, {"prompts.template": "What is {expression}?", "prompts.heldout": 0.4})

    def near(paths, name):
        return set(asked(paths.stage(0, "prompts") / f"{name}.parquet", tables.read)["near"])

    assert near(second, "heldout") == near(small, "heldout")
    assert near(second, "train") == near(small, "train")
    inputs = History(second).manifest(0, "prompts").inputs
    assert [Path(name).name for name in inputs] == ["heldout.parquet", "questions.parquet", "train.parquet"]
    looked = look_at(open_run(second.root.parent, "second")[1], 1, second.root.parent)
    assert looked["prompts"]["heldout"] == len(near(small, "heldout"))


def test_a_file_of_a_phase_leads_back_through_the_run_before(second):
    traced = lineage(second.policy(0))["stages"]
    assert [(s["run"], s["iteration"], s["stage"]) for s in traced[:3]] == [
        ("second", 0, "warmstart"),
        ("small", 3, "update"),
        ("small", 3, "advantage"),
    ]
    assert (traced[-1]["run"], traced[-1]["stage"], len(traced)) == ("small", "prompts", 15)
    assert {(part["run"], part["maker"]) for part in traced[0]["inputs"]} == {("small", "iterations/0003/update")}
    told = run_grpo(second.root.parents[1], "lineage", second.policy(0)).stdout
    assert "iteration 3 of the run small" in told and "update of 3 of the run small: policy (5 files)" in told
    perform(second.root.parent / "small", "update", 3, {"update.optimizer.learning_rate": 0.01})
    (_, made) = lineage(second.policy(0))["stages"][:2]
    assert made["folder"] == "superseded/0003/update.1"


def test_a_policy_that_is_not_whole_is_refused_before_anything_is_written(second):
    artifacts = second.root.parent
    data = yaml.safe_load(SMALL.read_text()) | {"warmstart": {"model": {"type": "run", "run": "small", "iteration": 2}}}
    wanted = make_config(data, "third").model_copy(update={"run": "third"})
    check_phase(artifacts, wanted)
    removed = RunPaths(artifacts / "small").policy(2)
    note_pruned(removed.parent, frozenset(f"policy/{path.name}" for path in removed.iterdir()))
    shutil.rmtree(removed)
    with pytest.raises(ArtifactError, match=r"0002/update/policy/.*: the retention rule `keep` removed it"):
        check_phase(artifacts, wanted)


def test_the_policy_that_a_phase_took_stays_its_own_when_the_run_before_goes_on(second):
    first = second.root.parent / "small"
    begun = History(second).policy_digest(0)
    assert begun == History(RunPaths(first)).policy_digest(3)
    for stage in ("sample", "score", "advantage", "update"):
        perform(first, stage, 4, {})
    second.policy(0).joinpath("model.safetensors").unlink()
    perform(second.root, "warmstart", 0, {})
    assert History(second).policy_digest(0) == begun
    assert History(second).manifest(0, "update").notes["phase"] == {"run": "small", "iteration": 3}
    third = phase(second.root.parent, "third")
    assert History(third).manifest(0, "update").notes["phase"] == {"run": "small", "iteration": 4}
    perform(second.root, "warmstart", 0, {"warmstart.model.iteration": 1})
    assert History(second).policy_digest(0) == History(RunPaths(first)).policy_digest(1)
