"""A run that parts from another one: it shares the earlier iterations by hard links and goes on by itself."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.config.loading import dump_config, with_settings
from flows.config.schema import RunConfig
from flows.runs.access import check_inside, open_run
from flows.runs.history import History
from flows.runs.records import Record, now, read_record, write_record
from flows.runs.requirements import missing_for, never_made_for
from flows.runs.snapshot import steady
from flows.runs.staleness import examine
from stages.contract.background import await_all
from stages.contract.commit import new_folder, write_text
from stages.contract.digest import file_digest
from stages.contract.errors import ConfigError
from stages.contract.lock import folder_lock
from stages.contract.manifest import read_manifest, stage_folders
from stages.contract.paths import MANIFEST, RunPaths
from stages.contract.policy import ADAPTER_CONFIG
from stages.contract.pruned import PRUNED

BEFORE = ("run", "prompts", "warmstart", "reward_model", "convention")
"""Parts of the configuration that decide nothing after the start, so that a fork cannot change them."""


class Fork(Record):
    """From where a run parted."""

    run: str
    """Name of the run that it parted from."""
    iteration: int
    """The last iteration that both have."""
    policy: str
    """Digest of that iteration's policy."""
    overrides: dict[str, Any]
    """Dotted names and values by which it departs from that run's configuration."""
    when: str
    """UTC, ISO 8601."""
    manifests: dict[str, str]
    """Digests of the manifests that both have, by their names in the run."""


def read_fork(paths: RunPaths) -> Fork | None:
    """From where a run parted; None where it began by itself.

    Raises:
        ArtifactError: the record cannot be read.
    """
    return read_record(paths.fork, Fork, "the run goes on without it once it is removed")


def fork(
    artifacts: Path, run: str, at: int, name: str, overrides: Mapping[str, Any], say: Callable[[str], None]
) -> RunPaths:
    """Makes the run `name`, which has the iterations 0 to `at` of `run` and goes on from there by `overrides`.

    No output is copied: both runs name the same files on the disk, and neither ever writes into one. What holds the
    configuration of the shared iterations stands beside `run.yaml`.

    Raises:
        ConfigError: the name is taken, the iteration is not whole, or a setting belongs to what lies before the fork.
        ArtifactError: a shared file lies outside the run, behind a symbolic link.
        RunInUseError: a shared iteration was written to meanwhile.
    """
    paths, config = open_run(artifacts, run)
    clear_left(artifacts)
    new = RunPaths.named(artifacts, name)
    if new.root.exists():
        raise ConfigError(f"{new.root}: is there already; choose another name with --name")
    if early := [key for key in overrides if key.split(".")[0] in BEFORE]:
        raise ConfigError(f"--set {early[0]}: decides what lies before the fork; train a new run with `grpo train`")
    wanted = with_settings(config, {**overrides, "run": name}, "--set")
    with new_folder(new.root) as folder, steady(paths, at):
        _check_whole(paths, config, at)
        _check_goes_on(paths, wanted, at, run)
        copied = sum(not link(source, folder / source.relative_to(paths.root)) for source in _shared(paths, at))
        _copy_data(paths, RunPaths(folder))
        _freeze(paths, config, at, RunPaths(folder))
        record = Fork(
            run=run,
            iteration=at,
            policy=History(paths).policy_digest(at) or "",
            overrides=dict(overrides),
            when=now(),
            manifests={
                (path / MANIFEST).relative_to(folder).as_posix(): file_digest(path / MANIFEST)
                for path in stage_folders(folder / "iterations")
            },
        )
        write_record(RunPaths(folder).fork, record)
        write_text(RunPaths(folder).config, dump_config(wanted))
        _check_whole(RunPaths(folder), wanted, at)
    if copied:
        say(f"{copied} files were copied, since {paths.root} and {new.root} cannot share files (two file systems?)")
    return new


def _check_whole(paths: RunPaths, config: RunConfig, at: int) -> None:
    """Checks that iterations 0 to `at` are current, and that all is there from which the next one goes on."""
    history, run = History(paths), paths.root.name
    parent = read_fork(paths)
    if parent is not None and at < parent.iteration:
        raise ConfigError(f"iteration {at} of {run} is one that it shares: fork {parent.run} --at {at} instead")
    for state in examine(history, config, at):
        if state.status != "current":
            raise ConfigError(
                f"{run} cannot be forked at iteration {at}: {state.stage} of iteration {state.iteration} is "
                f"{state.status} ({state.reason}); `grpo resume {run}` makes it"
            )
    if gone := missing_for(history, config, at + 1):
        raise ConfigError(f"{run} cannot be forked at iteration {at}: the retention rule `keep` removed {gone[0]}")


def _check_goes_on(paths: RunPaths, wanted: RunConfig, at: int, run: str) -> None:
    """Checks that the settings of the fork want nothing that the shared iterations were configured without."""
    history = History(paths)
    if gone := never_made_for(history, wanted, at + 1):
        raise ConfigError(
            f"{run} cannot be forked at iteration {at} with these settings: iteration {at + 1} would go on from "
            f"{gone[0]}, which was never made; such a setting has to hold from the first iteration on: fork --at 0"
        )
    made = history.manifest(at, "update")
    if wanted.update.lora is None and made is not None and f"policy/{ADAPTER_CONFIG}" in made.outputs:
        raise ConfigError(
            f"{run} cannot be forked at iteration {at} with update.lora=null: its policy is an adapter; "
            "such a setting has to hold from the first iteration on: fork --at 0"
        )


def _shared(paths: RunPaths, at: int) -> Iterator[Path]:
    """The files of the stages of iterations 0 to `at`: the manifests, and what they name as far as it is there."""
    history = History(paths)
    for folder in stage_folders(paths.iterations):
        k = int(folder.parent.name)
        if k > at or (manifest := history.manifest(k, folder.name)) is None:
            continue
        await_all(folder)
        names = [*manifest.outputs, PRUNED, MANIFEST]
        for path in (folder / name for name in names if (folder / name).is_file()):
            check_inside(paths, path)
            yield path


def _copy_data(paths: RunPaths, new: RunPaths) -> None:
    """Copies the files of prompts that shared iterations took up: they are the user's, who may write into them."""
    made = [read_manifest(path) for path in stage_folders(new.iterations) if path.name == "prompts"]
    inside = f"{paths.relative(paths.data)}/"
    for name in {name for manifest in made if manifest for name in manifest.inputs if name.startswith(inside)}:
        if (paths.root / name).is_file():
            (new.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(paths.root / name, new.root / name)


def clear_left(artifacts: Path) -> None:
    """Removes what killed forks and replays left: folders of links, by which nothing that is removed is freed."""
    for folder in [*artifacts.glob(".*.partial/iterations"), *artifacts.glob(".replay-*/*/iterations")]:
        scratch = artifacts / folder.relative_to(artifacts).parts[0]
        with suppress(OSError), folder_lock(scratch) as free:
            if free:
                shutil.rmtree(scratch)


def link(source: Path, target: Path) -> bool:
    """Gives a file a second name, or a copy where the file system cannot; whether it was linked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        return False
    return True


def _freeze(paths: RunPaths, config: RunConfig, at: int, new: RunPaths) -> None:
    """Keeps the configurations that the shared iterations were made with."""
    for former in paths.root.glob("run.[0-9]*.yaml"):
        shutil.copyfile(former, new.root / former.name)
    if not new.former_config(at).exists():
        write_text(new.former_config(at), dump_config(config))
