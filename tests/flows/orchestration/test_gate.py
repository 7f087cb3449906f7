"""The gate: in the terminal, and under `grpo serve`, where the flow run is suspended until the form is answered."""

import json
import shutil
from pathlib import Path

import pytest

from flows.execution.run_stage import perform
from flows.runs.access import open_run
from flows.runs.approvals import Question, asked, decide, digest_of, keep, open_question, read_question, write
from flows.runs.records import now
from stages.contract.errors import ConfigError
from stages.contract.manifest import Manifest, read_manifest
from stages.contract.paths import RunPaths
from tests.flows.conftest import SMALL, run_grpo
from tests.flows.serving.served import command_line, descendants, eventually

GATED = ("train", SMALL, "--iterations", 4, "--set", "gate=before_update")


def update_of(paths: RunPaths, k: int) -> Manifest:
    manifest = read_manifest(paths.stage(k, "update"))
    assert manifest is not None
    return manifest


@pytest.fixture
def folder(small_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run of three iterations, for tests that go on with it."""
    shutil.copytree(small_folder / "artifacts/small", tmp_path / "artifacts/small")
    return tmp_path


def test_in_the_terminal_the_run_stops_before_the_update_until_someone_approves(folder: Path) -> None:
    paths = RunPaths(folder / "artifacts/small")
    with pytest.raises(ConfigError, match="no gate of small waits"):
        asked(paths, open_run(folder / "artifacts", "small")[1], {})
    stopped = run_grpo(folder, *GATED)
    assert stopped.returncode == 2
    assert "the update of iteration 4 waits for a decision: `grpo approve small`" in stopped.stderr
    assert paths.stage(4, "advantage").is_dir() and not paths.stage(4, "update").exists()

    wrong = run_grpo(folder, "approve", "small", "--set", "update.epoch=3")
    assert wrong.returncode == 2 and "did you mean 'epochs'" in wrong.stderr
    with pytest.raises(ConfigError, match=r"begin with `update\.`"):
        asked(paths, open_run(folder / "artifacts", "small")[1], {"sample.prompts": 3})

    assert run_grpo(folder, "reject", "small", "--note", "too short").returncode == 0
    rejected = run_grpo(folder, *GATED)
    assert rejected.returncode == 2 and "was rejected by" in rejected.stderr and "too short" in rejected.stderr
    assert not paths.stage(4, "update").exists()

    approved = run_grpo(folder, "approve", "small", "--set", "update.epochs=1", "--note", "once is enough")
    assert "approved: small: the update of iteration 4" in approved.stdout
    done = run_grpo(folder, *GATED)
    assert done.returncode == 0, done.stderr
    assert update_of(paths, 4).overrides == {"update.epochs": 1}
    question = read_question(paths, "before_update", 4)
    assert [(made.decision, made.note) for made in question.decisions] == [
        ("rejected", "too short"),
        ("approved", "once is enough"),
    ]


def test_what_is_made_anew_is_asked_about_anew(folder: Path) -> None:
    paths = RunPaths(folder / "artifacts/small")
    assert run_grpo(folder, *GATED).returncode == 2
    decide(paths, open_run(folder / "artifacts", "small")[1], "approved", "", {})
    perform(paths.root, "advantage", 4, {"advantage.scale": "none"})
    again = run_grpo(folder, *GATED)
    assert again.returncode == 2 and "waits for a decision" in again.stderr
    assert not paths.stage(4, "update").exists()


def test_what_waits_is_asked_about_though_another_gate_of_the_iteration_was_approved(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    asked = Question(gate="before_update", iteration=13)
    write(paths, asked)
    keep(paths, asked, "approved", "", {}, "me")
    assert open_question(paths) is None
    waiting = Question(gate="before_promote", iteration=13, since=now())
    write(paths, waiting)
    assert open_question(paths) == waiting
    keep(paths, waiting, "rejected", "", {}, "me")
    assert open_question(paths) == read_question(paths, "before_promote", 13)


def test_a_flow_run_that_cannot_be_told_is_named(folder: Path) -> None:
    paths = RunPaths(folder / "artifacts/small")
    asker = "00000000-0000-0000-0000-000000000001"
    write(paths, Question(gate="before_update", iteration=3, since=now(), flow_run=asker))
    approved = run_grpo(folder, "approve", "small")
    assert approved.returncode == 0, approved.stderr
    assert "its flow run was not told (no Prefect server is known" in approved.stdout
    standing = read_question(paths, "before_update", 3).standing(digest_of(paths, "before_update", 3))
    assert standing is not None and standing.decision == "approved"


def test_served_it_is_suspended_and_the_form_decides(served) -> None:
    parameters = {"config": "configs/small.yaml", "run": "gated", "iterations": 2}
    run = served.start("train", **parameters, overrides={"gate": "before_update"})
    paths = RunPaths(served.folder / "artifacts/gated")

    def paused(decisions: int) -> bool:
        state = served.state(run)
        assert state["type"] not in ("FAILED", "CRASHED"), served.logs()
        asked = max(paths.gates.glob("*.json"), default=None) if paths.gates.is_dir() else None
        told = json.loads(asked.read_text()) if asked else {"since": None, "decisions": []}
        return state["type"] == "PAUSED" and told["since"] is not None and len(told["decisions"]) == decisions

    def answer(**given: object) -> None:
        keyset = served.state(run)["state_details"]["run_input_keyset"]
        eventually(lambda: served.api("GET", f"/flow_runs/{run}/input/{keyset['schema']}"), 30)
        served.api("POST", f"/flow_runs/{run}/resume", {"run_input": given})

    eventually(lambda: paused(0), 180, served.logs)
    assert served.state(run)["name"] == "Suspended"
    eventually(
        lambda: not [pid for pid in descendants(served.process.pid) if "prefect.engine" in command_line(pid)], 30
    )
    assert paths.stage(1, "advantage").is_dir() and not paths.stage(1, "update").exists()
    keyset = served.state(run)["state_details"]["run_input_keyset"]
    told = served.api("GET", f"/flow_runs/{run}/input/{keyset['description']}")
    assert "the update of iteration 1 waits for your decision" in told and "Worst completions" in told

    answer(decision="approve", note="", changes={"update.epoch": 1})
    eventually(lambda: paused(1), 180, served.logs)
    keyset = served.state(run)["state_details"]["run_input_keyset"]
    told = served.api("GET", f"/flow_runs/{run}/input/{keyset['description']}")
    assert "could not be used" in told and "did you mean" in told
    assert not paths.stage(1, "update").exists()

    by_command = run_grpo(served.folder, "approve", "gated", "--set", "update.epochs=1")
    assert "approved: gated: the update of iteration 1; the flow run goes on" in by_command.stdout, by_command.stderr
    eventually(lambda: paths.stage(2, "advantage").is_dir() and paused(0), 180, served.logs)
    assert update_of(paths, 1).overrides == {"update.epochs": 1}

    served.api("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLED"}, "force": True})
    asked_before = served.api("GET", f"/flow_runs/{run}")["run_count"]
    again = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    served.api("POST", f"/flow_runs/{run}/set_state", {"state": again, "force": True})  # the UI's Retry
    eventually(
        lambda: served.api("GET", f"/flow_runs/{run}")["run_count"] > asked_before and paused(0), 180, served.logs
    )

    answer(decision="reject", note="worse than before", changes={})
    ended = served.await_state(run, "FAILED", "COMPLETED", "CRASHED")
    assert ended["type"] == "FAILED" and "worse than before" in ended["message"]
    assert not paths.stage(2, "update").exists()
    waiting = {"filter": {"event": {"name": ["grpo-flows.gate.waiting"]}}}

    def asked():
        return [event["payload"]["iteration"] for event in served.api("POST", "/events/filter", waiting)["events"]]

    eventually(lambda: asked() == [2, 1, 1], 60, lambda: str(asked()))  # the first answer could not be used
