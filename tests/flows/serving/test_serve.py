"""`grpo serve`: what is started in the UI runs, is cancelled, comes back after a crash, leaves nothing."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from flows.serving.gpu_slots import share, slot
from flows.serving.server_lock import claim
from stages.contract.lock import run_lock
from tests.flows.conftest import GRPO, SMALL, environment, run_grpo
from tests.flows.serving.served import alive, command_line, descendants, eventually
from tests.flows.test_kill import digests


@pytest.fixture(scope="module")
def abandoned(served):
    """A training that was begun in a terminal and killed at once: its flow run, which nobody has ended."""
    command = [str(GRPO), "train", "configs/small.yaml", "--run", "abandoned"]
    with subprocess.Popen(command, cwd=served.folder, env=environment(), stdout=subprocess.PIPE) as process:
        try:
            [run] = eventually(lambda: running(served, "abandoned"), 180)
            eventually((served.folder / "artifacts/abandoned/iterations/0000/prompts/manifest.json").exists, 60)
        finally:
            process.kill()
    return run


def running(served, name):
    """The flow runs at work whose names begin so."""
    asked = {"flow_runs": {"name": {"like_": name}, "state": {"type": {"any_": ["RUNNING"]}}}}
    return [found["id"] for found in served.api("POST", "/flow_runs/filter", asked)]


def test_a_command_in_a_terminal_uses_the_server_that_is_up(served, abandoned):
    assert served.state(abandoned)["type"] == "RUNNING"
    assert served.api("GET", f"/flow_runs/{abandoned}")["deployment_id"] is None


def test_a_run_is_started_as_the_form_does_and_a_stage_again(served):
    done = served.run("train", config="configs/small.yaml", run="formed", iterations=1)
    assert done["type"] == "COMPLETED", served.logs()
    assert (served.folder / "artifacts/formed/iterations/0001/update/manifest.json").exists()
    done = served.run("stage", stage="score", run="formed", iteration=1)
    assert done["type"] == "COMPLETED", served.logs()
    assert run_grpo(served.folder, "status", "formed").returncode == 0


def test_stored_completions_are_rescored_by_other_rewards(served):
    done = served.run("rescore", run="formed", overrides={"score": {"rewards": {"1": {"weight": 2.0}}}})
    assert done["type"] == "COMPLETED", served.logs()
    assert (served.folder / "artifacts/.rescored/formed/changed/completions.parquet").exists()
    [table] = served.api("POST", "/artifacts/filter", {"artifacts": {"key": {"any_": ["formed-rescored"]}}})
    assert '"length"' in table["data"]


def test_a_configuration_is_chosen_from_the_files(served):
    schema = served.api("GET", "/deployments/name/train/train")["parameter_openapi_schema"]
    assert schema["properties"]["config"]["enum"] == ["configs/small.yaml"]
    assert "artifacts" not in schema["properties"]


def test_a_schedule_makes_runs_before_their_time(served):
    deployment = served.api("GET", "/deployments/name/stage/stage")["id"]
    parameters = {"stage": "score", "run": "formed", "iteration": 1}
    nightly = {"schedule": {"cron": "0 2 * * *", "timezone": "Asia/Tokyo"}, "active": True, "parameters": parameters}
    [schedule] = served.api("POST", f"/deployments/{deployment}/schedules", [nightly])
    asked = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    runs = eventually(lambda: served.api("POST", "/flow_runs/filter", asked), 180)
    assert {run["expected_start_time"].split("T")[1][:8] for run in runs} == {"17:00:00"}
    served.api("DELETE", f"/deployments/{deployment}/schedules/{schedule['id']}")


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


def cancel(served, run):
    served.api("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    return served.await_state(run, "CANCELLED", "COMPLETED", "FAILED", "CRASHED")


def test_a_cancelled_run_leaves_no_process_and_goes_on_later(served):
    run = served.start("train", config="configs/small.yaml", run="halted", iterations=400)
    eventually((served.folder / "artifacts/halted/iterations/0003/update/manifest.json").exists, 180, served.logs)
    engine = engine_of(served, run)
    tree = {engine, *descendants(engine)}
    assert cancel(served, run)["type"] == "CANCELLED"
    eventually(lambda: not any(map(alive, tree)), 10)
    assert served.run("train", config="configs/small.yaml", run="halted", iterations=4)["type"] == "COMPLETED"


def test_cancelling_ends_the_sampler_process_of_vllm_too(served):
    overrides = {"sample": {"engine": {"type": "vllm", "cache_gib": 0.25}}, "update": {"old_logprobs": "sampler"}}
    run = served.start("train", config="configs/small.yaml", run="drawn", overrides=overrides)

    def tree():
        engine = engine_of(served, run)
        return {engine, *descendants(engine)} if engine else set()

    eventually(lambda: any("vllm_worker" in command_line(pid) for pid in tree()), 180, served.logs)
    members = tree()
    assert cancel(served, run)["type"] == "CANCELLED"
    eventually(lambda: not any(map(alive, members)), 10)


def test_runs_wait_for_a_slot_and_take_it_when_it_is_free(served):
    runs = [served.start("train", config="configs/small.yaml", run=name, iterations=1) for name in ("one", "two")]
    for run in runs:
        assert served.await_state(run, "COMPLETED", "FAILED", "CRASHED")["type"] == "COMPLETED"
    first, second = sorted((served.api("GET", f"/flow_runs/{run}") for run in runs), key=lambda run: run["start_time"])
    assert first["end_time"] <= second["start_time"]


def test_a_run_that_another_process_writes_to_says_so_in_one_sentence(served):
    folder = served.folder / "artifacts/one"
    with run_lock(folder / "run.lock", say=print):
        state = served.run("stage", stage="advantage", run="one", iteration=1)
    assert state["type"] == "FAILED"
    assert f"in use by process {os.getpid()}" in state["message"]
    assert state["message"].count("\n") == 0


def test_what_cannot_be_served_is_said_in_one_sentence(served, tmp_path):
    def refused(folder, *options, **variables):
        done = run_grpo(folder, "serve", *options, **variables)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    port = served.url.rpartition(":")[2]
    assert "no configuration" in refused(tmp_path)
    (tmp_path / "configs").mkdir()
    shutil.copy(SMALL, tmp_path / "configs")
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in refused(tmp_path, "--port", port)
    assert "set a password first" in refused(tmp_path, "--host", "0.0.0.0")
    assert "cannot listen on 203.0.113.1" in refused(
        tmp_path, "--host", "203.0.113.1", PREFECT_SERVER_API_AUTH_STRING="me:secret"
    )
    assert f"grpo serve is running already, at {served.url}" in refused(served.folder)
    silent = "http://127.0.0.1:9/api"
    assert f"the Prefect server at {silent} has not answered" in refused(tmp_path, PREFECT_API_URL=silent)


def test_gpus_are_shared_out():
    assert [share("0123", 4, slot) for slot in range(4)] == [["0"], ["1"], ["2"], ["3"]]
    assert [share("012", 2, slot) for slot in range(2)] == [["0", "1"], ["2"]]
    assert [share("0", 2, slot) for slot in range(2)] == [["0"], []]


def test_a_place_is_free_again_when_its_process_is_killed(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from flows.serving.gpu_slots import slot\n"
        "with slot(Path(sys.argv[1]), 2) as place: print(place, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) for _ in "ab"]
        try:
            places = [int(process.stdout.readline()) for process in processes]
            assert sorted(places) == [0, 1]
            processes[places.index(1)].kill()
            with slot(tmp_path, 2) as place:
                assert place == 1
        finally:
            for process in processes:
                process.kill()


def test_a_second_command_in_a_folder_leaves_the_database_of_the_first_alone(small_folder, tmp_path):
    shutil.copytree(small_folder / "artifacts/small", tmp_path / "artifacts/small")
    home = tmp_path / "artifacts/.prefect"
    home.mkdir()
    with claim(home) as note:
        note("http://127.0.0.1:9/api", False)
        done = run_grpo(tmp_path, "stage", "advantage", "small", "--iteration", "1")
    assert done.returncode == 0, done.stderr
    assert not (home / "prefect.db").exists()


def test_a_run_that_nobody_has_ended_is_seen_as_crashed(served, abandoned):
    """It was killed when this module's tests began; its server has heard nothing of it since."""
    assert (
        served.await_state(abandoned, "CRASHED", seconds=240)["message"]
        == "its process has given no sign of life for 90 s"
    )
