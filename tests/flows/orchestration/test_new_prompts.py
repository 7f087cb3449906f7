"""Prompts dropped into a run's folder: drawn from then on, and nothing before becomes stale."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from flows.execution.run_stage import perform
from flows.inspection.queries import status
from flows.runs.access import open_run
from flows.runs.history import History
from stages.contract.errors import DataError
from stages.contract.manifest import read_manifest
from stages.contract.paths import RunPaths
from stages.sample.prompt_selection import choose
from tests.flows.conftest import SMALL, run_grpo


def sums(numbers: range) -> str:
    """Problems that the run's source, of sums of one digit, cannot have posed."""
    rows = [{"prompt": f"{n} + 1", "expression": f"{n} + 1", "answer": str(n + 1)} for n in numbers]
    return "".join(json.dumps(row) + "\n" for row in rows)


def trained_on(paths: RunPaths, k: int) -> pl.DataFrame:
    return pl.read_parquet(paths.stage(k, "prompts") / "train.parquet")


@pytest.fixture
def run(small_folder: Path, tmp_path: Path) -> RunPaths:
    """A copy of the run of three iterations."""
    shutil.copytree(small_folder / "artifacts/small", tmp_path / "artifacts/small")
    paths = RunPaths(tmp_path / "artifacts/small")
    paths.data.mkdir()
    return paths


def test_the_next_iteration_takes_them_up_and_nothing_before_is_stale(run: RunPaths) -> None:
    folder = run.root.parents[1]
    known, held = trained_on(run, 0), pl.read_parquet(run.stage(0, "prompts") / "heldout.parquet")
    old = [json.loads(text)["expression"] for text in (known["metadata"][0], held["metadata"][0])]
    again = "".join(json.dumps({"prompt": text, "expression": text, "answer": "1"}) + "\n" for text in old)
    (run.data / "a.jsonl").write_text(sums(range(20, 60)) + again + sums(range(20, 22)), encoding="utf-8")
    (run.data / "broken.jsonl").write_text('{"prompt": "1 + 1"', encoding="utf-8")
    (run.data / "notes.txt").write_text("not a table", encoding="utf-8")
    before = {k: (run.stage(k, "sample") / "rollouts.parquet").read_bytes() for k in (1, 2, 3)}

    done = run_grpo(folder, "train", SMALL, "--iterations", 5)
    assert done.returncode == 0, done.stderr
    assert "new prompts are left out:" in done.stdout and "broken.jsonl, line 1: not JSON" in done.stdout
    manifest = read_manifest(run.stage(4, "prompts"))
    assert manifest is not None and manifest.metrics["train_prompts"] == 40
    assert manifest.dropped == {"equal prompt": 2, "trained on already": 1, "held out": 1}
    assert sorted(name for name in manifest.inputs if name.startswith("data/")) == ["data/a.jsonl"]
    assert (run.data / "broken.jsonl").exists()

    paths, config = open_run(folder / "artifacts", "small")
    states = {s["status"] for entry in status(paths, config) for s in entry["stages"].values()}
    assert states == {"current"}
    assert {k: (run.stage(k, "sample") / "rollouts.parquet").read_bytes() for k in (1, 2, 3)} == before

    # What is drawn comes from both tables, in an order that begins anew.
    both = pl.concat([known, trained_on(run, 4)])
    fresh = set(trained_on(run, 4)["prompt_id"])
    drawn = {k: pl.read_parquet(run.stage(k, "sample") / "rollouts.parquet")["prompt_id"] for k in (3, 4, 5)}
    for k in (4, 5):
        rows = choose(both, config.sample, config.seed, k, since=4).first
        assert drawn[k].unique(maintain_order=True).to_list() == both["prompt_id"][rows].to_list()
    assert not fresh & set(drawn[3]) and fresh & {*drawn[4], *drawn[5]}

    # The same file is not taken up twice; one that was mended is.
    (run.data / "broken.jsonl").write_text(sums(range(70, 73)), encoding="utf-8")
    assert run_grpo(folder, "train", SMALL, "--iterations", 6).returncode == 0
    assert trained_on(run, 6)["answer"].to_list() == ["71", "72", "73"]
    assert not run.stage(5, "prompts").exists()


def test_made_again_they_are_the_same_bytes_and_a_file_that_is_gone_is_asked_for(run: RunPaths) -> None:
    (run.data / "b.jsonl").write_text(sums(range(30, 35)), encoding="utf-8")
    perform(run.root, "prompts", 4, {})
    first = History(run).manifest(4, "prompts")
    perform(run.root, "prompts", 4, {})
    second = History(run).manifest(4, "prompts")
    assert first is not None and second is not None and first.outputs == second.outputs
    (run.data / "b.jsonl").rename(run.root / "elsewhere.jsonl")
    with pytest.raises(DataError, match=r"data/b\.jsonl: gone or changed since iteration 4 took it up"):
        perform(run.root, "prompts", 4, {})
    assert trained_on(run, 4).height == 5
