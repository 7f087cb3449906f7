"""The worker of `grpo serve`: registers what is offered, then starts a process for each flow run that is asked for."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from flows.flow_process import SLOTS
from flows.server import end_with_parent

POOL = "grpo"
RESTARTED = "grpo serve was ended while it ran; it goes on from the last stage in place"


def prepare(configs: list[str], artifacts: Path, slots: int, own_server: bool) -> None:
    """Brings what is served on the server up to date, and takes up what an earlier `grpo serve` left running."""
    from flows.automations import apply, crash_rules
    from flows.deployments import process_variables, register

    asyncio.run(_make_pool(slots))
    made = register(POOL, configs, process_variables(Path.cwd(), artifacts, {SLOTS: str(slots)}))
    apply(crash_rules(made.values(), own_server))
    asyncio.run(_take_up())


async def _make_pool(slots: int) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.workers.process import ProcessWorker

    pool = WorkPoolCreate(
        name=POOL,
        description="Flow runs of `grpo serve`, on its own machine; its limit is the number of runs at a time.",
        type=ProcessWorker.type,
        base_job_template=ProcessWorker.get_default_base_job_template(),
        concurrency_limit=slots,
    )
    async with get_client() as client:
        await client.create_work_pool(pool, overwrite=True)


async def _take_up() -> None:
    """Schedules again what was at work when the worker before this one ended: its processes ended with it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        WorkPoolFilter,
        WorkPoolFilterName,
    )
    from prefect.client.schemas.objects import State, StateType
    from prefect.states import AwaitingRetry, Cancelled

    at_work = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    async with get_client() as client:
        left = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=at_work))),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
        )
        for run in left:
            cancelled = run.state is not None and run.state.is_cancelling()
            state: State[Any] = Cancelled() if cancelled else AwaitingRetry(message=RESTARTED)
            await client.set_flow_run_state(run.id, state, force=True)


async def _work() -> None:
    from prefect.workers.process import ProcessWorker

    # The pool limits what runs at a time. A limit of the worker's own would end it when a suspended flow run is resumed
    # before its former process is gone: "this borrower is already holding one of this CapacityLimiter's tokens".
    worker = ProcessWorker(work_pool_name=POOL, name="grpo serve")
    await worker.start(printer=lambda *_: None)


def main(parent: int, ready: int, artifacts: Path, slots: int, own_server: bool, configs: list[str]) -> None:
    """The worker's own process. It writes a word to the pipe `ready` when what is asked for would be done."""
    if not end_with_parent(parent):
        return
    prepare(configs, artifacts, slots, own_server)
    os.write(ready, b"ready")
    os.close(ready)
    asyncio.run(_work())


if __name__ == "__main__":
    _parent, _ready, _artifacts, _slots, _own, *_configs = sys.argv[1:]
    main(int(_parent), int(_ready), Path(_artifacts), int(_slots), _own == "own", _configs)
