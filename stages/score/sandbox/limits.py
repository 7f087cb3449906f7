"""What a program may take, and what came of it."""

from dataclasses import dataclass
from typing import Literal

MIB = 2**20
Mode = Literal["bubblewrap", "rlimit"]
End = Literal["exit", "cpu", "wall", "output", "failure"]


@dataclass(frozen=True)
class Limits:
    """What one program may take."""

    cpu: int = 4
    """Seconds of processor time of each of its processes, counted by the kernel."""
    wall: float = 40.0
    """Seconds on the clock, for the whole: ends what sleeps."""
    memory: int = 512 * MIB
    """Bytes of address space of each process; of all together where control groups can be written."""
    processes: int = 4
    """Processes and threads at once, the first included."""
    output: int = 256 * 1024
    """Bytes it may print, on its output and on its errors."""
    files: int = 16 * MIB
    """Bytes of a file, and of all files that it writes."""


@dataclass(frozen=True)
class Outcome:
    """What came of a program."""

    end: End
    """How it ended: by itself (`exit`), at a limit, or never began (`failure`: the sandbox's fault, not its own)."""
    code: int
    """Its exit code; 128 and more: a signal ended it."""
    stdout: bytes
    stderr: bytes

    @property
    def succeeded(self) -> bool:
        """Whether it ended by itself, with exit code 0."""
        return self.end == "exit" and self.code == 0
