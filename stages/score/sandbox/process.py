"""Runs a command to its end or to a limit: feeds it, collects what it prints, and leaves nothing of it alive."""

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from stages.score.sandbox.limits import End, Limits, Outcome

CHUNK = 65536
CHILD = re.compile(rb'"child-pid": (\d+)')
KILLED = 128 + signal.SIGKILL
MOST = 0.8
"""Of its processor time a process has used when the limit ends it: the kernel limits by one clock, tells by another."""
ENDING = 5.0
"""Seconds in which bubblewrap ends after the program."""


class Ends(NamedTuple):
    """The reading ends of pipes."""

    ready: int
    """Holds something as soon as the program begins."""
    told: int
    """Holds bubblewrap's word on the program's process; nothing where there is no bubblewrap."""
    stop: int
    """Holds something as soon as all programs are to end."""


def run_command(
    command: Sequence[str],
    fed: bytes,
    limits: Limits,
    environment: Mapping[str, str],
    ends: Ends,
    pass_fds: Sequence[int],
) -> Outcome:
    """What came of a command.

    Args:
        command: its words.
        fed: its input.
        limits: those on the clock and on what it prints are kept here, the others by the command itself.
        environment: the whole of its environment.
        ends: pipes that are read here.
        pass_fds: files that it inherits.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        cwd="/",
        pass_fds=tuple(pass_fds),
        start_new_session=True,
    )
    for fd in (ends.ready, ends.told):
        os.set_blocking(fd, False)
    alive = os.pidfd_open(process.pid)
    try:
        end, stdout, stderr = _watch(process, alive, ends.stop, fed, limits)
    finally:
        used = _end(process, alive, ends.told)
        os.close(alive)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
    code = 128 - process.returncode if process.returncode < 0 else process.returncode
    if not _waiting(ends.ready):
        end = "failure"
    elif end == "exit" and code == KILLED and used >= MOST * limits.cpu:
        end = "cpu"
    return Outcome(end, code, stdout, stderr)


def _watch(
    process: "subprocess.Popen[bytes]", alive: int, stop: int, fed: bytes, limits: Limits
) -> tuple[End, bytes, bytes]:
    """Feeds and reads until the process ends, passes a limit or is stopped; how it ended, and what it printed."""
    assert process.stdin and process.stdout and process.stderr
    deadline = time.monotonic() + limits.wall
    rest = memoryview(fed)
    out, err, into = process.stdout.fileno(), process.stderr.fileno(), process.stdin.fileno()
    printed = {out: bytearray(), err: bytearray()}
    end: End = "exit"
    with selectors.DefaultSelector() as selector:
        for fd in (alive, stop):
            selector.register(fd, selectors.EVENT_READ)
        selector.register(into, selectors.EVENT_WRITE)
        for fd in (out, err, into):
            os.set_blocking(fd, False)
        for fd in printed:
            selector.register(fd, selectors.EVENT_READ)
        while end == "exit":
            ready = {key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}
            for fd in ready & printed.keys():
                piece = _waiting(fd)
                printed[fd] += piece
                if not piece:
                    selector.unregister(fd)
            if into in ready:
                rest = _feed(into, rest)
                if not rest:
                    selector.unregister(into)
                    process.stdin.close()
            if any(len(text) > limits.output for text in printed.values()):
                end = "output"
            elif ready == {alive}:
                break
            elif stop in ready or time.monotonic() >= deadline:
                end = "wall"
    return end, bytes(printed[out][: limits.output]), bytes(printed[err][: limits.output])


def _feed(fd: int, rest: memoryview) -> memoryview:
    """What is left to write; nothing where nobody reads any more."""
    try:
        return rest[os.write(fd, rest[:CHUNK]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]


def _waiting(fd: int) -> bytes:
    """What lies in a pipe now."""
    try:
        return os.read(fd, CHUNK)
    except BlockingIOError:
        return b""


def _end(process: "subprocess.Popen[bytes]", alive: int, told: int) -> float:
    """Ends what is left and waits for it; the seconds of processor time that it took.

    The program's process is ended, not bubblewrap's, which then sees it end and leaves nobody behind.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(alive, selectors.EVENT_READ)
        child = CHILD.search(_waiting(told))
        if child is not None and not selector.select(0):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(child[1]), signal.SIGKILL)
            selector.select(ENDING)
    with suppress(ProcessLookupError):  # in vain where all has ended
        os.killpg(process.pid, signal.SIGKILL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime
