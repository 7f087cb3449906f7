"""A stage's output comes into being whole or not at all, says what it came from, and trusts no input unseen."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stages.contract import tables
from stages.contract.columns import EVALUATION, SUPERVISED_STEPS
from stages.contract.commit import write_text
from stages.contract.config import config_digest
from stages.contract.digest import file_digest, names_digest
from stages.contract.errors import ArtifactError
from stages.contract.manifest import VERSION, FileRecord, Manifest, read_manifest
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job, Workspace, open_stage

STEPS_OF_TWO: dict[str, Any] = {
    "step": [1, 2],
    "tokens": [40, 41],
    "learning_rate": [0.5, 0.25],
    "loss": [2.0, 1.5],
    "gradient_norm": [1.0, 2.0],
}


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths.named(tmp_path, "night")


@pytest.fixture
def job(paths: RunPaths) -> Job:
    return Job(paths, 3, seed=11)


def frame(**columns: list[Any]) -> pl.DataFrame:
    return tables.frame(SUPERVISED_STEPS, STEPS_OF_TWO | columns)


def make(job: Job, stage: str, **columns: list[Any]) -> Path:
    """A finished stage of one table, `steps.parquet`."""
    with open_stage(job, stage, stage, {}) as desk:
        desk.write("steps.parquet", frame(**columns), SUPERVISED_STEPS)
    return job.paths.stage(job.iteration, stage) / "steps.parquet"


def make_policy(paths: RunPaths, iteration: int = 0) -> Path:
    with open_stage(Job(paths, iteration, seed=0), "warmstart", "update", {}) as desk:
        (desk.folder / "policy" / "extra").mkdir(parents=True)
        (desk.folder / "policy" / "config.json").write_text("{}")
        (desk.folder / "policy" / "extra" / "weights").write_bytes(b"\1\2\3")
        (desk.folder / "optimizer").write_bytes(b"moments")
    return paths.policy(iteration)


def known(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def test_nothing_is_in_place_until_the_block_ends(job: Job) -> None:
    place = job.paths.stage(3, "score")
    with open_stage(job, "score", "score", {}) as desk:
        desk.write("steps.parquet", frame(), SUPERVISED_STEPS)
        assert not place.exists()
        assert not (desk.folder / "manifest.json").exists()
    assert sorted(path.name for path in place.iterdir()) == ["manifest.json", "steps.parquet"]
    assert [path.name for path in place.parent.iterdir()] == ["score"]
    assert tables.read(place / "steps.parquet", SUPERVISED_STEPS).equals(frame())


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt(), SystemExit(1)])
def test_a_block_that_fails_leaves_nothing(error: BaseException, job: Job) -> None:
    with pytest.raises(type(error)), open_stage(job, "score", "score", {}) as desk:
        desk.write("steps.parquet", frame(), SUPERVISED_STEPS)
        raise error
    assert not job.paths.iteration(3).exists()


def test_a_rerun_that_fails_leaves_the_old_output_in_place(job: Job) -> None:
    path = make(job, "score")
    before = path.read_bytes()
    with pytest.raises(RuntimeError), open_stage(job, "score", "score", {}) as desk:
        desk.write("steps.parquet", frame(step=[8, 9]), SUPERVISED_STEPS)
        raise RuntimeError
    assert path.read_bytes() == before
    assert not (job.paths.root / "superseded").exists()


KILLED = """
import sys, time
from pathlib import Path
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job, open_stage

with open_stage(Job(RunPaths(Path(sys.argv[1])), 3, 11), "score", "score", {}) as desk:
    (desk.folder / "half").write_text("half of the work")
    (desk.folder / "deep").mkdir()
    print("writing", flush=True)
    time.sleep(600)
"""


def test_a_killed_stage_leaves_nothing_that_counts_and_the_next_attempt_succeeds(job: Job) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(job.paths.root)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    place, partial = job.paths.stage(3, "score"), job.paths.partial(3, "score")
    assert not place.exists()
    assert read_manifest(place) is None
    assert (partial / "half").read_text() == "half of the work"
    make(job, "score")
    assert not partial.exists()
    assert sorted(path.name for path in place.iterdir()) == ["manifest.json", "steps.parquet"]
    assert list(known(place).outputs) == ["steps.parquet"]


def test_a_rerun_moves_the_old_output_aside_each_time(job: Job) -> None:
    for step in ([1, 2], [3, 4], [5, 6]):
        path = make(job, "score", step=step)
    aside = job.paths.root / "superseded" / "0003"
    assert sorted(folder.name for folder in aside.iterdir()) == ["score.1", "score.2"]
    steps = [
        tables.read(folder / "steps.parquet", SUPERVISED_STEPS)["step"].to_list()
        for folder in (aside / "score.1", aside / "score.2", path.parent)
    ]
    assert steps == [[1, 2], [3, 4], [5, 6]]
    assert known(aside / "score.1").outputs["steps.parquet"].digest == file_digest(aside / "score.1" / "steps.parquet")


def test_the_manifest_says_what_was_read_written_and_dropped(paths: RunPaths, tmp_path: Path) -> None:
    outside = tmp_path / "prompts.jsonl"
    outside.write_bytes(b'{"prompt": "1+1"}\n')
    sampled = make(Job(paths, 2, seed=11), "sample")
    job = Job(paths, 2, seed=11, overrides={"score.reference": None})
    with open_stage(job, "score", "score", {"reference": None, "rewards": ["math"]}) as desk:
        read = desk.read(sampled, SUPERVISED_STEPS)
        desk.take(outside)
        desk.write("first.parquet", read[:1], SUPERVISED_STEPS)
        (desk.folder / "note.txt").write_text("abc")
        for reason, count in (("too long", 2), ("too long", 3), ("empty", 0), ("twice", 1)):
            desk.drop(reason, count)
        desk.metrics["loss"] = 1.75
        desk.metrics["kl"] = None
        desk.notes["engine"] = "none"
        with desk.timed("thinking"):
            pass
    manifest = known(paths.stage(2, "score"))
    assert (manifest.stage, manifest.iteration, manifest.seed, manifest.device) == ("score", 2, 11, "cpu")
    assert manifest.config == {"reference": None, "rewards": ["math"]}
    assert manifest.config_digest == config_digest({"rewards": ["math"], "reference": None})
    assert manifest.config_digest != config_digest({"rewards": ["math"], "reference": "start"})
    assert manifest.overrides == {"score.reference": None}
    assert manifest.inputs == {
        "iterations/0002/sample/steps.parquet": FileRecord(
            digest=file_digest(sampled), size=sampled.stat().st_size, rows=2
        ),
        str(outside): FileRecord(digest=file_digest(outside), size=18),
    }
    written = paths.stage(2, "score") / "first.parquet"
    assert manifest.outputs == {
        "first.parquet": FileRecord(digest=file_digest(written), size=written.stat().st_size, rows=1),
        "note.txt": FileRecord(digest=file_digest(written.with_name("note.txt")), size=3),
    }
    assert manifest.dropped == {"too long": 5, "twice": 1}
    assert manifest.metrics == {"loss": 1.75, "kl": None}
    assert manifest.notes == {"engine": "none"}
    assert list(manifest.timings) == ["thinking"]
    assert 0 <= manifest.timings["thinking"] <= manifest.seconds
    assert manifest.packages["polars"] == pl.__version__


def test_a_folder_is_taken_file_by_file_and_has_one_digest(paths: RunPaths) -> None:
    policy = make_policy(paths)
    with open_stage(Job(paths, 1, seed=0), "sample", "sample", {}) as desk:
        digest = desk.take_folder(policy)
    assert list(known(paths.stage(1, "sample")).inputs) == [
        "iterations/0000/update/policy/config.json",
        "iterations/0000/update/policy/extra/weights",
    ]
    assert digest == names_digest({name: file_digest(policy / name) for name in ("extra/weights", "config.json")})
    again = make_policy(paths, 1)
    with open_stage(Job(paths, 2, seed=0), "sample", "sample", {}) as desk:
        assert desk.take_folder(again) == digest


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip_a_bit, "its content is not what its manifest says"),
        (cut_short, "its content is not what its manifest says"),
        (Path.unlink, "missing"),
    ],
)
def test_a_damaged_input_is_named_with_the_command_that_makes_it_again(damage: Any, told: str, job: Job) -> None:
    path = make(job, "sample")
    damage(path)
    with pytest.raises(ArtifactError) as caught, open_stage(job, "score", "score", {}) as desk:
        desk.read(path, SUPERVISED_STEPS)
    assert str(caught.value) == f"{path}: {told}; run `grpo stage sample night --iteration 3` to make it again"
    assert not job.paths.stage(3, "score").exists()
    make(job, "sample")
    with open_stage(job, "score", "score", {}) as desk:
        assert desk.read(path, SUPERVISED_STEPS).height == 2


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, Path.unlink])
@pytest.mark.parametrize(("iteration", "stage"), [(0, "warmstart"), (4, "update")])
def test_a_damaged_file_of_a_policy_is_named_with_its_command(
    damage: Any, iteration: int, stage: str, paths: RunPaths
) -> None:
    weights = make_policy(paths, iteration) / "extra" / "weights"
    damage(weights)
    with (
        pytest.raises(ArtifactError) as caught,
        open_stage(Job(paths, iteration + 1, seed=0), "sample", "sample", {}) as desk,
    ):
        desk.take_folder(paths.policy(iteration))
    assert str(caught.value).startswith(f"{weights}: ")
    assert str(caught.value).endswith(f"; run `grpo stage {stage} night --iteration {iteration}` to make it again")


def test_a_file_that_no_manifest_names_is_not_taken_for_an_output(paths: RunPaths) -> None:
    stray = make_policy(paths) / "model-2.safetensors"
    stray.write_bytes(b"weights of somebody else")
    desk = Workspace(paths, paths.partial(1, "sample"))
    with pytest.raises(ArtifactError, match=r"model-2\.safetensors: its content is not what its manifest says"):
        desk.take_folder(paths.policy(0))


def test_a_stage_that_was_never_done_is_told_with_its_command(paths: RunPaths) -> None:
    desk = Workspace(paths, paths.partial(1, "sample"))
    with pytest.raises(ArtifactError, match=r"policy: missing or empty; run `grpo stage update night --iteration 7`"):
        desk.take_folder(paths.policy(7))
    with pytest.raises(ArtifactError, match=r"heldout\.parquet: missing; run `grpo stage prompts night --iteration 0`"):
        desk.take(paths.stage(0, "prompts") / "heldout.parquet")


def test_a_missing_file_from_outside_the_run_has_no_command(paths: RunPaths, tmp_path: Path) -> None:
    desk = Workspace(paths, paths.partial(1, "sample"))
    with pytest.raises(ArtifactError) as caught:
        desk.take(tmp_path / "mine.jsonl")
    assert str(caught.value) == f"{tmp_path / 'mine.jsonl'}: missing"


def test_an_input_of_another_table_is_refused(job: Job) -> None:
    path = make(job, "sample")
    desk = Workspace(job.paths, job.paths.partial(3, "score"))
    with pytest.raises(ArtifactError, match=r"holds the table 'supervised_steps', 'evaluation' is wanted"):
        desk.read(path, EVALUATION)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"version": 1}', b'{"version": "1"}', b"\xff\xfe", b'{"stage": "score"}'],
)
def test_a_damaged_manifest_is_named(content: bytes, job: Job) -> None:
    place = make(job, "score").parent
    (place / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"(?s)score/manifest\.json: damaged .*run the stage again"):
        read_manifest(place)


def test_a_manifest_of_newer_code_asks_for_an_update(job: Job) -> None:
    place = make(job, "score").parent
    data = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(data | {"version": VERSION + 1, "shape": "unheard of"}))
    told = rf"manifest\.json: has version {VERSION + 1}, this code reads up to {VERSION}: update grpo-flows"
    with pytest.raises(ArtifactError, match=told):
        read_manifest(place)


def test_a_manifest_survives_the_disk(job: Job) -> None:
    place = make(job, "score").parent
    assert Manifest.model_validate_json(known(place).model_dump_json()) == known(place)
    assert read_manifest(place.parent) is None


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for text in ("seed: 1\n", "name: Ünïcode 🙂\n"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]
