"""Places for flow runs on this machine: each a lock, which the kernel drops with its process, and a share of GPUs."""

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def gpus() -> list[str]:
    """The GPUs that CUDA would show here, by what names them in CUDA_VISIBLE_DEVICES."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in {"", "-1"}]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def share(devices: Sequence[str], slots: int, slot: int) -> list[str]:
    """The GPUs of one of `slots` places: equal shares, what is left over to the first ones, none to none."""
    each, over = divmod(len(devices), slots)
    begin = slot * each + min(slot, over)
    return list(devices[begin : begin + each + (slot < over)])


@contextmanager
def slot(folder: Path, slots: int) -> Iterator[int]:
    """Waits for one of `slots` places, and holds it until this process ends or the block does.

    The server lets no more runs begin than there are places, but one that it believes to be gone may still be ending.
    """
    while True:
        for number in range(slots):
            with (folder / f"slot-{number}.lock").open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield number
                return
        time.sleep(0.1)
