"""A user's reward function, a process: `python -m stages.score.workers.user_function SOCKET LIFELINE`.

It is told which function, says that it has it, then answers each call, all as JSON, until the socket ends. What the
function prints goes to stderr. Nothing here reads or writes any table.
"""

import asyncio
import importlib
import importlib.util
import inspect
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stages.contract.lifeline import end_with

Value = tuple[float | None, str | None]
"""A reward (None where it does not apply) and what is wrong with it."""


@dataclass(frozen=True)
class TrainerState:
    """What a function finds in `trainer_state`."""

    global_step: int
    """The iteration."""


def load(file: str, module: str | None, name: str, make: bool, arguments: dict[str, Any]) -> Callable[..., Any]:
    """The function; where `make` is set, the one that it gives when it is called with `arguments`."""
    found: Any
    if module is not None:
        found = importlib.import_module(module)
    else:
        sys.path.append(str(Path(file).parent))
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        assert spec is not None and spec.loader is not None, "its name ends in .py"
        found = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(Path(file).stem, found)
        spec.loader.exec_module(found)
    for part in name.split("."):
        found = getattr(found, part)
    if make:
        found = found(**arguments)
    if not callable(found):
        raise TypeError(f"{name} is a {type(found).__name__}, which cannot be called")
    return found  # type: ignore[no-any-return]


def accepted(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # one written in C tells nothing
        return arguments
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in arguments.items() if name in names}


def checked(value: Any) -> Value:
    """A value that a function gave, as a number, or what is wrong with it."""
    if value is None:
        return None, None
    if isinstance(value, str | bytes):
        return None, f"the function gave {value!r:.80}, which is no number"
    try:
        number = float(value)
    except Exception as failure:  # whatever object it may be
        return None, f"the function gave {value!r:.80}, which is no number ({type(failure).__name__})"
    return (number, None) if math.isfinite(number) else (None, f"the function gave {number}")


class Caller:
    """Calls a function as TRL or verl do."""

    def __init__(self, function: Callable[..., Any], file: str, arguments: dict[str, Any]) -> None:
        self._function, self._file, self._arguments = function, file, arguments
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)

    def trl(self, iteration: int, rows: int, given: dict[str, Any]) -> dict[str, Any]:
        """The rewards of some completions, and what the function logged of each."""
        notes: list[dict[str, Any]] = [{} for _ in range(rows)]

        def log_extra(column: str, values: Iterable[Any]) -> None:
            for note, value in zip(notes, values, strict=True):
                note[column] = _plain(value)

        def log_metric(name: str, value: Any) -> None:
            notes[0].setdefault("metrics", {})[name] = _plain(value)

        logs = {"log_extra": log_extra, "log_metric": log_metric}
        result = self._call(given | {"trainer_state": TrainerState(iteration)} | logs)
        if isinstance(result, str | bytes | dict) or not hasattr(result, "__iter__"):
            raise TypeError(f"the function gave {result!r:.80}; a list of {rows} rewards is wanted")
        values = list(result)
        if len(values) != rows:
            raise ValueError(f"the function gave {len(values)} rewards for {rows} completions")
        return {"values": [checked(value) for value in values], "notes": notes}

    def verl(self, given: dict[str, Any]) -> dict[str, Any]:
        """The reward of one completion; of a dictionary its `score`, and the rest as what was logged."""
        result = self._call(given)
        if not isinstance(result, dict):
            return {"values": [checked(result)], "notes": [{}]}
        if "score" not in result:
            raise KeyError(f"the function gave a dictionary without 'score': {sorted(map(str, result))}")
        notes = {str(name): _plain(value) for name, value in result.items() if name != "score"}
        return {"values": [checked(result["score"])], "notes": [notes]}

    def told(self, failure: BaseException) -> str:
        """What is said of a failure: where in the function's own file, its kind and its message."""
        lines = [frame.lineno for frame in traceback.extract_tb(failure.__traceback__) if frame.filename == self._file]
        place = f"{Path(self._file).name}, line {lines[-1]}: " if lines else ""
        return f"{place}{type(failure).__name__}: {failure}"

    def _call(self, given: dict[str, Any]) -> Any:
        result = self._function(**accepted(self._function, given | self._arguments))
        return self._loop.run_until_complete(result) if inspect.isawaitable(result) else result


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: a number or text as it is, all else as text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    with suppress(Exception):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    return str(value)


def main(pipe: Connection) -> None:
    """Serves calls until the socket ends."""
    task = json.loads(pipe.recv_bytes())
    sys.path[:] = task["path"]
    try:
        function = load(task["file"], task["module"], task["name"], task["make"], task["arguments"])
    except BaseException as failure:  # a user's module may do anything, `sys.exit` too
        return pipe.send_bytes(json.dumps({"failed": f"{type(failure).__name__}: {failure}"}).encode())
    caller = Caller(function, task["file"], {} if task["make"] else task["arguments"])
    pipe.send_bytes(b"{}")
    with suppress(EOFError):
        while True:
            call = json.loads(pipe.recv_bytes())
            try:
                answer = caller.verl(call["given"]) if task["signature"] == "verl" else caller.trl(**call)
            except BaseException as failure:
                answer = {"failed": caller.told(failure)}
            pipe.send_bytes(json.dumps(answer).encode())
    return None


if __name__ == "__main__":
    for inherited in map(int, sys.argv[1:3]):
        os.set_inheritable(inherited, False)
    end_with(int(sys.argv[2]))
    main(Connection(int(sys.argv[1])))
