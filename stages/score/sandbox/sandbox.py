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
from io import FileIO
from pathlib import Path
from typing import TypeVar

from stages.contract.errors import ConfigError
from stages.contract.progress import Progress, no_progress
from stages.score.sandbox import bubblewrap, interpreter
from stages.score.sandbox.groups import make_groups, remove_groups
from stages.score.sandbox.limits import Limits, Mode, Outcome
from stages.score.sandbox.process import Ends, run_command
from stages.score.sandbox.seccomp import syscall_filter

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")
Pipe = tuple[FileIO, FileIO]
INSIDE = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")


class Sandbox:
    """A place to run programs, as many at once as it has slots."""

    def __init__(
        self,
        mode: Mode,
        limits: Limits,
        packages: Sequence[Path],
        groups: dict[int, tuple[Path, ...]],
        scratch: Path,
        stop: Pipe,
    ) -> None:
        self.mode = mode
        self.limits = limits
        self.groups = groups
        self.scratch = scratch
        self._stop = stop
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
        except OSError as error:  # no process or pipe could be made
            return Outcome("failure", 1, b"", str(error).encode("utf-8", "replace"))
        finally:
            self._slots.put(slot)

    def _run(self, program: bytes, stdin: bytes, slot: int) -> Outcome:
        limits, processes = self.limits, self.limits.processes
        with _pipe() as (ready, is_ready), _pipe() as (told, tells), _pipe() as (filtered, fills):
            inherited = [is_ready.fileno()]
            if self.mode == "bubblewrap":
                fills.write(self._filter)
                user = bubblewrap.FIRST_USER + slot if os.geteuid() == 0 else None
                place = (self.scratch, self.groups[slot])
                inherited += [filtered.fileno(), tells.fileno()]
                before = bubblewrap.command(self._interpreter, self._packages, limits, user, *place, *inherited[1:])
                folders = [interpreter.PACKAGES]
            else:
                before = []
                folders = sorted({str(path.parent) for path in self._packages})
                processes += _mine()
            fills.close()
            taken = (limits.cpu, limits.memory, processes, limits.files, len(program), is_ready.fileno())
            return run_command(
                [*before, *interpreter.command(self._interpreter), INSIDE, *map(str, taken), *folders],
                program + stdin,
                limits,
                bubblewrap.ENVIRONMENT,
                Ends(ready.fileno(), told.fileno(), self._stop[0].fileno()),
                inherited,
            )

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
            except BaseException:  # an interruption too: what runs ends now, not at its limit
                self._stop[1].write(b"stop")
                pool.shutdown(cancel_futures=True)
                self._stop[0].read(4)
                raise
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
        with tempfile.TemporaryDirectory(prefix="grpo-sandbox-") as scratch, _pipe() as stop:
            Path(scratch).chmod(0o755)
            sandbox = Sandbox(mode, limits, packages, groups, Path(scratch), stop)
            _prove(sandbox)
            yield sandbox
    finally:
        for made in groups.values():
            remove_groups(made)


@contextmanager
def _pipe() -> Iterator[Pipe]:
    """Both ends of a pipe, which are closed at last."""
    out, into = os.pipe()
    with FileIO(out, "rb") as reads, FileIO(into, "wb") as writes:
        yield reads, writes


def _prove(sandbox: Sandbox) -> None:
    outcome = sandbox.run("print(input()[::-1])", b"ready\n")
    if outcome.end != "exit" or outcome.stdout != b"ydaer\n":
        said = outcome.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {outcome.code}"]
        wanted = f"bubblewrap 0.8 or newer is wanted, and leave to make user namespaces, {bubblewrap.WEAKER}"
        remedy = wanted if sandbox.mode == "bubblewrap" else "raise its limits"
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
