"""What is current, stale or missing, decided from manifests written by hand."""

import json
from datetime import UTC, datetime

import pytest
import yaml

from flows.config.loading import make_config
from flows.config.schema import RunConfig
from flows.runs.history import History
from flows.runs.staleness import examine, stages_of
from stages.contract.config import config_digest
from stages.contract.digest import file_digest
from stages.contract.manifest import FileRecord, Manifest
from stages.contract.paths import RunPaths
from tests.flows.conftest import SMALL

CONFIG = make_config(yaml.safe_load(SMALL.read_text(encoding="utf-8")), "small")
FILES = {
    "prompts": "train.parquet",
    "warmstart": "policy/model.safetensors",
    "sample": "rollouts.parquet",
    "score": "scores.parquet",
    "advantage": "advantages.parquet",
    "update": "policy/model.safetensors",
    "evaluate": "evaluation.parquet",
}


def put(paths: RunPaths, k: int, stage: str, digest: str, inputs: dict[str, str], config: RunConfig = CONFIG) -> None:
    """A stage's folder with one output of four bytes."""
    folder = paths.stage(k, "update" if stage == "warmstart" else stage)
    (folder / FILES[stage]).parent.mkdir(parents=True, exist_ok=True)
    (folder / FILES[stage]).write_bytes(b"four")
    section = config.section(stage)
    manifest = Manifest(
        stage=stage,
        iteration=k,
        seed=config.seed,
        config=section,
        config_digest=config_digest(section),
        overrides={},
        inputs={f"iterations/{name}": FileRecord(digest=d, size=4) for name, d in inputs.items()},
        outputs={FILES[stage]: FileRecord(digest=digest, size=4)},
        metrics={},
        dropped={},
        notes={},
        started="",
        seconds=1,
        timings={},
        code="",
        packages={},
        host="",
        device="cpu",
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())


@pytest.fixture
def paths(tmp_path):
    """A run of one iteration, all current; digests are named after the stage."""
    paths = RunPaths(tmp_path / "run")
    policy, rollouts = "0000/update/policy/model.safetensors", "0001/sample/rollouts.parquet"
    scores = "0001/score/scores.parquet"
    put(paths, 0, "prompts", "p", {})
    put(paths, 0, "warmstart", "w", {"0000/prompts/train.parquet": "p"})
    put(paths, 0, "evaluate", "e0", {policy: "w"})
    put(paths, 1, "sample", "s", {"0000/prompts/train.parquet": "p", policy: "w"})
    put(paths, 1, "score", "c", {rollouts: "s"})
    put(paths, 1, "advantage", "a", {rollouts: "s", scores: "c"})
    put(paths, 1, "update", "u", {policy: "w", rollouts: "s", "0001/advantage/advantages.parquet": "a"})
    put(paths, 1, "evaluate", "e1", {"0001/update/policy/model.safetensors": "u"})
    return paths


def states(paths, config=CONFIG, iterations=1):
    return {
        (s.iteration, s.stage): s.status for s in examine(History(paths), config, iterations) if s.status != "current"
    }


def test_a_whole_run_is_current_and_the_next_iteration_missing(paths):
    assert states(paths) == {}
    assert states(paths, iterations=2) == dict.fromkeys(
        [(2, stage) for stage in ("sample", "score", "advantage", "update", "evaluate")], "missing"
    )


def test_other_scores_make_stale_what_was_made_from_them_and_nothing_else(paths):
    put(paths, 1, "score", "c2", {"0001/sample/rollouts.parquet": "s"})
    assert states(paths) == {(1, "advantage"): "stale", (1, "update"): "stale", (1, "evaluate"): "stale"}


def test_scores_of_the_same_bytes_make_nothing_stale(paths):
    put(paths, 1, "score", "c", {"0001/sample/rollouts.parquet": "s"})
    assert states(paths) == {}


def test_another_configuration_of_a_stage_makes_it_and_what_follows_stale(paths):
    other = CONFIG.model_copy(update={"advantage": CONFIG.advantage.model_copy(update={"eps": 0.5})})
    assert states(paths, other) == {(1, "advantage"): "stale", (1, "update"): "stale", (1, "evaluate"): "stale"}


def test_another_machine_or_more_iterations_make_nothing_stale(paths):
    other = CONFIG.model_copy(update={"iterations": 9, "hardware": CONFIG.hardware.model_copy(update={"threads": 7})})
    assert states(paths, other) == {}


def test_a_missing_file_makes_its_stage_and_what_follows_stale(paths):
    (paths.stage(1, "sample") / "rollouts.parquet").unlink()
    assert set(states(paths)) == {(1, stage) for stage in ("sample", "score", "advantage", "update", "evaluate")}


def test_a_missing_manifest_is_a_stage_not_done(paths):
    (paths.stage(1, "score") / "manifest.json").unlink()
    assert states(paths)[1, "score"] == "missing"
    assert states(paths)[1, "advantage"] == "stale"
    assert (1, "sample") not in states(paths)


def test_a_damaged_manifest_counts_as_none(paths):
    (paths.stage(1, "update") / "manifest.json").write_text("{")
    assert states(paths) == {(1, "update"): "missing", (1, "evaluate"): "stale"}


def test_evaluation_has_its_turns_and_one_done_by_hand_counts_too(paths):
    rare = CONFIG.model_copy(update={"evaluate": CONFIG.evaluate.model_copy(update={"every": 5})})
    history = History(paths)
    assert "evaluate" in stages_of(history, rare, 0)
    assert "evaluate" in stages_of(history, rare, 1)
    assert "evaluate" not in stages_of(history, rare, 2)
    assert "evaluate" in stages_of(history, rare, 5)
    assert "evaluate" not in stages_of(history, CONFIG.model_copy(update={"evaluate": None}), 1)


def test_a_file_from_outside_that_changed_makes_stale_what_does_not_hold_it(paths, tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"four")
    for k, stage in ((0, "prompts"), (1, "score")):
        path = paths.stage(k, stage) / "manifest.json"
        made = json.loads(path.read_text())
        made["started"] = datetime.now(UTC).isoformat()
        made["inputs"][str(weights)] = {"digest": file_digest(weights), "size": 4}
        path.write_text(json.dumps(made))
    before = states(paths)
    weights.write_bytes(b"for!")
    changed = {(1, "score"): "stale"}
    assert {key: states(paths)[key] for key in changed} == changed
    assert states(paths).keys() - before.keys() == {(1, "score"), (1, "advantage"), (1, "update"), (1, "evaluate")}
    weights.write_bytes(b"four")  # written anew, to the same bytes
    assert states(paths) == before
    weights.unlink()  # what is not there has not changed
    assert states(paths) == before
