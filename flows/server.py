"""A Prefect server for the time of one command, where none is configured."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.contract.errors import GrpoError

START_LIMIT = 120
"""Seconds that a server may take to answer; a first start on a busy machine takes most of a minute."""
PR_SET_PDEATHSIG = 1


def prefect_environment(artifacts: Path) -> None:
    """Settings that must stand before Prefect is imported; whatever the user has set stays."""
    home = Path(os.environ.setdefault("PREFECT_HOME", str((artifacts / ".prefect").resolve())))
    home.mkdir(parents=True, exist_ok=True)
    for name, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_MEMO_STORE_PATH": str(home / "memo_store.toml"),
    }.items():
        os.environ.setdefault(name, value)


@contextmanager
def prefect_server(artifacts: Path) -> Iterator[Callable[[], None]]:
    """Starts Prefect's own server on a free port of 127.0.0.1 and ends it afterwards, also when this process is killed.

    Where `PREFECT_API_URL` names a server, that one is used. What is yielded waits until the server answers, and is to
    be called before the first flow; other work may come before it.
    """
    prefect_environment(artifacts)
    if configured := os.environ.get("PREFECT_API_URL"):
        yield lambda: _wait(configured, None)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "flows.server", str(port), str(os.getpid())]
    environment = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    with (Path(os.environ["PREFECT_HOME"]) / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
    url = os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    try:
        yield lambda: _wait(url, process)
    finally:
        del os.environ["PREFECT_API_URL"]
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes] | None) -> None:
    """Waits until a server answers.

    Raises:
        GrpoError: it does not, or its process has ended.
    """
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
        if process is not None and process.poll() is not None:
            raise GrpoError(f"Prefect's server ended at once; see {os.environ['PREFECT_HOME']}/server.log")
    raise GrpoError(f"the Prefect server at {url} has not answered for {START_LIMIT} s; is PREFECT_API_URL right?")


def _serve(port: int, parent: int) -> None:
    """The server's own process: asks the kernel to be ended with its parent, then serves."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    import uvicorn

    app = "prefect.server.api.server:create_app"
    uvicorn.run(app, factory=True, host="127.0.0.1", port=port, log_level="error", lifespan="on")


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:]))
