"""A process of our own that is asked, watched and ended: what it was asked comes back, or an error; never silence."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import IO, Any

from stages.contract.errors import EngineError


class WatchedProcess:
    """A Python module run in a process group of its own, which ends with this process, however that ends.

    Args:
        module: run as `python -m module SOCKET LIFELINE`; see `stages.sample.vllm_worker` for what it has to speak.
        environment: variables set beside this process's own.
    """

    def __init__(self, module: str, environment: dict[str, str]) -> None:
        self._pipe, theirs = Pipe()
        dies, lives = os.pipe()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno()), str(dies)],
            env=os.environ | environment,
            pass_fds=(theirs.fileno(), dies),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        theirs.close()
        os.close(dies)
        self._asked, self._silence = "start", 0.0
        self._end = weakref.finalize(self, _end, self._process, self._pipe, lives, self._log)

    @property
    def pid(self) -> int:
        """The process's id, which is also that of its group."""
        return self._process.pid

    @property
    def pipe(self) -> Connection:
        """Where its answers arrive."""
        return self._pipe

    def send(self, command: str, arguments: dict[str, Any], silence: float) -> None:
        """Asks something; `silence` is the longest (seconds) that a part of the question or the answer may take."""
        self._asked, self._silence = command, silence
        whole = int(silence)
        limit = struct.pack("@ll", whole, int((silence - whole) * 1e6))
        with socket.socket(fileno=os.dup(self._pipe.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        with contextlib.suppress(OSError):  # it is dead, or does not listen: `receive` or the silence says so
            self._pipe.send((command, arguments))

    def receive(self) -> tuple[str, Any]:
        """The next answer, once one has arrived.

        Raises:
            EngineError: the process has ended, has stopped in the middle of its answer, or what was asked failed in it.
        """
        try:
            kind, content = self._pipe.recv()
        except BlockingIOError:
            raise self.hanging() from None
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            raise EngineError(f"the sampler process {self._ending()}{self._last_words()}") from None
        if kind == "failed":
            raise EngineError(f"the sampler process failed: {content}{self._last_words()}")
        return kind, content

    def hanging(self) -> EngineError:
        """What is said of it when it says nothing."""
        return EngineError(
            f"the sampler process has given no sign of life for {self._silence:.0f} s while it was asked to "
            f"{self._asked}; it is ended. On a slow machine raise sample.engine.silence_limit and start_limit"
        )

    def close(self) -> None:
        """Ends the process and all it has started."""
        self._end()

    def _ending(self) -> str:
        code = self._process.poll()
        if code is None:
            return "closed its socket"
        return f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return "".join(f"\n    {line[:300]}" for line in lines[-6:])


def ask(
    processes: Sequence[WatchedProcess],
    command: str,
    arguments: Sequence[dict[str, Any]],
    silence: float,
    beat: Callable[[int], None] = lambda done: None,
) -> list[Any]:
    """Asks each process with its own arguments, at the same time; the results in order.

    Args:
        processes: whom to ask.
        command: what.
        arguments: for each process.
        silence: seconds without a sign of life after which a process counts as hanging.
        beat: told of the sum of what they say is done.

    Raises:
        EngineError: one has failed, ended or hangs. The processes are then in no known state: close them.
    """
    for process, own in zip(processes, arguments, strict=True):
        process.send(command, own, silence)
    waiting = {process.pipe: i for i, process in enumerate(processes)}
    heard = dict.fromkeys(waiting, time.monotonic())
    done, results = [0] * len(processes), [None] * len(processes)
    while waiting:
        soonest = min(heard[pipe] for pipe in waiting) + silence
        ready = wait(list(waiting), max(0.0, soonest - time.monotonic()))
        if not ready:
            slowest = min(waiting, key=heard.__getitem__)
            raise processes[waiting[slowest]].hanging()
        for pipe in ready:
            i = waiting[pipe]  # type: ignore[index]
            kind, content = processes[i].receive()
            heard[pipe] = time.monotonic()  # type: ignore[index]
            if kind == "done":
                results[i] = content
                del waiting[pipe]  # type: ignore[arg-type]
            else:
                done[i] = content
                beat(sum(done))
    return results


def _end(process: subprocess.Popen[bytes], pipe: Connection, lifeline: int, log: IO[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    pipe.close()
    os.close(lifeline)
    log.close()
