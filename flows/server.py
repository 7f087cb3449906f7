"""A Prefect server for the time of one command, where none is configured."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.contract.errors import GrpoError

START_LIMIT = 180
"""Seconds that the server may take to answer; a first start on a busy machine takes most of a minute."""
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
def embedded_server(artifacts: Path) -> Iterator[None]:
    """Starts Prefect's own server on a free port of 127.0.0.1 and ends it afterwards, also when this process is killed.

    Does nothing where `PREFECT_API_URL` names a server. `wait_for_server` must come before the first flow.
    """
    prefect_environment(artifacts)
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (Path(os.environ["PREFECT_HOME"]) / "server.log").open("wb")
    command = [sys.executable, "-m", "flows.server", str(port), str(os.getpid())]
    environment = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    try:
        yield
    finally:
        del os.environ["PREFECT_API_URL"]
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def wait_for_server() -> None:
    """Waits until the configured server answers.

    Raises:
        GrpoError: it does not.
    """
    url = os.environ["PREFECT_API_URL"]
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise GrpoError(
        f"the Prefect server at {url} does not answer after {START_LIMIT} s; an embedded server's log is "
        f"{os.environ.get('PREFECT_HOME')}/server.log; to use another server set PREFECT_API_URL"
    )


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
