"""Runs on disk: opening, creating, and reading what their manifests say."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from flows.config.diff import differences
from flows.config.loading import dump_config, read_config_file
from flows.config.schema import RunConfig
from stages.contract.background import Background, is_coming
from stages.contract.commit import aside, finish, write_text
from stages.contract.digest import file_digest
from stages.contract.errors import ArtifactError, ConfigError, GrpoError, VersionError
from stages.contract.lock import run_lock
from stages.contract.manifest import Manifest, read_manifest, stage_folders
from stages.contract.paths import MANIFEST, RunPaths
from stages.contract.policy import adapter_digest, recorded_policy
from stages.contract.pruned import pruned
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
    if not paths.config.is_file() or not _has_stages(paths):
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
            if not _has_stages(paths) and not (paths.root / "superseded").exists():
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


def chosen(paths: RunPaths, made: str, iteration: int | None, what: str) -> int:
    """An iteration in which something was made.

    Args:
        paths: the run.
        made: the file that shows it, by its name in an iteration.
        iteration: None takes the last one.
        what: what it is called.

    Raises:
        ConfigError: it was not made in that iteration, or in none.
    """
    place, name = made.split("/")
    folders = [folder for folder in stage_folders(paths.iterations) if folder.name == place]
    done = [int(folder.parent.name) for folder in folders if (folder / name).is_file()]
    if not done:
        raise ConfigError(f"{paths.root}: there is no {what} yet")
    if iteration is not None and iteration not in done:
        raise ConfigError(f"{paths.root}: no {what} of iteration {iteration}; there are {ranges(done)}")
    return done[-1] if iteration is None else iteration


def ranges(numbers: list[int]) -> str:
    """Numbers in order as text: 1–3, 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)


def _has_stages(paths: RunPaths) -> bool:
    return any((folder / MANIFEST).is_file() for folder in stage_folders(paths.iterations))


def _size(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


@dataclass
class History:
    """The manifests of a run, read when asked for."""

    paths: RunPaths
    _known: dict[tuple[int, str], Manifest | None] = field(default_factory=dict)
    _former: list[tuple[int, RunConfig]] | None = None
    _outside: dict[str, str] = field(default_factory=dict)

    def config(self, k: int, latest: RunConfig) -> RunConfig:
        """The configuration of iteration `k`: `latest`, or in a fork, up to where it parted, the one that held then."""
        if self._former is None:
            files = sorted(self.paths.root.glob("run.[0-9]*.yaml"))
            self._former = [(int(file.name.split(".")[1]), read_config_file(file)) for file in files]
        return next((config for last, config in self._former if k <= last), latest)

    def manifest(self, k: int, place: str) -> Manifest | None:
        """The manifest in the stage folder `place` of iteration `k`; None where there is none or it is damaged.

        Raises:
            VersionError: newer code wrote it.
        """
        key = (k, place)
        if key not in self._known:
            try:
                self._known[key] = read_manifest(self.paths.stage(k, place))
            except VersionError:
                raise
            except ArtifactError:
                self._known[key] = None
        return self._known[key]

    def damaged(self, k: int, place: str) -> list[str]:
        """Outputs whose size is not what the manifest says, or which are missing and were not removed by the rule.

        One that a live process is still writing is neither.
        """
        manifest = self.manifest(k, place)
        folder = self.paths.stage(k, place)
        gone = {name for name in (manifest.outputs if manifest else ()) if not is_coming(folder / name)}
        missing = gone - pruned(folder) if gone else gone
        return [
            name
            for name, record in (manifest.outputs.items() if manifest else ())
            if name in missing or (name not in gone and _size(folder / name) not in (None, record.size))
        ]

    def outside(self, name: str, since: str) -> str | None:
        """The digest that a file outside the run has now; None where it is not there, or was not touched since then."""
        path = Path(name)
        if not path.is_file() or path.stat().st_ctime < datetime.fromisoformat(since).timestamp():
            return None
        if name not in self._outside:
            self._outside[name] = file_digest(path)
        return self._outside[name]

    def pruned(self, k: int, place: str) -> list[str]:
        """Outputs that the retention rule removed."""
        folder = self.paths.stage(k, place)
        return sorted(name for name in pruned(folder) if not (folder / name).is_file())

    def policy_digest(self, k: int) -> str | None:
        """The digest of iteration k's policy and an adapter's base, by manifests; None where there is no policy."""
        manifest = self.manifest(k, "update")
        if manifest is None:
            return None
        start = self.manifest(0, "update")
        return recorded_policy(manifest.outputs, start.outputs if start else {})

    def has_policy(self, k: int, digest: str) -> bool:
        """Whether iteration k's policy has this digest; older promotions name an adapter without its base."""
        manifest = self.manifest(k, "update")
        return manifest is not None and digest in {self.policy_digest(k), adapter_digest(manifest.outputs)}

    def last(self) -> int:
        """The last iteration of which a stage was done; 0 where there is none."""
        found = reversed(stage_folders(self.paths.iterations))
        return next((int(folder.parent.name) for folder in found if (folder / MANIFEST).is_file()), 0)
