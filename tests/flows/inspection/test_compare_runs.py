"""Two runs side by side: where they part, why, and their figures."""

import io
import json
import shutil

import pytest
from PIL import Image

from flows.config.stages import ITERATION
from flows.execution.run_stage import perform
from flows.inspection.compare import compare, plot
from flows.runs.access import open_run
from flows.runs.forking import fork
from flows.runs.history import History
from tests.flows.conftest import run_grpo


@pytest.fixture(scope="module")
def artifacts(small_folder, tmp_path_factory):
    """The small run, a fork of it with other settings from iteration 2 on, and one rerun with another weight."""
    artifacts = tmp_path_factory.mktemp("compared") / "artifacts"
    shutil.copytree(small_folder / "artifacts" / "small", artifacts / "small")
    fork(artifacts, "small", 1, "changed", {"update.epochs": 1, "keep.last": 1}, print)
    for stage in (*ITERATION, "evaluate"):
        perform(artifacts / "changed", stage, 2, {})
    fork(artifacts, "small", 3, "rerun", {}, print)
    perform(artifacts / "rerun", "score", 2, {"score.rewards.1.weight": 1.0})
    return artifacts


def side_by_side(artifacts, one, other):
    (mine, left), (its, right) = open_run(artifacts, one), open_run(artifacts, other)
    return compare(History(mine), left, History(its), right)


def test_the_fork_parts_where_its_settings_do(artifacts):
    told = side_by_side(artifacts, "small", "changed")
    assert told["forked"] == [None, {"run": "small", "iteration": 1}]
    assert told["stage"] == {"iteration": 2, "stage": "update"}
    assert told["policy"] == 2
    assert told["fields"] == {"update.epochs": ("2", "1")}
    assert told["circumstances"] == {}
    score = History(open_run(artifacts, "small")[0]).manifest(2, "score")
    assert told["iterations"][2]["reward_mean"] == [score.metrics["reward_mean"]] * 2
    assert told["iterations"][3]["reward_mean"][1] is None
    kl = told["iterations"][2]["kl"]
    assert None not in kl and kl[0] != kl[1]


def test_a_rerun_that_was_not_followed_leaves_the_policies_the_same(artifacts):
    told = side_by_side(artifacts, "small", "rerun")
    assert (told["stage"], told["policy"]) == ({"iteration": 2, "stage": "score"}, None)
    assert told["fields"] == {"score.rewards.1.weight": ("as configured", "1.0")}


def test_what_else_differs_is_told_where_the_settings_do_not(artifacts, tmp_path):
    shutil.copytree(artifacts / "small", tmp_path / "one")
    shutil.copytree(artifacts / "small", tmp_path / "two")
    path = tmp_path / "two/iterations/0001/sample/manifest.json"
    data = json.loads(path.read_text())
    data["outputs"]["rollouts.parquet"]["digest"] = "another"
    path.write_text(json.dumps(data | {"packages": data["packages"] | {"torch": "9.9"}}))
    told = side_by_side(tmp_path, "one", "two")
    assert told["stage"] == {"iteration": 1, "stage": "sample"}
    assert told["circumstances"] == {
        "torch": (
            json.loads((tmp_path / "one/iterations/0001/sample/manifest.json").read_text())["packages"]["torch"],
            "9.9",
        )
    }
    assert side_by_side(tmp_path, "one", "one")["stage"] is None


def test_the_picture_shows_both_runs(artifacts):
    with Image.open(io.BytesIO(plot(side_by_side(artifacts, "small", "changed")))) as image:
        colours = {pixel for _, pixel in image.convert("RGB").getcolors(2**20)}

    def near(red, green, blue):
        return any(abs(r - red) + abs(g - green) + abs(b - blue) < 30 for r, g, b in colours)

    assert near(31, 119, 180) and near(255, 127, 14)


def test_the_command_says_it_in_words(artifacts, tmp_path):
    folder = artifacts.parent
    done = run_grpo(folder, "compare", "small", "changed", "--plot", tmp_path / "both.png")
    assert done.returncode == 0, done.stderr
    for line in (
        "changed was forked from small at iteration 1",
        "they part at update of iteration 2; their policies from iteration 2 on",
        "update.epochs: 2 in small, 1 in changed",
    ):
        assert line in done.stdout
    reward = History(open_run(artifacts, "small")[0]).manifest(2, "score").metrics["reward_mean"]
    (row,) = [line.split() for line in done.stdout.splitlines() if line.startswith("2 ")]
    assert row[1:3] == [f"{reward:.4f}"] * 2
    with Image.open(tmp_path / "both.png") as image:
        assert image.format == "PNG"
    assert "no run 'other'" in run_grpo(folder, "compare", "small", "other").stderr
    wrong = run_grpo(folder, "compare", "small", "changed", "--plot", "both.pdf")
    assert wrong.returncode == 2 and "ends in .png" in wrong.stderr
