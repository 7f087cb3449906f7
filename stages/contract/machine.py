"""The machine that a stage runs on: with code and packages, all that decides the last bits of its numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What of the machine a manifest notes."""

    device: str = "cpu"
    threads: int | None = None
    """Threads of torch in the thread that computes."""
    deterministic: bool | None = None
    """Whether torch is held to deterministic algorithms; None: nobody has said."""
    processor: tuple[tuple[str, str], ...] = ()
    """(library, instruction set), sorted; with a GPU also its name and the versions of CUDA and cuDNN."""
