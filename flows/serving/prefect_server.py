"""Prefect's server: the one that is configured, the one that `grpo serve` runs, or one for the time of one command."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.serving.server_lock import Owner, claim
from stages.contract.errors import GrpoError

START_LIMIT = 120
"""Seconds that a server may take to answer; a first start on a busy machine takes most of a minute."""
CONFIGURED_LIMIT = 20
"""Seconds that a server which should be running already may take."""
LEAST_ROOM = 1 << 20
"""Bytes without which the server's database cannot be written."""
PASSWORD = "PREFECT_API_AUTH_STRING"
DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"
EMBEDDED = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""A server without the UI and without the services that a single command does not need."""


def prefect_environment(artifacts: Path) -> None:
    """Settings that must stand before Prefect is imported; whatever the user has set stays."""
    home = Path(os.environ.setdefault("PREFECT_HOME", str((artifacts / ".prefect").resolve())))
    home.mkdir(mode=0o700, parents=True, exist_ok=True)  # the database holds blocks, and the key to their secrets
    for name, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_SERVER_MEMO_STORE_PATH": str(home / "memo_store.toml"),
    }.items():
        os.environ.setdefault(name, value)
    if password := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        os.environ.setdefault(PASSWORD, password)


@contextmanager
def prefect_server(artifacts: Path) -> Iterator[Callable[[], None]]:
    """The server for one command: the one `PREFECT_API_URL` names, else that of a running `grpo serve`, else its own.

    Its own is on a free port of 127.0.0.1, and ends with the command, also when this process is killed. A database is
    never opened by two servers: beside another command's server it has a database for itself. What is yielded waits
    until the server answers, and is to be called before the first flow; other work may come before it.
    """
    prefect_environment(artifacts)
    home = Path(os.environ["PREFECT_HOME"])
    with _in_one_sentence(home):
        yield from _server(home)


def _server(home: Path) -> Iterator[Callable[[], None]]:
    if configured := os.environ.get("PREFECT_API_URL"):
        with _said_when_gone(configured):
            yield lambda: wait_until_it_answers(configured, None, CONFIGURED_LIMIT)
        return
    with claim(home) as claimed:
        if isinstance(claimed, Owner) and claimed.shared:
            with _pointed_at(url := claimed.url), _said_when_gone(url):
                yield lambda: wait_until_it_answers(url, None)
            return
        port = free_port("127.0.0.1", 0)
        url = f"http://127.0.0.1:{port}/api"
        if isinstance(claimed, Owner):
            settings = EMBEDDED | ({} if DATABASE in os.environ else {DATABASE: "sqlite+aiosqlite:///:memory:"})
        else:
            claimed(url, False)
            settings = EMBEDDED
        with start_server("127.0.0.1", port, settings) as process, _pointed_at(url):
            yield lambda: wait_until_it_answers(url, process)


@contextmanager
def _said_when_gone(url: str) -> Iterator[None]:
    try:
        yield
    except Exception as failure:
        import httpx

        if isinstance(failure, httpx.TransportError):
            raise GrpoError(
                f"the Prefect server at {url} is gone; the same command goes on when one is there"
            ) from None
        raise


@contextmanager
def running_server(artifacts: Path) -> Iterator[str]:
    """The address of a server that is up already: the one `PREFECT_API_URL` names, else that of `grpo serve`.

    Raises:
        GrpoError: there is none.
    """
    prefect_environment(artifacts)
    with claim(Path(os.environ["PREFECT_HOME"])) as claimed:
        shared = claimed.url if isinstance(claimed, Owner) and claimed.shared else None
        if (url := os.environ.get("PREFECT_API_URL", shared)) is None:
            raise GrpoError(
                "no Prefect server is known; name it with --server or PREFECT_API_URL, or start `grpo serve`"
            )
        wait_until_it_answers(url, None, CONFIGURED_LIMIT)
        with _pointed_at(url):
            yield url


@contextmanager
def start_server(host: str, port: int, settings: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Runs Prefect's server in a process of its own, which ends with this one, however that ends."""
    command = [sys.executable, "-P", "-m", "flows.serving.server_process", host, str(port), str(os.getpid())]
    with (Path(os.environ["PREFECT_HOME"]) / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _in_one_sentence(home: Path) -> Iterator[None]:
    """Tells a server that fails from what was asked of it: its disk is full, say."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] not in {"prefect", "httpx", "httpcore"}:
            raise
        told = str(error).partition("\n")[0][:200]
        raise GrpoError(
            f"Prefect's server does not do its part ({told}); {_look(home)}. Stages that were done are in place, and "
            "the same command goes on"
        ) from error


def _look(home: Path) -> str:
    full = shutil.disk_usage(home).free < LEAST_ROOM
    return f"the disk of {home} is full: make room" if full else f"see {home}/server.log"


@contextmanager
def _pointed_at(url: str) -> Iterator[None]:
    os.environ["PREFECT_API_URL"] = url
    try:
        yield
    finally:
        os.environ.pop("PREFECT_API_URL")


def free_port(host: str, port: int) -> int:
    """The port, where nothing listens on it; 0 takes any free one.

    Raises:
        GrpoError: the port is in use, or there is no such address here.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself: TIME_WAIT is no obstacle
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as failure:
            reason = getattr(failure, "strerror", None) or failure
            raise GrpoError(f"the server cannot listen on {host}:{port} ({reason}); take another --port") from None
        return int(probe.getsockname()[1])


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes] | None, limit: float = START_LIMIT) -> None:
    """Waits until a server answers, for `limit` seconds at most.

    Raises:
        GrpoError: it does not, or its process has ended.
    """
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(_question(url), timeout=5) as answer:
                json.load(answer)  # where it is a page, the address is the UI's
            return
        except urllib.error.HTTPError as refusal:
            if refusal.code in {401, 403}:
                raise GrpoError(
                    f"the Prefect server at {url} wants a password; {PASSWORD} has to be user:password"
                ) from None
            time.sleep(0.1)
        except OSError:
            time.sleep(0.1)
        except ValueError:
            raise GrpoError(f"PREFECT_API_URL is {url!r}; it has to look like http://127.0.0.1:4200/api") from None
        if process is not None and process.poll() is not None:
            raise GrpoError(f"Prefect's server ended at once; {_look(Path(os.environ['PREFECT_HOME']))}")
    raise GrpoError(f"the Prefect server at {url} has not answered for {limit} s; is PREFECT_API_URL right?")


def _question(url: str) -> urllib.request.Request:
    """One that a server answers only if it takes the password; of Prefect Cloud, which takes keys, its health."""
    if "PREFECT_API_KEY" in os.environ:
        return urllib.request.Request(f"{url}/health")
    password = base64.b64encode(os.environ.get(PASSWORD, "").encode()).decode()
    return urllib.request.Request(f"{url}/version", headers={"Authorization": f"Basic {password}"})
