"""Places at which a process can be made to die: each write, sync, rename, link, removal, generation, optimizer step.

The traps wrap what the process calls, after it was forked; the code under test knows nothing of them. A place has a
name that is the same in each process that comes by it: what happens, to which file of the run, for which time, and,
where the same happens in each stage, in which of them.
"""

import os
import re
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Tell = Callable[[str, int], None]
"""Told of each place when it is reached, with the size of the file that is written there."""

WRITES = os.O_WRONLY | os.O_RDWR


def die() -> None:
    """Ends this process at once, as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


EACH_STAGE = re.compile(r"\.|iterations(/\d+)?|engine|optimizer")
"""What each stage comes by, so that a place there is told by the stage too."""


def set_traps(root: Path, at: str | int | None, limit: int, tell: Tell) -> Callable[[str, str], bool]:
    """Wraps what this process calls, for good.

    Args:
        root: the run's folder, or that of several; only what happens in it is a place.
        at: the place to die at, or its number among all that are reached; None dies nowhere.
        limit: bytes after which a file that is being written is cut, where `at` is inside a write: the kernel ends the
            process in the middle of the write, whatever language it is done in.
        tell: is told of every place.

    Returns:
        says that a place is reached which only the caller knows of.
    """
    seen: Counter[str] = Counter()
    stage, reached = "", 0
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it

    def reach(kind: str, where: str, size: int = 0) -> bool:
        nonlocal stage, reached
        if kind == "mkdir" and (begun := re.search(r"(\d+)/\.(\w+)\.partial$", where)):
            stage = f" in {begun[1]}/{begun[2]}"
        name = f"{kind} {where}{stage if EACH_STAGE.fullmatch(where) else ''}"
        seen[name] += 1
        reached += kind != "written"
        place = f"{name} #{seen[name]}"
        here = kind != "written" and at in {place, reached}
        tell(place, size)
        if here and kind != "write":
            die()
        return here

    def inside(path: Any) -> str | None:
        if not isinstance(path, str | os.PathLike):
            return None
        full = Path(path).absolute()
        return full.relative_to(root).as_posix() if full.is_relative_to(root) else None

    _on_audit(reach, inside)
    _on_calls(reach, inside)
    _on_writes(reach, inside, limit)
    _on_work(reach)
    _on_lock(reach)
    return reach


def _on_audit(reach: Callable[..., bool], inside: Callable[[Any], str | None]) -> None:
    """What Python itself announces just before it does it."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & WRITES
            and (where := inside(arguments[0]))
        ):
            reach("open", where)
        elif event == "os.link" and (where := inside(arguments[1])):
            reach("link", where)
        elif event in {"os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"} and (
            where := inside(_beneath(arguments[0], arguments[1:]))
        ):
            reach(event.split(".")[1], where)

    sys.addaudithook(hook)


def _beneath(path: Any, rest: tuple[Any, ...]) -> Any:
    """A path that is named below an open folder, as `shutil.rmtree` names what it removes."""
    folder = rest[-1] if rest else -1
    if isinstance(folder, int) and folder >= 0 and isinstance(path, str) and not path.startswith("/"):
        return Path(f"/proc/self/fd/{folder}").readlink() / path
    return path


def _on_calls(reach: Callable[..., bool], inside: Callable[[Any], str | None]) -> None:
    """Before and after each rename, and before each sync."""

    def renaming(original: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, target: Any, **options: Any) -> None:
            where = inside(target)
            if where:
                reach("rename", where)
            original(source, target, **options)
            if where:
                reach("renamed", where)

        return call

    os.rename, os.replace = renaming(os.rename), renaming(os.replace)  # type: ignore[assignment]
    sync = os.fsync

    def fsync(descriptor: Any) -> None:
        if where := inside(Path(f"/proc/self/fd/{descriptor}").readlink()):
            reach("sync", where)
        sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


def _on_writes(reach: Callable[..., bool], inside: Callable[[Any], str | None], limit: int) -> None:
    """In the middle of each write of a file, by a limit on its size that the kernel keeps."""

    def writing(original: Callable[..., Any], path_of: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            where = inside(path_of(*arguments, **options))
            if where is None:
                return original(*arguments, **options)
            if armed := reach("write", where):
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            out = original(*arguments, **options)
            assert not armed, f"{where} was written in spite of a limit of {limit} bytes"
            reach("written", where, Path(path_of(*arguments, **options)).stat().st_size)
            return out

        return call

    import pyarrow.parquet
    import transformers.modeling_utils

    import stages.contract.background
    import stages.contract.weights

    background = stages.contract.background
    background.pour = writing(background.pour, lambda path, *_: path)
    pyarrow.parquet.write_table = writing(pyarrow.parquet.write_table, lambda table, where, **_: where)
    for module, name in ((stages.contract.weights, "save_file"), (transformers.modeling_utils, "safe_save_file")):
        setattr(module, name, writing(getattr(module, name), lambda tensors, filename, *_, **__: filename))
    shutil.copyfile = writing(shutil.copyfile, lambda source, target, **_: target)
    Path.write_text = writing(Path.write_text, lambda path, *_, **__: path)  # type: ignore[method-assign]


def _on_work(reach: Callable[..., bool]) -> None:
    """While the engine generates, and before and after the optimizer steps."""
    import torch

    from stages.sample.transformers_engine import TransformersSampler

    forward, step = TransformersSampler._forward, torch.optim.AdamW.step

    def generating(self: Any, *arguments: Any) -> Any:
        reach("generate", "engine")
        return forward(self, *arguments)

    def stepping(self: Any, *arguments: Any, **options: Any) -> Any:
        reach("step", "optimizer")
        out = step(self, *arguments, **options)
        reach("stepped", "optimizer")
        return out

    TransformersSampler._forward = generating  # type: ignore[method-assign]
    torch.optim.AdamW.step = stepping  # type: ignore[method-assign]


def _on_lock(reach: Callable[..., bool]) -> None:
    """When all is done that is done under the run's lock, before it is let go."""
    import flows.runs.access

    run_lock = flows.runs.access.run_lock

    @contextmanager
    def locking(path: Path, say: Callable[[str], None]) -> Iterator[None]:
        with run_lock(path, say):
            yield
            reach("unlock", path.name)

    flows.runs.access.run_lock = locking
