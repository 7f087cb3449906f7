"""The process of one flow run that a worker starts: it runs Prefect's engine and sees to it that nothing is left of it.

The engine leads a process group of its own. The group is ended when the engine has ended, when the worker is gone, and
some seconds after the worker has asked for the end (a cancellation) if the engine has not obeyed by then.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from flows.serving.gpu_slots import gpus, share, slot
from stages.contract.lifeline import PR_SET_PDEATHSIG, end_with_parent

GRACE = 5
"""Seconds in which the engine has to end when it is asked to."""
SLOTS = "GRPO_SLOTS"
"""Variable in which `grpo serve` says how many runs share this machine."""


def main() -> int:
    """Runs the engine, with its share of the GPUs where a number of runs share them; gives its exit code."""
    worker = os.getppid()
    if not end_with_parent(worker):
        return 0
    if (slots := int(os.environ.get(SLOTS, "0"))) == 0:
        return supervise({}, worker)
    with slot(Path(os.environ["PREFECT_HOME"]), slots) as place:
        devices = gpus()
        return supervise({"CUDA_VISIBLE_DEVICES": ",".join(share(devices, slots, place))} if devices else {}, worker)


def supervise(settings: dict[str, str], parent: int) -> int:
    """Runs the engine with these variables; its exit code, 0 where its end was asked for or the parent is gone."""
    asked = False
    kernel = ctypes.CDLL(None)

    def die_with_parent() -> None:
        kernel.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    engine = subprocess.Popen(
        [sys.executable, "-P", "-m", "prefect.engine"],
        env=os.environ | settings,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - there is one thread
    )

    def end(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(engine.pid, signal.SIGKILL)

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        os.kill(engine.pid, signal.SIGTERM)  # the process object would reap it, and its number could be another's
        signal.alarm(GRACE)

    signal.signal(signal.SIGALRM, end)
    signal.signal(signal.SIGHUP, end)
    signal.signal(signal.SIGTERM, ask)
    kernel.prctl(PR_SET_PDEATHSIG, signal.SIGHUP)
    if os.getppid() != parent:
        end(signal.SIGHUP, None)
    os.waitid(os.P_PID, engine.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet: its group's number is still its own
    signal.alarm(0)
    end(signal.SIGKILL, None)
    code = engine.wait()
    if asked:
        return 0
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
