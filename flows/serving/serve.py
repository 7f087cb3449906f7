"""`grpo serve`: Prefect's server with its UI and a worker, which end together with this process, however it ends."""

import ipaddress
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows.serving.prefect_server import (
    CONFIGURED_LIMIT,
    free_port,
    prefect_environment,
    start_server,
    wait_until_it_answers,
)
from flows.serving.server_lock import Owner, claim
from flows.serving.settings import Told
from flows.serving.worker import READY
from stages.contract.errors import ConfigError, GrpoError

POOL = "grpo"
"""The work pool of a folder's own server; on a server that is shared, the host's name stands behind it."""
WORKER_SETTINGS = {
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_RUNNER_POLL_FREQUENCY": "2",
    "PREFECT_LOGGING_LEVEL": "INFO",
}
"""How soon the worker sees what it is asked for, in seconds; whatever the user has set stays."""


def serve(told: Told, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves until it is told to end.

    Args:
        told: what the worker needs to know; the server's database is in `.prefect` of the artifacts.
        host: address that the server listens on.
        port: its port.
        say: told the UI's address when all is ready.

    Raises:
        GrpoError: the server or the worker does not start, or has ended by itself.
    """
    told.artifacts.mkdir(parents=True, exist_ok=True)
    prefect_environment(told.artifacts)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as stack, claim(home := Path(os.environ["PREFECT_HOME"])) as claimed:
        if isinstance(claimed, Owner):
            raise GrpoError(_taken(home, claimed))
        processes = []
        if configured := os.environ.get("PREFECT_API_URL"):
            wait_until_it_answers(configured, None, CONFIGURED_LIMIT)
            claimed(url := configured, True)
        else:
            check_host(host)
            port = free_port(host, port)
            url = os.environ["PREFECT_API_URL"] = f"http://{_reached_at(host)}:{port}/api"
            claimed(url, True)
            server = stack.enter_context(start_server(host, port, _server_settings(home, host, port)))
            wait_until_it_answers(url, server)
            processes.append(server)
        pool = f"{POOL}-{socket.gethostname()}" if configured else POOL
        told = told.model_copy(update={"own_server": not configured, "pool": pool})
        (home / "worker.log").unlink(missing_ok=True)
        worker = stack.enter_context(_worker(home, told))
        say(url.removesuffix("/api"))
        ended = _first_to_end([*processes, worker])
        which = "worker" if ended is worker else "server"
        raise GrpoError(f"Prefect's {which} has ended with code {ended.wait()}; see {home}/{which}.log")


def check_host(host: str) -> None:
    """Refuses to listen to other machines without a password.

    Raises:
        ConfigError: it does.
    """
    if not is_loopback(host) and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        raise ConfigError(
            f"--host {host}: whoever reaches this address could start processes here; set a password first, "
            "PREFECT_SERVER_API_AUTH_STRING=user:password"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reached_at(host: str) -> str:
    """The address by which processes of this machine reach a server that listens on `host`."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{reached}]" if ":" in reached else reached


def _taken(home: Path, owner: Owner) -> str:
    what = f"grpo serve is running already, at {owner.url.removesuffix('/api')}" if owner.shared else "a command"
    return f"{home}: {what} (process {owner.pid}) has the database; end it first" + (
        "" if owner.shared else ", or wait for its end"
    )


def _server_settings(home: Path, host: str, port: int) -> dict[str, str]:
    own = {
        "PREFECT_SERVER_API_HOST": host,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_ENABLED": "1",
        "PREFECT_UI_URL": f"http://{_reached_at(host)}:{port}",
        "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
        "PREFECT_LOGGING_LEVEL": "WARNING",
    }
    return own | ({} if is_loopback(host) else {"PREFECT_UI_API_URL": "/api"})


@contextmanager
def _worker(home: Path, told: Told) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of `serving.worker` that is ready; it is killed afterwards, and its flow processes end with it."""
    process, said = _started(home, told)
    if not said:  # it died, or gave up after its limit: what it was at stands in the log
        process.wait()
        process, said = _started(home, told)
    try:
        if said != READY:
            raise GrpoError(said or f"the worker did not start; see {home}/worker.log")
        yield process
    finally:
        process.kill()
        process.wait()


def _started(home: Path, told: Told) -> tuple["subprocess.Popen[bytes]", str]:
    """A worker, and what it says when it is ready or cannot be; nothing where it ended before."""
    reads, writes = os.pipe()
    environment = WORKER_SETTINGS | {k: v for k, v in os.environ.items() if k != "PREFECT_LOGGING_LEVEL"}
    with (home / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.serving.worker", str(os.getpid()), str(writes), told.model_dump_json()],
            env=environment,
            pass_fds=(writes,),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    os.close(writes)
    with os.fdopen(reads, encoding="utf-8") as pipe:
        return process, pipe.read()


def _first_to_end(processes: list["subprocess.Popen[bytes]"]) -> "subprocess.Popen[bytes]":
    """Waits until one of them ends."""
    watched = {os.pidfd_open(process.pid): process for process in processes}
    try:
        return watched[select.select(list(watched), [], [])[0][0]]
    finally:
        for descriptor in watched:
            os.close(descriptor)
