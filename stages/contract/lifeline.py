"""A pipe by which a process ends with the one that started it, however that one ends, and takes its group with it."""

import os
import signal
import threading


def end_with(lifeline: int) -> None:
    """Ends this process's group, which it has to lead, as soon as the other end of the pipe `lifeline` closes."""
    assert os.getpgid(0) == os.getpid(), "else others would be ended too"

    def watch() -> None:
        os.read(lifeline, 1)
        end_group()

    threading.Thread(target=watch, daemon=True).start()


def end_group() -> None:
    """Ends this process and all it has started."""
    os.killpg(0, signal.SIGKILL)
