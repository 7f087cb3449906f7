"""A process that has imported the verifiers and forks workers from itself, each of which is ready at once.

It stays from one call to the next, for importing a verifier takes longer than judging a hundred answers. It ends with
the process that started it, and takes its workers with it, however that one ends.
"""

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import NoReturn

from stages.contract.lifeline import PR_SET_PDEATHSIG

Life = Callable[[Connection], None]
"""What a worker does with its end of a pipe."""
WARM_UP = 300.0
"""Seconds in which the imports have to be done."""
PATIENCE = 30.0
"""Seconds in which a worker has to be forked or ended."""
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Of the workers: the order of a set of texts, on which some verdicts depend, is the same in all of them, and nothing
that is forked has threads."""
NOTHING, FORK = 0, -1
"""Orders beside the process id of a worker that is to be ended."""


class Nursery:
    """The process, as the one that started it sees it."""

    def __init__(self, warm: Callable[[], None], life: Life) -> None:
        """Starts it; `warm` does the imports there, `life` is what each worker does."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._handles = _handles(self._pipe)
        self._process = context.Process(target=_live, args=(theirs, warm, life), daemon=True)
        self._lock = threading.Lock()
        with _environment(ENVIRONMENT):
            self._process.start()
        theirs.close()
        try:
            self._answer(WARM_UP)
        except (EOFError, OSError, TimeoutError) as failure:
            self._process.join(1.0)
            why = f"its process ended with exit code {self._process.exitcode}"
            if self._process.exitcode is None:
                why = f"it took more than {WARM_UP:g} s"
            self.close()
            raise RuntimeError(f"verifiers could not be imported: {why}") from failure

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can fork workers still."""
        try:
            return self._process.is_alive() and self._ask(NOTHING) == 0
        except RuntimeError:
            return False

    def fork(self) -> tuple[int, Connection]:
        """A new worker: its process id, and the pipe to it."""
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            return self._ask(FORK, theirs.fileno()), ours

    def end(self, worker: int) -> int:
        """Ends a worker that is alive or dead; its exit code, negative for a signal."""
        return self._ask(worker)

    def close(self) -> None:
        """Ends it with all its workers."""
        self._process.kill()
        self._process.join()
        self._handles.close()
        self._pipe.close()

    def _ask(self, order: int, handle: int | None = None) -> int:
        with self._lock:
            try:
                self._pipe.send(order)
                if handle is not None:
                    socket.send_fds(self._handles, [b"."], [handle])
                return self._answer(PATIENCE)
            except (EOFError, OSError, TimeoutError) as failure:
                raise RuntimeError(f"the process that holds the verifiers died or hangs: {failure}") from failure

    def _answer(self, seconds: float) -> int:
        if not self._pipe.poll(seconds):
            raise TimeoutError(f"no answer in {seconds:g} s")
        answer = self._pipe.recv()
        assert isinstance(answer, int)
        return answer


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets variables for a block, for what is started in it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _handles(pipe: Connection) -> socket.socket:
    """The same pipe for sending file handles; open from the start, so that no order needs a file of its own."""
    return socket.socket(fileno=os.dup(pipe.fileno()))


def _live(pipe: Connection, warm: Callable[[], None], life: Life) -> None:
    """The life of the nursery: it forks workers, and ends the one whose process id it is told, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warm()
    sys.stdout.flush()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # what verifiers print is nobody's output
    os.dup2(silent, 2)
    handles = _handles(pipe)
    pipe.send(0)
    with suppress(EOFError, OSError):
        while True:
            order = pipe.recv()
            if order == FORK:
                _, (handle,), _, _ = socket.recv_fds(handles, 1, 1)
                if (worker := os.fork()) == 0:
                    handles.close()
                    pipe.close()
                    _work(handle, life)
                os.close(handle)
                pipe.send(worker)
            elif order == NOTHING:
                pipe.send(0)
            else:
                with suppress(ProcessLookupError):
                    os.kill(order, signal.SIGKILL)
                pipe.send(os.waitstatus_to_exitcode(os.waitpid(order, 0)[1]))


def _work(handle: int, life: Life) -> NoReturn:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    code, pipe = 1, Connection(handle)  # open to the end: that it closes says that the process is over
    try:
        life(pipe)
        code = 0
    except SystemExit:
        code = 0
    finally:
        os._exit(code)
