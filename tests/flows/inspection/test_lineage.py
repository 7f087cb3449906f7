"""From a file back to all that it came from: through iterations, reruns and forks."""

import json
import shutil

import pytest

from flows.execution.run_stage import perform
from flows.inspection.lineage import lineage
from flows.runs.forking import fork
from stages.contract.errors import ConfigError
from tests.flows.conftest import run_grpo


@pytest.fixture
def run(small_folder, tmp_path):
    """A copy of the small run that a test may change."""
    shutil.copytree(small_folder / "artifacts" / "small", tmp_path / "artifacts" / "small")
    return tmp_path / "artifacts" / "small"


def stages(traced):
    return [(stage["iteration"], stage["stage"]) for stage in traced["stages"]]


def test_scores_come_from_all_iterations_before_down_to_the_prompts(small_folder):
    traced = lineage(small_folder / "artifacts/small/iterations/0002/score/scores.parquet")
    assert traced["told"].endswith(", as its manifest says")
    assert stages(traced) == [
        *((2, name) for name in ("score", "sample")),
        *((1, name) for name in ("update", "advantage", "score", "sample")),
        *((0, name) for name in ("warmstart", "prompts")),
    ]
    first = traced["stages"][0]
    assert {part["maker"] for part in first["inputs"]} == {"iterations/0000/update", "iterations/0002/sample"}
    assert traced["stages"][-1]["source"]["dataset"] == "chain_sum"
    told = run_grpo(small_folder, "lineage", "artifacts/small/iterations/0001/sample/rollouts.parquet").stdout
    assert "update of 0: policy (5 files)" in told
    assert "from type reasoning_gym, dataset chain_sum" in " ".join(told.replace("│", "").split())


def test_what_a_rerun_replaced_is_followed_into_superseded(run):
    perform(run, "score", 2, {"score.rewards.1.weight": 1.0})
    traced = lineage(run / "iterations/0002/advantage/advantages.parquet")
    (score,) = [stage for stage in traced["stages"] if (stage["stage"], stage["iteration"]) == ("score", 2)]
    assert (score["folder"], score["superseded"], score["overrides"]) == ("superseded/0002/score.1", True, {})
    perform(run, "advantage", 2, {})
    traced = lineage(run / "iterations/0002/advantage")
    (score,) = [stage for stage in traced["stages"] if (stage["stage"], stage["iteration"]) == ("score", 2)]
    assert (score["folder"], score["overrides"]) == ("iterations/0002/score", {"score.rewards.1.weight": 1.0})
    old = lineage(run / "superseded/0002/advantage.1/advantages.parquet")
    assert "superseded/0002/score.1" in {stage["folder"] for stage in old["stages"]}
    shutil.rmtree(run / "superseded/0002/score.1")
    lost = lineage(run / "superseded/0002/advantage.1/advantages.parquet")["stages"][0]["inputs"]
    assert {part["name"]: part["lost"] for part in lost}["iterations/0002/score/scores.parquet"]


def test_a_fork_says_what_it_shares(run):
    fork(run.parent, "small", 1, "child", {}, print)
    child = run.parent / "child"
    perform(child, "sample", 2, {})
    traced = lineage(child / "iterations/0002/sample/rollouts.parquet")
    assert {(s["iteration"], s["shared_with"]) for s in traced["stages"]} == {(2, None), (1, "small"), (0, "small")}
    perform(child, "update", 1, {})
    traced = lineage(child / "iterations/0001/update/policy")
    assert [s["shared_with"] for s in traced["stages"]] == [None] + ["small"] * 5


def test_data_from_outside_is_a_beginning_too(run, tmp_path):
    (tmp_path / "problems.jsonl").write_text(
        '{"prompt": "1 + 1 =", "answer": "2"}\n{"prompt": "1 + 2 =", "answer": "3"}\n'
    )
    source = {"type": "file", "path": str(tmp_path / "problems.jsonl")}
    perform(run, "prompts", 0, {"prompts.source": source, "prompts.template": "{prompt}", "prompts.heldout": 0.5})
    (made,) = lineage(run / "iterations/0000/prompts")["stages"]
    assert [(part["name"], part["maker"]) for part in made["inputs"]] == [(str(tmp_path / "problems.jsonl"), None)]
    assert not made["inputs"][0]["lost"]


def test_a_changed_file_and_what_has_no_lineage_are_told(run):
    path = run / "iterations/0003/score/scores.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert lineage(path)["told"].endswith("CHANGED since")
    for wrong, told in (
        (run / "run.yaml", "was made by no stage"),
        (run.parents[1], "lies in no run"),
        (run / "iterations/0003/score/other", "names no such file"),
        (run / "iterations/0009/score/scores.parquet", "holds no manifest"),
    ):
        with pytest.raises(ConfigError, match=told):
            lineage(wrong)
    refused = run_grpo(run.parents[1], "lineage", run / "run.yaml")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert json.loads(run_grpo(run.parents[1], "lineage", path, "--json").stdout)["run"] == "small"
