"""What the tests of the pool send to workers, which import it by name."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def warm() -> None:
    """Nothing to prepare."""


def warm_random() -> None:
    import sympy.core.random  # noqa: F401


def warm_badly() -> None:
    raise ImportError("no such verifier")


def draws() -> float:
    """Numbers of the generators that verifiers may use."""
    import random

    from sympy.core.random import rng

    return random.random() + 10 * rng.random()


def spin() -> None:
    while True:
        pass


def fail(error: Exception) -> None:
    raise error


DEEDS: dict[str, Callable[[], Any]] = {
    "sleep": lambda: time.sleep(3600),
    "spin": spin,
    "draw": draws,
    "compute": lambda: len(str(9**9**9)),  # one instruction that does not return to the interpreter for hours
    "raise": lambda: fail(KeyError("lost")),
    "raise a long message": lambda: fail(ValueError("\ud800" * 10**6)),
    "exit": lambda: sys.exit(0),
    "leave": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stuff": lambda: len(bytes(8 * 2**30)),  # untouched pages: they cost nothing where no limit stops it
    "not a number": lambda: math.nan,
    "infinite": lambda: math.inf,
    "text": lambda: "one",
    "nothing": lambda: None,
}


def act(deed: str) -> float:
    """Does what a verifier may do to its worker, or gives back a number."""
    value: float = DEEDS[deed]() if deed in DEEDS else float(deed)
    return value


def die_at_sevenths(number: int) -> float:
    """Ends its process at once for one item of seven."""
    if number % 7 == 3:
        os._exit(3)
    return number


def busy_then_right(seconds: float) -> float:
    """Waits for other processes longer than its limit, and works for less than it."""
    subprocess.run([sys.executable, "-c", f"import time; time.sleep({seconds})"], check=True)
    return 1.0


def process_id(_: int) -> float:
    time.sleep(0.05)
    return os.getpid()


def parent_id(_: int) -> float:
    return os.getppid()


def hash_of(text: str) -> float:
    return float(hash(text))


def note_and_spin(path: str) -> float:
    """Notes its process and the one that forked it, and works for ever."""
    Path(path).write_text(f"{os.getpid()} {os.getppid()}.")
    spin()
    return 0.0
