"""A small process to be watched: `python -m tests.sample.process_modules SOCKET LIFELINE`."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def breed() -> int:
    """Starts a process that would go on for an hour; its id."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]).pid


def length(data: bytes) -> int:
    return len(data)


def variable(name: str) -> str | None:
    return os.environ.get(name)


def fail(reason: str) -> None:
    raise KeyError(reason)


def complain_and_exit(code: int) -> None:
    print("the cat sat\non the mat", file=sys.stderr, flush=True)
    os._exit(code)


def serve(pipe: Connection) -> None:
    """Answers what it is asked, until nobody can ask any more."""

    def count(numbers: list[int], pause: float = 0.0) -> int:
        for number in numbers:
            time.sleep(pause)
            pipe.send(("beat", number))
        return len(numbers)

    def stop_in_the_middle() -> None:
        os.write(pipe.fileno(), (1000).to_bytes(4, "big") + b"only the beginning of a thousand bytes")
        time.sleep(3600)

    deeds: dict[str, Callable[..., Any]] = {
        "pid": os.getpid,
        "double": lambda number: 2 * number,
        "count": count,
        "length": length,
        "breed": breed,
        "fail": fail,
        "exit": complain_and_exit,
        "sleep": lambda: time.sleep(3600),
        "stop in the middle": stop_in_the_middle,
        "variable": variable,
    }
    while True:
        try:
            command, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("done", deeds[command](**arguments)))
        except KeyError as error:
            pipe.send(("failed", f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
