"""`grpo serve`: what is started in the UI runs, is cancelled, comes back after a crash, leaves nothing."""

import os
import signal

from tests.flows.conftest import run_grpo
from tests.flows.serving import command_line, descendants, eventually
from tests.flows.test_kill import digests


def test_a_run_is_started_as_the_form_does_and_a_stage_again(served):
    done = served.run("train", config="configs/small.yaml", run="formed", iterations=1)
    assert done["type"] == "COMPLETED", served.logs()
    assert (served.folder / "artifacts/formed/iterations/0001/update/manifest.json").exists()
    done = served.run("stage", stage="score", run="formed", iteration=1)
    assert done["type"] == "COMPLETED", served.logs()
    assert run_grpo(served.folder, "status", "formed").returncode == 0


def test_a_configuration_is_chosen_from_the_files(served):
    schema = served.api("GET", "/deployments/name/train/train")["parameter_openapi_schema"]
    assert schema["properties"]["config"]["enum"] == ["configs/small.yaml"]
    assert "artifacts" not in schema["properties"]


def engine_of(served, run):
    """The process that does the work of a flow run."""
    supervisor = int(served.api("GET", f"/flow_runs/{run}")["infrastructure_pid"] or 0)
    engines = [pid for pid in descendants(supervisor) if "prefect.engine" in command_line(pid)] if supervisor else []
    return engines[0] if engines else None


def test_a_flow_process_that_is_killed_comes_back_and_ends_with_the_same_bytes(served, small_folder):
    run = served.start("train", config="configs/small.yaml", iterations=3)
    iterations = served.folder / "artifacts/small/iterations"
    eventually((iterations / "0000/prompts/manifest.json").exists, 120, served.logs)
    engine = eventually(lambda: engine_of(served, run), 10)
    os.kill(engine, signal.SIGKILL)
    state = served.await_state(run, "COMPLETED", "FAILED", "CANCELLED")
    assert state["type"] == "COMPLETED", served.logs()
    assert served.api("GET", f"/flow_runs/{run}")["run_count"] == 2
    history = [entry["name"] for entry in served.api("GET", f"/flow_run_states/?flow_run_id={run}")]
    assert history.index("Crashed") < history.index("AwaitingRetry") < history.index("Completed")
    assert digests(served.folder) == digests(small_folder)
