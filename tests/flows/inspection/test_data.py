"""`grpo data`, and runs that draw from a mixture and by a curriculum."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from flows.config.loading import dump_config, make_config
from flows.config.overrides import apply_overrides
from flows.execution.replay import replay
from flows.execution.run_stage import perform
from flows.runs.access import open_run
from flows.runs.history import History
from flows.runs.staleness import state_of
from stages.contract.manifest import read_manifest
from stages.contract.paths import RunPaths
from stages.prompts.added import new_files
from stages.sample.prompt_selection import choose
from tests.flows.conftest import SMALL, environment, run_grpo

FEW = [
    {"prompt": "1+1=", "answer": 2},
    {"prompt": "1+1= ", "answer": 2},
    {"prompt": "2+2=", "answer": 4},
    {"prompt": "2+2=", "answer": 5},
    {"prompt": "say " * 5, "answer": "x", "kind": "talk"},
]
MIXED = {
    "run": "mixed",
    "iterations": 4,
    "prompts": {
        "source": {
            "type": "mixture",
            "parts": [
                {
                    "name": "sums",
                    "source": {"type": "reasoning_gym", "dataset": "chain_sum", "size": 30, "levels": 2},
                    "template": "{expression} =",
                },
                {
                    "name": "few",
                    "source": {"type": "inline", "rows": [{"kind": "sums"} | row for row in FEW], "task_field": "kind"},
                },
            ],
        },
        "format": "text",
        "heldout": 0.0,
        "heldout_source": {"type": "inline", "rows": [{"prompt": "2+2= ", "answer": 4}]},
    },
    "sample": {
        "prompts": 4,
        "group_size": 2,
        "weights": {"few": 1, "sums": 3},
        "curriculum": {"type": "levels", "success": 0.5, "threshold": 0.0, "rehearsal": 0.0},
    },
    "score": {
        "rewards": [{"type": "reasoning_gym", "tasks": ["reasoning_gym/*"]}, {"type": "math", "tasks": ["sums"]}]
    },
    "evaluate": None,
}


def written(folder: Path, changes: dict) -> Path:
    """The small configuration with these sections, without tuning, as a file."""
    data = yaml.safe_load(SMALL.read_text(encoding="utf-8"))
    data["warmstart"].pop("tuning")
    data |= {name: value for name, value in changes.items() if name != "sample"}
    data["sample"] |= changes.get("sample", {})
    data["score"]["reference"] = "start"
    (folder / "mixed.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return folder / "mixed.yaml"


def test_data_shows_what_a_run_would_train_on(tmp_path: Path) -> None:
    path = written(tmp_path, MIXED)
    code = (
        "import sys\nfrom flows.cli import app\n"
        f"app(['data', {str(path)!r}, '--json', '--set', 'sample.max_prompt_tokens=18'], standalone_mode=False)\n"
        "assert 'prefect' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # of the part `few`, 1+1= and 1+1=␣ are two prompts, 2+2= is one with two answers
    few = {group["task"]: group for group in found["groups"] if group["source"] == "few"}
    assert (few["sums"]["read"], few["sums"]["train"], few["talk"]["train"]) == (4, 3, 1)
    assert (few["sums"]["median"], few["talk"]["most"], few["talk"]["too_long"]) == (4, 20, 1)
    assert few["sums"]["rewards"] == ["math"] and few["talk"]["rewards"] == []
    levels = {group["level"]: group["train"] for group in found["groups"] if group["source"] == "sums"}
    assert [(row["level"], row["prompts"], row["from"]) for row in found["drawing"]["levels"]] == [
        (0, levels[0], 1),
        (1, levels[1], None),
    ]
    drawn = {row["source"]: (row["share"], row["an_iteration"], row["passes"]) for row in found["drawing"]["sources"]}
    assert drawn == {"sums": (0.75, 3.0, 12 / sum(levels.values())), "few": (0.25, 1.0, 1.0)}
    assert found["prompts"]["heldout"] == 1 and found["dropped"]["equal prompt"] >= 1
    assert found["tokens"]["limit"] == 18 and sum(found["tokens"]["histogram"]) == found["tokens"]["measured"]
    told = " ".join(found["warnings"])
    for warning in (
        "another answer, of which the first counts: 1",
        "case and white space: 1",
        "judges the task 'talk'",
    ):
        assert warning in told
    assert {sample["source"] for sample in found["samples"]} == {"sums", "few"}
    assert not (tmp_path / "artifacts").exists()


def test_data_fits_a_terminal_and_says_what_cannot_be_used_in_one_sentence(tmp_path: Path) -> None:
    path = written(tmp_path, MIXED)
    setting = "sample.curriculum.reward=math"
    done = run_grpo(tmp_path, "data", path, "--samples", "2", "--set", setting, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "'math' does not judge the task 'reasoning_gym/chain_sum': its successes" in done.stdout
    assert done.stdout.count("does not judge") == 1  # only sums have levels
    lines = done.stdout.splitlines()
    table = lines[1 : next(i for i, line in enumerate(lines) if line.startswith("left out"))]
    assert max(map(len, table)) <= 80
    assert re.search(r"^few +sums +– +4 +3 +0 +4 +5 +5", done.stdout, re.MULTILINE)
    assert re.search(r"^sums +3 +75\.0% +\d+ +3\.0 ", done.stdout, re.MULTILINE)
    assert "level 1: " in done.stdout and "once 50% of the level below succeed" in done.stdout
    assert "its tokens say: " not in done.stdout  # the tokenizer has a blank
    path.write_text(path.read_text().replace("answer: 5", "answer: null"))
    refused = run_grpo(tmp_path, "data", path)
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith("error: prompts.source.parts.1.source.rows, row 4: no answer in column 'answer'")


def test_data_looks_for_an_earlier_phase_where_it_is_told_to(tmp_path: Path) -> None:
    path, elsewhere = written(tmp_path, MIXED), tmp_path / "elsewhere"
    setting = "warmstart.model={type: run, run: before}"
    done = CliRunner().invoke(app, ["data", str(path), "--json", "--artifacts", str(elsewhere), "--set", setting])
    assert done.exit_code == 0, done.output
    assert f"no run 'before' in {elsewhere}" in " ".join(json.loads(done.stdout)["warnings"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"sample.weights": {"sums": 1}},
            r"sample.weights names ['sums'], the parts of prompts.source are ['sums', 'few']",
        ),
        ({"prompts.source": {"type": "inline", "rows": [{}]}}, "sample.weights needs prompts.source.type: mixture"),
        ({"sample.curriculum.reward": "mathe"}, "sample.curriculum.reward is 'mathe'; the rewards are named"),
        ({"prompts.source.parts.0.source.levels": None}, "curriculum goes by levels: set `levels` or `level_field`"),
    ],
)
def test_weights_and_curricula_have_to_fit(changes: dict, told: str, tmp_path: Path) -> None:
    data = yaml.safe_load(written(tmp_path, MIXED).read_text())
    with pytest.raises(ValueError, match=re.escape(told)):
        make_config(apply_overrides(data, changes), "mixed.yaml")


def drawn(paths: RunPaths, k: int) -> pl.DataFrame:
    """The prompts of an iteration, with source and level."""
    ids = pl.read_parquet(paths.stage(k, "sample") / "rollouts.parquet")["prompt_id"].unique(maintain_order=True)
    table = pl.read_parquet(paths.stage(0, "prompts") / "train.parquet")
    return pl.DataFrame({"prompt_id": ids}).join(table, on="prompt_id", maintain_order="left")


def test_a_run_draws_from_a_mixture_level_by_level(tmp_path: Path) -> None:
    paths = RunPaths.named(tmp_path, "mixed")
    paths.root.mkdir()
    config = make_config(yaml.safe_load(written(tmp_path, MIXED).read_text()), "mixed.yaml")
    paths.config.write_text(dump_config(config), encoding="utf-8")
    for k, stage in ((0, "prompts"), (0, "warmstart"), *((1, s) for s in ("sample", "score", "advantage", "update"))):
        perform(paths.root, stage, k, {})
    perform(paths.root, "sample", 2, {})
    first, second = drawn(paths, 1), drawn(paths, 2)
    assert first["source"].to_list() == second["source"].to_list() == ["few"] + ["sums"] * 3
    # every completion counts as a success (threshold 0), so that iteration 2 has the next level
    assert first["level"].to_list() == [None, 0, 0, 0] and second["level"].to_list() == [None, 1, 1, 1]
    one, two = (read_manifest(paths.stage(k, "sample")) for k in (1, 2))
    assert one is not None and two is not None and one.notes["sources"] == {"sums": 3, "few": 1}
    assert [m.notes["curriculum"] for m in (one, two)] == [{"level": 0}, {"level": 1}]
    assert {"iterations/0001/score/scores.parquet", "iterations/0001/sample/curriculum.json"} <= two.inputs.keys()
    (again,) = replay(paths, config, 2, "sample", {})
    assert again["equal"] and "curriculum.json" in again["outputs"]

    # Files for a part lie in the folder of its name.
    (paths.data / "few").mkdir(parents=True)
    row = {"prompt": "3+3=", "answer": 6, "kind": "sums"}
    for place in (paths.data, paths.data / "few"):
        (place / "new.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = new_files(paths, config.prompts)
    assert [frame.select("source", "task", "answer").row(0) for frame in found.tables.values()] == [
        ("few", "sums", "6")
    ]
    assert len(found.problems) == 1 and "belongs into the folder of a part" in found.problems[0]


def test_what_came_of_prompts_is_an_input_of_later_drawing(small_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(small_folder / "artifacts/small", tmp_path / "small")
    paths, config = open_run(tmp_path, "small")
    perform(paths.root, "sample", 3, {"sample.curriculum": {"type": "success", "window": 2}})
    manifest = read_manifest(paths.stage(3, "sample"))
    assert manifest is not None
    read = [name for name in manifest.inputs if "/score/" in name]
    assert read == [f"iterations/000{k}/score/scores.parquet" for k in (1, 2)]
    table = pl.read_parquet(paths.stage(0, "prompts") / "train.parquet")
    scores = {k: pl.read_parquet(paths.stage(k, "score") / "scores.parquet") for k in (1, 2)}
    settings = config.sample.model_validate(
        config.sample.model_dump() | {"curriculum": {"type": "success", "window": 2}}
    )
    assert (
        drawn(paths, 3)["prompt_id"].to_list()
        == table["prompt_id"][choose(table, settings, config.seed, 3, scores=scores).first].to_list()
    )
    known = pl.concat(scores.values())["prompt_id"].n_unique()
    assert manifest.notes["curriculum"]["prompts_with_a_history"] == known

    assert state_of(History(paths), config, 3, "sample").status == "current"
    (again,) = replay(paths, config, 3, "sample", {})
    assert again["equal"]
    perform(paths.root, "score", 1, {"score.rewards.1.weight": 1.0})
    state = state_of(History(paths), config, 3, "sample")
    assert (state.status, state.reason) == ("stale", "iterations/0001/score/scores.parquet has changed")
