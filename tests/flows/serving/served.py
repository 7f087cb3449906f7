"""A real `grpo serve` in a folder of its own, spoken to through Prefect's API as the UI does."""

import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stages.contract.lifeline import PR_SET_PDEATHSIG
from tests.flows.conftest import GRPO, environment


def eventually(condition: Callable[[], Any], seconds: float, why: Callable[[], str] = lambda: "") -> Any:
    """What the condition gives as soon as that is true; fails after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if got := condition():
            return got
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s {why()}")


@dataclass
class Served:
    """A running `grpo serve`."""

    folder: Path
    """Where it runs; `configs/small.yaml` and `artifacts` lie in it."""
    url: str
    """The UI's address; the API's is this with `/api`."""
    process: "subprocess.Popen[bytes]"
    log: Path
    auth: tuple[str, str] | None = None

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Asks Prefect's API; what it answers."""
        answer = httpx.request(method, f"{self.url}/api{path}", json=body, timeout=60, auth=self.auth)
        assert answer.status_code < 300, f"{path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def start(self, deployment: str, **parameters: Any) -> str:
        """Starts a run of the deployment, as the form does; its id. `train` stands for `train/train`."""
        found = self.api("GET", f"/deployments/name/{deployment}/{deployment}")
        made = self.api("POST", f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return str(made["id"])

    def state(self, run: str) -> dict[str, Any]:
        """The state of a flow run: type, name and message."""
        state: dict[str, Any] = self.api("GET", f"/flow_runs/{run}")["state"]
        return state

    def await_state(self, run: str, *types: str, seconds: float = 180) -> dict[str, Any]:
        """Waits until a flow run is in a state of one of these types (COMPLETED, RUNNING, …)."""
        state: dict[str, Any] = eventually(
            lambda: (now := self.state(run))["type"] in types and now,
            seconds,
            lambda: f"{self.state(run)} {self.logs()}",
        )
        return state

    def run(self, deployment: str, **parameters: Any) -> dict[str, Any]:
        """Runs a deployment to its end; the last state."""
        return self.await_state(self.start(deployment, **parameters), "COMPLETED", "FAILED", "CANCELLED", "CRASHED")

    def logs(self) -> str:
        """What the worker and its flow processes have written."""
        return (self.folder / "artifacts/.prefect/worker.log").read_text(errors="replace")[-4000:]


@contextmanager
def serving(folder: Path, *options: str, **variables: str) -> Iterator[Served]:
    """Runs `grpo serve` in a folder, on a free port, until the end of the block."""
    log = folder / "serve.log"
    kernel, parent = ctypes.CDLL(None), os.getpid()

    def end_with_these_tests() -> None:
        kernel.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(GRPO), "serve", "--port", "0", *options],
            cwd=folder,
            env=environment() | variables,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=end_with_these_tests,  # noqa: PLW1509 - it calls the kernel and nothing else
        )
    try:
        ready = eventually(
            lambda: re.search(r"http://\S+", log.read_text()) or process.poll() is not None, 700, log.read_text
        )
        assert process.poll() is None, log.read_text()
        yield Served(folder, ready.group(), process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


def descendants(pid: int) -> set[int]:
    """All processes below a process, by what the kernel says now."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, edge = set[int](), {pid}
    while edge := {child for child, parent in parents.items() if parent in edge} - found:
        found |= edge
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_line(pid: int) -> str:
    """How a process was started; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
