"""What Prefect's UI shows of a run while it is worked on: progress, a table, a page, log lines, the flow run's name.

A thread of its own talks to the server, at most once a period, and the newest state of a thing is all that is sent of
it. So the work never waits for the server, and a server that is gone is told of once and never stops a training.
"""

import contextvars
import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import prefect.runtime.flow_run
from blake3 import blake3
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, LogCreate
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.config.loading import read_yaml
from flows.config.schema import RunConfig
from flows.config.stages import UNITS, place_of
from flows.inspection.metrics import SHOWN
from flows.inspection.report import Row, report, row, total_seconds
from flows.runs import observers
from flows.runs.history import History
from stages.contract.errors import ConfigError
from stages.contract.paths import RunPaths

PERIOD = 1.0
"""Seconds between two messages to the server."""
PAGE_SHARE = 0.05
"""The part of the time that drawing pages may take; where iterations are short, not each of them gets one."""
ROWS = 50
"""Iterations in the table."""
TOLERATED = 30.0
"""Seconds of failing messages before that is said: a server may be started again meanwhile."""
PATIENCE = 10.0
"""Seconds that a request, or the last words at the end of a flow, may take."""


def key_of(run: str, what: str) -> str:
    """The key of a run's artifact: lowercase letters, digits and dashes; no two runs of different names share one."""
    plain = re.sub(r"[^a-z0-9]", "-", run.lower())
    return f"{plain}-{what}" if plain == run else f"{plain}-{blake3(run.encode()).hexdigest()[:6]}-{what}"


def train_name() -> str:
    """The name that a flow run of `train` begins with; then it says the iteration."""
    return f"{_run_name()} · train"


def reward_model_name() -> str:
    """The name of a flow run of `reward_model`."""
    return f"{_run_name()} · reward model"


def _run_name() -> str:
    """The run of a flow run that is told of a configuration."""
    parameters = prefect.runtime.flow_run.parameters
    run, config = parameters.get("run"), Path(str(parameters["config"]))
    if not run:
        try:
            run = read_yaml(config).get("run") or config.stem
        except ConfigError:  # the flow itself will say what is wrong with it
            run = config.stem
    return str(run)


def task_name(parameters: dict[str, Any]) -> str:
    """The name of a task run."""
    return f"{parameters['stage']} · {Path(parameters['run']).name}/{parameters['iteration']}"


@contextmanager
def published(
    paths: RunPaths, config: RunConfig, iterations: int | None = None, named: str | None = None
) -> Iterator[None]:
    """Has the UI shown what is done to a run within the block; outside a flow run nothing is.

    Args:
        paths: the run.
        config: its configuration.
        iterations: where iterations are trained, the last one; None where that is not known.
        named: what the flow run's name says before the iteration at work; None leaves the name alone.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield
        return
    publisher = Publisher(paths, config, iterations, context.flow_run.id, named)
    with observers.watching(publisher):
        try:
            yield
        finally:
            publisher.close()


@dataclass(frozen=True)
class _Work:
    """What a stage has done so far."""

    stage: str
    iteration: int
    done: int
    total: int


class Publisher:
    """A `Watcher` whose display is Prefect's UI."""

    def __init__(
        self, paths: RunPaths, config: RunConfig, iterations: int | None, flow_run: UUID, named: str | None = None
    ) -> None:
        self._title = named
        self._paths, self._config, self._iterations, self._flow_run = paths, config, iterations, flow_run
        self._work: _Work | None = None
        self._shown: _Work | None = None
        self._named: int | None = None
        self._lines: deque[LogCreate] = deque(maxlen=1000)
        self._fresh: dict[int, Row] = {}
        self._rows: dict[int, Row] = {}
        self._artifacts: dict[str, UUID] = {}
        self._page_due = 0.0
        self._failing_since: float | None = None
        self._told = False
        self._ended = threading.Event()
        # The context holds the settings that say where the server is.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._serve,), name="publish", daemon=True)
        self._thread.start()

    def working(self, stage: str, k: int, done: int, total: int) -> None:
        """Moves the progress."""
        self._work = _Work(stage, k, done, total)

    def stage_done(self, paths: RunPaths, stage: str, k: int, told: str) -> None:
        """Logs a line of the stage, in its task run too."""
        manifest = History(paths).manifest(k, place_of(stage))
        if manifest is None:
            return
        rows = max((record.rows for record in manifest.outputs.values() if record.rows is not None), default=0)
        self._log(f"{stage} of iteration {k}: {rows} rows in {manifest.seconds:.2f} s, {told}")

    def iteration_done(self, paths: RunPaths, k: int) -> None:
        """Has the table and the page show the iteration."""
        self._fresh[k] = row(History(paths), self._config, k)
        self._log(_summary(self._fresh[k], self._iterations))

    def say(self, text: str) -> None:
        """Logs a line."""
        self._log(text)

    def close(self) -> None:
        """Sends what is left; waits for it, within limits."""
        self._ended.set()
        self._thread.join(PATIENCE)

    def _log(self, message: str) -> None:
        task = TaskRunContext.get()
        self._lines.append(
            LogCreate(
                name="grpo-flows",
                level=logging.INFO,
                message=message,
                timestamp=datetime.now(UTC),
                flow_run_id=self._flow_run,
                task_run_id=task.task_run.id if task else None,
            )
        )

    def _serve(self) -> None:
        # Settings of its own make it a client of its own, which no other thread closes. Each period is a new attempt.
        retries = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1})
        with retries, get_client({"timeout": PATIENCE}, sync_client=True) as client:
            while not self._ended.wait(PERIOD):
                self._attempt(client)
            self._page_due = 0.0
            self._attempt(client, last=True)

    def _attempt(self, client: SyncPrefectClient, last: bool = False) -> None:
        try:
            self._send(client, last)
            self._failing_since = None
        except Exception as error:  # nothing that goes wrong with a display is worth a training
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            if not self._told and (last or now - self._failing_since > TOLERATED):
                self._told = True
                observers.say(
                    f"Prefect's UI does not show this run's latest state: {str(error) or type(error).__name__}"
                )

    def _send(self, client: SyncPrefectClient, last: bool) -> None:
        work = self._work
        if work is not None and self._title is not None and self._named != work.iteration:
            client.set_flow_run_name(self._flow_run, f"{self._paths.root.name} · {self._title} {work.iteration}")
            self._named = work.iteration
        if work is not None and work != self._shown:
            share = 100.0 * work.done / work.total if work.total else 0.0
            self._put(client, "progress", share, self._described(work))
            self._shown = work
        if self._lines:
            lines = list(self._lines)
            client.create_logs(lines)
            for _ in lines:
                self._lines.popleft()
        if self._fresh or last:
            self._tabulate(client)

    def _tabulate(self, client: SyncPrefectClient) -> None:
        history = History(self._paths)
        fresh = dict(self._fresh)
        newest = max(fresh, default=history.last())
        if not self._rows:
            self._rows = {k: row(history, self._config, k) for k in range(max(0, newest - ROWS + 1), newest + 1)}
        self._rows |= fresh
        table = [self._rows[k] for k in sorted(self._rows, reverse=True)[:ROWS]]
        self._put(client, "table", json.dumps(table), f"The last {len(table)} iterations of {self._paths.root.name}.")
        for k in fresh:
            del self._fresh[k]
        if time.monotonic() >= self._page_due:
            begun = time.monotonic()
            self._put(client, "page", report(history, self._config), f"{self._paths.root.name}, iteration {newest}.")
            self._page_due = time.monotonic() + (time.monotonic() - begun) / PAGE_SHARE

    def _put(self, client: SyncPrefectClient, what: str, data: Any, description: str) -> None:
        """Makes an artifact of this flow run, or moves it on. An event for each move would keep every page for days."""
        if what in self._artifacts:
            body = {"data": data, "description": description}
            client.request("PATCH", "/artifacts/{id}", json=body, path_params={"id": self._artifacts[what]})
            return
        made = client.create_artifact(
            ArtifactCreate(
                key=key_of(self._paths.root.name, what),
                type={"progress": "progress", "table": "table", "page": "markdown"}[what],
                data=data,
                description=description,
                flow_run_id=self._flow_run,
            )
        )
        self._artifacts[what] = made.id

    def _described(self, work: _Work) -> str:
        of = f" of {self._iterations}" if self._iterations is not None else ""
        counted = f"{work.done} of {work.total} {UNITS.get(work.stage, 'steps')}" if work.total else "begins"
        return f"Iteration {work.iteration}{of}, {work.stage}: {counted}."


def _summary(figures: Row, iterations: int | None) -> str:
    of = f" of {iterations}" if iterations is not None else ""
    told = [f"{title} {figures[title]:.4f}" for _, title in SHOWN if figures[title] is not None]
    return f"iteration {figures['iteration']}{of}: {', '.join([*told, f'{total_seconds(figures):.1f} s'])}"
