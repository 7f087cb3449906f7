"""Opens runs and creates them, and holds the lock of the one that is written to."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.config.diff import differences
from flows.config.loading import dump_config, read_config_file
from flows.config.schema import RunConfig
from flows.runs.history import History, has_stages
from stages.contract.background import Background
from stages.contract.commit import aside, finish, write_text
from stages.contract.errors import ArtifactError, ConfigError, GrpoError
from stages.contract.lock import run_lock
from stages.contract.manifest import stage_folders
from stages.contract.paths import MANIFEST, RunPaths
from stages.contract.storage import storage_errors

ARTIFACTS = Path(os.environ.get("GRPO_ARTIFACTS", "artifacts"))
"""The folder of all runs, unless the command says otherwise."""


def open_run(artifacts: Path, name: str) -> tuple[RunPaths, RunConfig]:
    """An existing run.

    Raises:
        ConfigError: there is none of that name; says which there are.
        VersionError: newer code wrote it.
    """
    paths = RunPaths.named(artifacts, name)
    check_own_folder(paths)
    if not paths.config.is_file():
        there = sorted(path.parent.name for path in artifacts.glob("[!.]*/run.yaml"))
        raise ConfigError(f"no run {name!r} in {artifacts}; there are: {', '.join(there) or 'none'}")
    try:
        return paths, read_config_file(paths.config)
    except ConfigError:
        history = History(paths)
        for folder in stage_folders(paths.iterations):  # a manifest of newer code tells why, by a VersionError
            history.manifest(int(folder.parent.name), folder.name)
        raise


def check_own_folder(paths: RunPaths) -> None:
    """Refuses a run whose folder leads out of the folder of all runs.

    Raises:
        ConfigError: it is a symbolic link.
    """
    if paths.root.is_symlink():
        raise ConfigError(f"{paths.root}: a symbolic link; a run is a folder of its own: move it here")


def link_in(paths: RunPaths, path: Path) -> Path | None:
    """The first symbolic link on the way from a run's folder to a file in it, which it may be; None for none."""
    steps = [path, *path.parents]
    inside = steps[: steps.index(paths.root)]
    return next((step for step in reversed(inside) if step.is_symlink()), None)


def check_inside(paths: RunPaths, path: Path) -> None:
    """Refuses a file of a run that lies outside it.

    Raises:
        ArtifactError: a symbolic link leads there.
    """
    if (link := link_in(paths, path)) is not None:
        raise ArtifactError(f"{link}: a symbolic link, and what it leads to is no part of the run: move that here")


def check_same(paths: RunPaths, config: RunConfig) -> bool:
    """Whether the run exists already, with a stage done, and what was done is as this configuration wants it.

    Sections of stages that were never done may still be changed.

    Raises:
        ConfigError: what was done was done otherwise; names the differences.
    """
    if not paths.config.is_file() or not has_stages(paths):
        return False
    _, old = open_run(paths.root.parent, paths.root.name)
    folders = [path.parts[-2:] for path in stage_folders(paths.iterations) if (path / MANIFEST).is_file()]
    done = {"seed"} | {"warmstart" if (k, place) == ("0000", "update") else place for k, place in folders}
    if done & {"score", "update"}:
        done.add("critic")
    if lines := [line for line in differences(old, config) if re.split("[.:]", line)[0] in done]:
        told = "\n".join(f"  {line}" for line in lines)
        raise ConfigError(
            f"{paths.root} was made from another configuration:\n{told}\n"
            "give this one another name with --run, or rerun single stages with `grpo stage … --set`"
        )
    return True


@contextmanager
def held(paths: RunPaths, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the run's lock; what a killed owner had made whole is put in place first.

    What stages leave to be written in the background is written before the lock is given back.

    Raises:
        RunInUseError: another live process writes to the run.
        StorageError: it could not be written.
    """
    with run_lock(paths.lock, say):
        finish(paths.iterations)
        background = _backgrounds[paths.root.absolute()] = Background()
        try:
            yield
        except BaseException as cause:
            if not isinstance(cause, Exception) and (work := background.at_work()):
                say(f"{work}, and then it ends; Ctrl-C again gives that up, and the update is run again when you go on")
            try:
                background.wait()
            except GrpoError as error:
                say(str(error))
            raise
        else:
            background.wait()
        finally:
            del _backgrounds[paths.root.absolute()]
            background.give_up()


_backgrounds: dict[Path, Background] = {}


def background_of(paths: RunPaths) -> Background | None:
    """Where large files of a run that this process holds are written; None for a run that it does not hold."""
    return _backgrounds.get(paths.root.absolute())


@contextmanager
def writing(paths: RunPaths, config: RunConfig, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the run's lock, and makes the run where there is none; one in which no stage gets done leaves nothing.

    Raises:
        RunInUseError: another live process writes to the run.
        ConfigError: the run was made from another configuration, or its folder holds something else.
        StorageError: its folder cannot be written.
    """
    with storage_errors(f"run {paths.root.name}", paths.root):
        yield from _writing(paths, config, say)


def _writing(paths: RunPaths, config: RunConfig, say: Callable[[str], None]) -> Iterator[None]:
    check_own_folder(paths)
    if (
        paths.root.is_dir()
        and not paths.config.is_file()
        and {path.name for path in paths.root.iterdir()} - {paths.lock.name, aside(paths.config).name}
    ):
        raise ConfigError(f"{paths.root}: a folder that is no run is in the way; choose another name with --run")
    paths.root.mkdir(parents=True, exist_ok=True)
    with held(paths, say):
        try:
            if not check_same(paths, config) or _changed(paths, config):
                write_text(paths.config, dump_config(config))
            yield
        finally:
            if not has_stages(paths) and not (paths.root / "superseded").exists():
                paths.config.unlink(missing_ok=True)
                paths.lock.unlink()
                with suppress(OSError):  # no stage was begun, or something else is there too
                    paths.iterations.rmdir()
                with suppress(OSError):
                    paths.root.rmdir()


def _changed(paths: RunPaths, config: RunConfig) -> bool:
    """Whether run.yaml says anything else than this configuration, but for how long and on what machine."""
    _, old = open_run(paths.root.parent, paths.root.name)
    return old.model_copy(update={"iterations": config.iterations, "hardware": config.hardware}) != config
