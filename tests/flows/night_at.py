"""Spends a night of a run below `artifacts` with the clock moved: `python -m tests.flows.night_at WHEN RUN`.

The clock begins at WHEN and goes on from there. All else is as `grpo nightly` does it.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

from flows.runs.access import open_run
from flows.serving.prefect_server import prefect_server

ZONE = "Europe/Berlin"


def main(when: str, run: str) -> None:
    moved = datetime.fromisoformat(when) - datetime.now(UTC)
    paths, config = open_run(Path("artifacts"), run)
    with prefect_server(Path("artifacts")) as wait_for_server:
        from prefect import flow
        from prefect.client.schemas.objects import State

        from flows.nightly import spend

        @flow(name="night", persist_result=False)
        def night() -> State[None]:
            return spend(paths, config, config.nights, ZONE, lambda: datetime.now(UTC) + moved)

        wait_for_server()
        state = night(return_state=True)
        print(f"{state.name}: {state.message}")


if __name__ == "__main__":
    main(*sys.argv[1:])
