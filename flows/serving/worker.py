"""The worker of `grpo serve`: registers what is offered, then starts a process for each flow run that is asked for."""

import asyncio
import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

from flows.serving.flow_process import SLOTS
from flows.serving.settings import Told
from stages.contract.errors import GrpoError
from stages.contract.lifeline import end_with_parent

READY = "ready"
LIMIT = 300.0
"""Seconds to register what is offered, beside other work too (some ten on two idle cores); after that the worker writes
where it hangs into its log, and ends."""
RESTARTED = "grpo serve was ended while it ran; it goes on from the last stage in place"


def prepare(told: Told) -> None:
    """Brings what is served on the server up to date, and takes up what an earlier `grpo serve` left running."""
    from flows.serving.automations import apply, crash_rules, notification_rules
    from flows.serving.deployments import process_variables, register

    asyncio.run(_make_pool(told.pool, told.slots))
    variables = process_variables(Path.cwd(), told.artifacts, {SLOTS: str(told.slots)})
    made = register(told.pool, told.configs, variables, told.nights).values()
    apply(crash_rules(made, told.own_server) + notification_rules(told.notifications, made))
    asyncio.run(_take_up(told.pool))


async def _make_pool(name: str, slots: int) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.workers.process import ProcessWorker

    pool = WorkPoolCreate(
        name=name,
        description="Flow runs of `grpo serve`, on its own machine; its limit is the number of runs at a time.",
        type=ProcessWorker.type,
        base_job_template=ProcessWorker.get_default_base_job_template(),
        concurrency_limit=slots,
    )
    async with get_client() as client:
        await client.create_work_pool(pool, overwrite=True)


async def _take_up(pool: str) -> None:
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
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        )
        for run in left:
            cancelled = run.state is not None and run.state.is_cancelling()
            state: State[Any] = Cancelled() if cancelled else AwaitingRetry(message=RESTARTED)
            await client.set_flow_run_state(run.id, state, force=True)


async def _work(pool: str) -> None:
    from prefect.workers.process import ProcessWorker

    # The pool limits what runs at a time. A limit of the worker's own would end it when a suspended flow run is resumed
    # before its former process is gone: "this borrower is already holding one of this CapacityLimiter's tokens".
    worker = ProcessWorker(work_pool_name=pool, name="grpo serve")
    await worker.start(printer=lambda *_: None)


def main(parent: int, ready: int, told: Told) -> None:
    """The worker's own process: says into the pipe `ready` that what is asked for would be done, or what is wrong."""
    if not end_with_parent(parent):
        return
    with os.fdopen(ready, "w", encoding="utf-8") as pipe:
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        try:
            prepare(told)
        except GrpoError as failure:
            pipe.write(str(failure))
            return
        finally:
            faulthandler.cancel_dump_traceback_later()
        pipe.write(READY)
    asyncio.run(_work(told.pool))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Told(**json.loads(sys.argv[3])))
