"""How a flow or a task fails over what the user can mend: with one sentence, and no traceback."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect.client.schemas.objects import State
from prefect.states import Failed

from stages.contract.errors import GrpoError

P = ParamSpec("P")
R = TypeVar("R")


def without_traceback(record: logging.LogRecord) -> bool:
    """Has the log say the sentence too, where Prefect would write down the error's whole way."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, GrpoError):
        record.msg, record.args, record.exc_info = str(error), (), None
    return True


for name in ("prefect.flow_runs", "prefect.engine"):
    logging.getLogger(name).addFilter(without_traceback)


def in_one_sentence(work: Callable[P, R]) -> Callable[P, R | State[Any]]:
    """Lets a `GrpoError` be the state's message; whoever asks for the result still meets the error itself."""

    @wraps(work)
    def told(*args: P.args, **kwargs: P.kwargs) -> R | State[Any]:
        try:
            return work(*args, **kwargs)
        except GrpoError as error:
            return Failed(message=str(error), data=error)

    return told
