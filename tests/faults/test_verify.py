"""`grpo verify` finds what is wrong with a run's files, and no stage reads a file that is."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.execution.run_stage import perform
from flows.inspection.verify import Problem, verify
from flows.runs.access import open_run
from stages.contract.commit import finish
from stages.contract.errors import ArtifactError
from stages.contract.manifest import read_manifest
from stages.contract.paths import RunPaths
from stages.contract.pruned import note_pruned
from tests.flows.conftest import run_grpo

ADVANTAGES = "iterations/0002/advantage/advantages.parquet"
WEIGHTS = "iterations/0002/update/policy/model.safetensors"


@pytest.fixture
def folder(small_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_folder / "artifacts/small", tmp_path / "artifacts/small")
    return tmp_path


@pytest.fixture
def paths(folder: Path) -> RunPaths:
    return RunPaths.named(folder / "artifacts", "small")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def swap_iterations(path: Path) -> None:
    other = path.parents[2] / "0001" / path.relative_to(path.parents[1]) if path.name == "advantages.parquet" else None
    other = other or Path(str(path).replace("/0002/", "/0001/"))
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def link_away(path: Path) -> None:
    outside = path.parents[5] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "truncated: "),
    "empty": (empty, "empty; "),
    "bit-flipped": (flip_a_bit, "damaged: its content"),
    "longer": (lengthen, "too long: "),
    "missing": (Path.unlink, "missing"),
}


def test_a_whole_run_is_found_whole(small_folder: Path) -> None:
    verdict = verify(RunPaths.named(small_folder / "artifacts", "small"))
    assert verdict.problems == []
    assert verdict.stages == 3 + 3 * 5
    on_disk = [path for path in (small_folder / "artifacts/small/iterations").rglob("*") if path.is_file()]
    kept = [path for path in on_disk if path.name != "manifest.json"]
    assert (verdict.files, verdict.size) == (len(kept), sum(path.stat().st_size for path in kept))


@pytest.mark.parametrize("file", [ADVANTAGES, WEIGHTS])
@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_named_with_its_stage_and_never_trained_on(damage: str, file: str, paths: RunPaths) -> None:
    spoil, told = DAMAGES[damage]
    spoil(paths.root / file)
    stage, k, reader = ("advantage", 2, ("update", 2)) if file == ADVANTAGES else ("update", 2, ("update", 3))
    (problem,) = verify(paths).problems
    assert problem.problem.startswith(told)
    assert problem == Problem(k, stage, file, problem.problem, f"grpo stage {stage} small --iteration {k}")
    before = read_manifest(paths.stage(reader[1], "update"))
    with pytest.raises(ArtifactError, match=rf"run `grpo stage {stage} small --iteration {k}` to make it again"):
        perform(paths.root, *reader, {})
    assert read_manifest(paths.stage(reader[1], "update")) == before
    assert not list(paths.root.rglob("*.partial"))


@pytest.mark.parametrize("file", [ADVANTAGES, WEIGHTS])
def test_files_that_changed_places_are_found_on_both_sides(file: str, paths: RunPaths) -> None:
    swap_iterations(paths.root / file)
    problems = verify(paths).problems
    assert [problem.iteration for problem in problems] == [1, 2]
    with pytest.raises(ArtifactError, match="its content is not what its manifest says"):
        perform(paths.root, "update", 2 if file == ADVANTAGES else 3, {})


def test_files_swapped_within_a_stage_are_told_apart(paths: RunPaths) -> None:
    train, heldout = (paths.stage(0, "prompts") / name for name in ("train.parquet", "heldout.parquet"))
    aside = paths.root / "aside"
    train.rename(aside)
    heldout.rename(train)
    aside.rename(heldout)
    told = {problem.file.rsplit("/", 1)[1]: problem.problem for problem in verify(paths).problems}
    assert told == {
        "train.parquet": "swapped: it holds the content of heldout.parquet",
        "heldout.parquet": "swapped: it holds the content of train.parquet",
    }


def test_what_no_manifest_names_is_found(paths: RunPaths) -> None:
    stray = paths.policy(1) / "model-00002.safetensors"
    stray.write_bytes(b"weights of somebody else")
    link_away(paths.root / ADVANTAGES)
    told = {problem.file: problem.problem for problem in verify(paths).problems}
    assert told[paths.relative(stray)].startswith("not listed in the manifest")
    assert told[ADVANTAGES] == "a symbolic link"
    assert len(told) == 2


def test_what_the_retention_rule_removed_is_not_missed(paths: RunPaths) -> None:
    optimizer = paths.stage(1, "update") / "optimizer.safetensors"
    note_pruned(optimizer.parent, frozenset({optimizer.name}))
    optimizer.unlink()
    assert verify(paths).problems == []
    (optimizer.parent / "pruned.json").unlink()
    assert [problem.problem for problem in verify(paths).problems] == ["missing"]


def test_a_damaged_or_missing_manifest_is_found_with_what_hangs_on_it(paths: RunPaths) -> None:
    truncate(paths.stage(1, "score") / "manifest.json")
    (paths.stage(0, "update") / "manifest.json").unlink()
    told = [(problem.stage, problem.iteration, problem.problem.split(" (")[0]) for problem in verify(paths).problems]
    assert ("warmstart", 0, "missing") in told
    assert ("score", 1, "damaged") in told
    assert ("advantage", 1, "read by advantage of iteration 1, and no manifest names it") in told


def test_a_break_in_the_chain_is_told_with_the_stage_that_read_something_else(paths: RunPaths) -> None:
    perform(paths.root, "score", 2, {"score.rewards.1.weight": 0.5})
    problems = verify(paths).problems
    assert {(problem.stage, problem.iteration) for problem in problems} == {("advantage", 2), ("update", 2)}
    assert {problem.file for problem in problems} == {"iterations/0002/score/scores.parquet"}
    truncate(paths.stage(2, "score") / "scores.parquet")
    remedies = [problem.remedy for problem in verify(paths).problems if problem.stage == "score"]
    assert remedies == ["grpo stage score small --iteration 2 --set score.rewards.1.weight=0.5"]


def test_the_command_says_so_and_fails(folder: Path) -> None:
    whole = run_grpo(folder, "verify", "small")
    assert whole.returncode == 0, whole.stderr
    assert "all as their manifests say" in whole.stdout
    flip_a_bit(folder / "artifacts/small" / WEIGHTS)
    broken = run_grpo(folder, "verify", "small")
    assert broken.returncode == 1
    assert f"{WEIGHTS}: damaged" in broken.stdout
    assert "`grpo stage update small --iteration 2`" in broken.stdout
    as_json = run_grpo(folder, "verify", "small", "--json")
    assert as_json.returncode == 1
    (problem,) = json.loads(as_json.stdout)["problems"]
    assert (problem["iteration"], problem["stage"], problem["file"]) == (2, "update", WEIGHTS)


def test_what_a_kill_between_the_two_renames_left_is_put_in_place(paths: RunPaths) -> None:
    perform(paths.root, "score", 2, {"score.rewards.1.weight": 0.5})
    place, partial = paths.stage(2, "score"), paths.partial(2, "score")
    made = read_manifest(place)
    place.rename(partial)  # as the kill leaves it: the old one is in superseded, the new one not yet in place
    finish(paths.iterations)
    assert read_manifest(place) == made
    assert made is not None and made.overrides == {"score.rewards.1.weight": 0.5}
    assert not partial.exists()


def test_what_a_kill_left_beside_an_output_in_place_is_not_taken_for_it(paths: RunPaths) -> None:
    _, config = open_run(paths.root.parent, "small")
    assert config.run == "small"
    place, partial = paths.stage(2, "score"), paths.partial(2, "score")
    shutil.copytree(place, partial)
    truncate(partial / "scores.parquet")
    finish(paths.iterations)
    half = paths.partial(2, "sample")
    half.mkdir()
    (half / "rollouts.parquet").write_bytes(b"half")
    shutil.rmtree(paths.stage(2, "sample"))
    finish(paths.iterations)
    assert not paths.stage(2, "sample").exists()
    assert [problem.stage for problem in verify(paths).problems if problem.file.endswith("scores.parquet")] == []
