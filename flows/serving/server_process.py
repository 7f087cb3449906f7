"""Runs Prefect's server, as a process of its own that ends with the one that started it."""

import sys
from typing import Any

from stages.contract.lifeline import end_with_parent


def _write_in_turn() -> None:
    """Lets the server's transactions on SQLite wait for one another from their beginning.

    As Prefect begins them, one that reads before it writes fails at once ("database is locked", HTTP 503) where another
    has written in between.
    """
    from prefect.server.database.configurations import AioSqliteConfiguration

    begin = AioSqliteConfiguration.begin_transaction

    def begin_to_write(self: Any, session: Any, with_for_update: bool = True) -> Any:
        return begin(self, session, with_for_update=True)

    AioSqliteConfiguration.begin_transaction = begin_to_write  # type: ignore[method-assign]


def _serve(host: str, port: int, parent: int) -> None:
    """The server's own process."""
    if not end_with_parent(parent):
        return
    import uvicorn

    _write_in_turn()
    app = "prefect.server.api.server:create_app"
    uvicorn.run(app, factory=True, host=host, port=port, log_level="error", lifespan="on", timeout_graceful_shutdown=3)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
