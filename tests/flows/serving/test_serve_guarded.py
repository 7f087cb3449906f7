"""`grpo serve` with a password and two places: who is told, a kill of it all, other pools, nothing asked outside."""

import json
import shutil
import signal
import socket
import subprocess
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from uuid import uuid4

import httpx
import pytest

from flows.orchestration.approval_gate import WAITING
from flows.orchestration.night_run import HELD_BACK
from flows.serving.automations import EVENTS
from tests.flows.conftest import GRPO, SMALL, environment, run_grpo
from tests.flows.serving.served import alive, command_line, descendants, eventually, serving

PASSWORD = {"PREFECT_SERVER_API_AUTH_STRING": "me:secret"}
TELL = """
tell:
  - {type: webhook, address: TEST_WEBHOOK, of: [failed, held_back]}
  - {type: mail, address: TEST_MAILBOX, of: [failed]}
"""


@pytest.fixture(scope="module")
def receiver():
    """A webhook's other end: its URL and what it was told."""
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", heard
        server.shutdown()


@pytest.fixture(scope="module")
def mailbox():
    """The other end of mail: its address for Apprise, and the letters that came."""
    letters = []

    class Handler(StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"220 here\r\n")
            letter = b""
            while line := self.rfile.readline():
                if line.upper().startswith(b"DATA"):
                    self.wfile.write(b"354 go on\r\n")
                    while (line := self.rfile.readline()) != b".\r\n":
                        letter += line
                    letters.append(letter.decode())
                self.wfile.write(b"250 well\r\n")
                if line.upper().startswith(b"QUIT"):
                    return

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        yield f"mailto://127.0.0.1:{port}?from=grpo@here.test&to=me@there.test&mode=insecure&smtp=127.0.0.1", letters
        server.shutdown()


@pytest.fixture(scope="module")
def outside():
    """A proxy through which all that leaves this machine would go; what came to it."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as trap:

        def accept():
            while True:
                try:
                    connection, _ = trap.accept()
                except OSError:
                    return
                with connection:
                    seen.append(connection.recv(200))

        threading.Thread(target=accept, daemon=True).start()
        address = f"http://127.0.0.1:{trap.getsockname()[1]}"
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"), address)
        yield proxies | {"no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}, seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "configs").mkdir()
    shutil.copy(SMALL, folder / "configs" / "small.yaml")
    (folder / "tell.yaml").write_text(TELL)
    return folder


@pytest.fixture(scope="module")
def variables(receiver, mailbox, outside):
    return PASSWORD | outside[0] | {"TEST_WEBHOOK": receiver[0], "TEST_MAILBOX": mailbox[0]}


@pytest.fixture(scope="module")
def guarded(folder, variables):
    """A running `grpo serve`, which `again` kills."""
    with serving(folder, "--slots", "2", "--notifications", "tell.yaml", **variables) as server:
        server.auth = ("me", "secret")
        yield server


def test_nobody_gets_in_without_the_password(guarded):
    assert httpx.get(f"{guarded.url}/api/admin/version").status_code == 401
    done = run_grpo(guarded.folder, "deploy", "--pool", "grpo")
    assert done.returncode == 2
    assert "wants a password; PREFECT_API_AUTH_STRING has to be user:password" in done.stderr


def test_commands_and_flows_work_with_it(guarded):
    done = run_grpo(guarded.folder, "train", "configs/small.yaml", "--iterations", "1", **PASSWORD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert guarded.run("stage", stage="score", run="small", iteration=1)["type"] == "COMPLETED", guarded.logs()
    assert guarded.api("POST", "/flow_runs/count", {}) == 2


def test_a_failed_run_is_told_at_the_webhook_and_by_mail(guarded, receiver, mailbox):
    assert guarded.run("stage", stage="score", run="small", iteration=7)["type"] == "FAILED"
    [told] = eventually(lambda: receiver[1], 60)
    assert told["occasion"] == "failed"
    assert "score" in told["text"] and "has failed" in told["text"]
    [letter] = eventually(lambda: mailbox[1], 60)
    assert "Subject: run failed" in letter and "has failed" in letter


def test_the_events_that_are_told_are_those_that_flows_emit():
    assert EVENTS["held_back"][0] == HELD_BACK
    assert EVENTS["gate"][0] == WAITING


def test_a_night_that_is_held_back_is_told(guarded, receiver):
    event = {
        "occurred": datetime.now(UTC).isoformat(),
        "event": HELD_BACK,
        "resource": {"prefect.resource.id": "grpo-flows.run.small", "prefect.resource.name": "small"},
        "payload": {"message": 'small: no better "than" before'},
        "id": str(uuid4()),
    }
    guarded.api("POST", "/events", [event])
    told = eventually(lambda: [one for one in receiver[1] if one["occasion"] == "held_back"], 60)
    assert told == [{"occasion": "held_back", "text": 'small: no better "than" before'}]


@pytest.fixture(scope="module")
def again(guarded, folder, variables):
    """`grpo serve` once more, after the first one was killed with two runs at work; and these runs."""
    nightly = guarded.api("GET", "/deployments/name/nightly/nightly")["id"]
    cron = {"schedule": {"cron": "0 4 * * *", "timezone": "UTC"}, "active": True, "parameters": {"run": "small"}}
    paused = {"schedule": {"cron": "0 5 * * *", "timezone": "UTC"}, "active": False, "slug": "small-night"}
    guarded.api("POST", f"/deployments/{nightly}/schedules", [cron, paused])
    settings = {"config": "configs/small.yaml", "iterations": 3}
    runs = [guarded.start("train", run=name, **settings) for name in ("left", "right")]
    for name in ("left", "right"):
        begun = guarded.folder / "artifacts" / name / "iterations/0000/prompts/manifest.json"
        eventually(begun.exists, 180, guarded.logs)
    assert [guarded.state(run)["type"] for run in runs] == ["RUNNING", "RUNNING"]
    tree = descendants(guarded.process.pid)
    assert sum("prefect.engine" in command_line(pid) for pid in tree) == 2
    guarded.process.send_signal(signal.SIGKILL)
    eventually(lambda: not any(map(alive, tree)), 30, lambda: str([command_line(pid) for pid in tree if alive(pid)]))
    options = ("--slots", "2", "--notifications", "tell.yaml", "--nights", "small", "--nights", "left")
    with serving(folder, *options, **variables) as server:
        server.auth = ("me", "secret")
        yield server, runs


def test_killed_with_all_it_runs_it_goes_on_when_it_is_started_again(again):
    server, runs = again
    for run in runs:
        assert server.await_state(run, "COMPLETED", "FAILED", "CRASHED")["type"] == "COMPLETED", server.logs()
        assert server.api("GET", f"/flow_runs/{run}")["run_count"] == 2


def test_schedules_stay_as_they_were_left_in_the_ui_and_those_that_are_missing_are_added(again):
    schedules = again[0].api("GET", "/deployments/name/nightly/nightly")["schedules"]
    there = {(found["slug"], found["schedule"]["cron"], found["active"]) for found in schedules}
    assert len(schedules) == 3
    assert there == {
        (None, "0 4 * * *", True),
        ("small-night", "0 5 * * *", False),
        ("left-night", "0 2 * * *", True),
    }


def test_deployments_on_a_pool_of_ones_own(again):
    server, _ = again
    said = run_grpo(server.folder, "deploy", "--pool", "mine", **PASSWORD).stderr
    assert "no work pool 'mine'; there are: grpo" in said
    server.api("POST", "/work_pools/", {"name": "mine", "type": "process"})
    before = {found["name"] for found in server.api("POST", "/automations/filter", {})}
    done = run_grpo(server.folder, "deploy", "--pool", "mine", "--server", server.url, **PASSWORD)
    assert done.returncode == 0, done.stderr
    assert {found["name"] for found in server.api("POST", "/automations/filter", {})} == before
    command = [GRPO.with_name("prefect"), "worker", "start", "--pool", "mine", "--type", "process"]
    settings = {"PREFECT_API_URL": f"{server.url}/api", "PREFECT_API_AUTH_STRING": "me:secret"}
    more = {"PREFECT_HOME": str(server.folder / "worker"), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    worker = subprocess.Popen(
        command,
        cwd=server.folder,
        env=environment() | settings | more,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        run = server.start("train", config="configs/small.yaml", run="elsewhere", iterations=1)
        assert server.await_state(run, "COMPLETED", "FAILED", "CRASHED")["type"] == "COMPLETED"
        assert server.api("GET", f"/flow_runs/{run}")["work_pool_name"] == "mine"
    finally:
        worker.terminate()
        worker.wait(60)
    assert (server.folder / "artifacts/elsewhere/iterations/0001/update/manifest.json").exists()


def test_nothing_was_asked_of_the_world_outside(again, outside):
    assert outside[1] == []
