"""Runs Python programs that nobody has read: `open_sandbox`, then `run`, side by side where there are cores.

`bubblewrap` gives a program namespaces of its own (user, processes, network, mounts), an interpreter and two small
folders that vanish with it, limits, and a filter of system calls. `rlimit` gives it limits alone. Where the wanted mode
does not work the sandbox is refused; nothing falls back to less.
"""

import os
import queue
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeVar

from stages.contract.errors import ConfigError
from stages.contract.progress import Progress, no_progress
from stages.score.sandbox import bubblewrap, interpreter
from stages.score.sandbox.groups import make_groups, remove_groups
from stages.score.sandbox.limits import Limits, Mode, Outcome
from stages.score.sandbox.process import run_command
from stages.score.sandbox.seccomp import syscall_filter

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")
INSIDE = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")


class Sandbox:
    """A place to run programs, as many at once as it has slots."""

    def __init__(
        self, mode: Mode, limits: Limits, packages: Sequence[Path], groups: dict[int, tuple[Path, ...]], scratch: Path
    ) -> None:
        self.mode = mode
        self.limits = limits
        self.groups = groups
        self.scratch = scratch
        self._packages = tuple(path.resolve() for path in packages)
        self._filter = syscall_filter() if mode == "bubblewrap" else b""
        self._interpreter = interpreter.running()
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in groups:
            self._slots.put(slot)

    def run(self, program: str, stdin: bytes = b"") -> Outcome:
        """Runs a program with this input; waits for a free slot. Nothing of it lives on afterwards."""
        slot = self._slots.get()
        try:
            return self._run(program.encode("utf-8", "replace"), stdin, slot)
        finally:
            self._slots.put(slot)

    def _run(self, program: bytes, stdin: bytes, slot: int) -> Outcome:
        limits = self.limits
        pipes = [os.pipe() for _ in ("ready", "told", "filter")]
        (ready, is_ready), (told, tells), (filtered, fills) = pipes
        try:
            if self.mode == "bubblewrap":
                os.write(fills, self._filter)
                user = bubblewrap.FIRST_USER + slot if os.geteuid() == 0 else None
                processes, folders = limits.processes, [interpreter.PACKAGES]
                before = bubblewrap.command(
                    self._interpreter, self._packages, limits, user, self.scratch, self.groups[slot], filtered, tells
                )
            else:
                processes, folders = limits.processes + _mine(), sorted({str(p.parent) for p in self._packages})
                before = []
            os.close(pipes[2][1])
            inside = [INSIDE, *map(str, (limits.cpu, limits.memory, processes, limits.files, len(program), is_ready))]
            command = [*before, *interpreter.command(self._interpreter), *inside, *folders]
            passed = (is_ready, tells, filtered)
            return run_command(command, program + stdin, limits, bubblewrap.ENVIRONMENT, ready, told, passed)
        finally:
            for fd in {*chain(*pipes)} - {fills}:
                os.close(fd)

    def each(
        self, function: Callable[[Asked], Answered], items: Sequence[Asked], progress: Progress = no_progress
    ) -> list[Answered]:
        """The function's value for each item, in order; as many at once as there are slots.

        Args:
            function: it calls `run`.
            items: its arguments.
            progress: told of items that are done.
        """
        answers = []
        with ThreadPoolExecutor(len(self.groups), "sandbox") as pool:
            try:
                for answer in pool.map(function, items):
                    answers.append(answer)
                    progress(len(answers), len(items))
            finally:
                pool.shutdown(cancel_futures=True)
        return answers


@contextmanager
def open_sandbox(
    mode: Mode = "bubblewrap", limits: Limits | None = None, packages: Sequence[Path] = ()
) -> Iterator[Sandbox]:
    """A sandbox that works, as a first program has shown.

    Args:
        mode: `bubblewrap`, or the weaker `rlimit`.
        limits: what each program may take.
        packages: folders or files of Python packages that programs may import, with all that these import.

    Raises:
        ConfigError: the mode does not work on this host.
    """
    if mode == "rlimit" and os.geteuid() == 0:
        raise ConfigError(
            "the sandbox's `mode: rlimit` cannot hold a program that runs as root: start grpo as an ordinary user, or "
            "use `mode: bubblewrap`"
        )
    limits = limits or Limits()
    slots = range(len(os.sched_getaffinity(0)))
    groups = {slot: make_groups(limits) if mode == "bubblewrap" else () for slot in slots}
    try:
        with tempfile.TemporaryDirectory(prefix="grpo-sandbox-") as scratch:
            Path(scratch).chmod(0o755)
            sandbox = Sandbox(mode, limits, packages, groups, Path(scratch))
            _prove(sandbox)
            yield sandbox
    finally:
        for made in groups.values():
            remove_groups(made)


def _prove(sandbox: Sandbox) -> None:
    outcome = sandbox.run("print(input()[::-1])", b"ready\n")
    if outcome.end != "exit" or outcome.stdout != b"ydaer\n":
        said = outcome.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {outcome.code}"]
        remedy = bubblewrap.INSTALL if sandbox.mode == "bubblewrap" else "raise the limits"
        raise ConfigError(f"the sandbox for code does not work on this host ({said[-1]}): {remedy}")


def _mine() -> int:
    """Threads of this user, over the whole host, for there the limit of processes counts them all."""
    count = 0
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and folder.stat().st_uid == os.getuid():
                count += len(list((folder / "task").iterdir()))
        except OSError:
            continue
    return count
