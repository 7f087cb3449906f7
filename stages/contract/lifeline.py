"""Ends a process with the one that started it, however that one ends.

By a pipe, which takes the process's group along; or by a signal of the kernel.
"""

import ctypes
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1
"""The option of `prctl` by which the kernel sends a process a signal when its parent ends."""


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


def end_with_parent(parent: int) -> bool:
    """Asks the kernel to kill this process together with its parent; False where that one is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent
