"""Reads the history of a run: what the manifests of its stages say."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.config.loading import read_config_file
from flows.config.schema import RunConfig
from stages.contract.background import is_coming
from stages.contract.digest import file_digest
from stages.contract.errors import ArtifactError, ConfigError, VersionError
from stages.contract.manifest import Manifest, read_manifest, stage_folders
from stages.contract.paths import MANIFEST, RunPaths
from stages.contract.policy import adapter_digest, recorded_policy
from stages.contract.pruned import pruned


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


def has_stages(paths: RunPaths) -> bool:
    """Whether a stage of the run was done."""
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


def circumstances(old: Manifest, new: Manifest) -> dict[str, tuple[Any, Any]]:
    """What may explain a difference: code, packages, host, device, threads, deterministic algorithms and the
    processor's instruction sets, as they were and are. What older code did not note is None."""
    single = ("code", "host", "device", "threads", "deterministic")
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in single}
    for before, after, title in ((old.packages, new.packages, "{}"), (old.processor, new.processor, "processor, {}")):
        names = sorted(before.keys() | after.keys())
        pairs |= {title.format(name): (before.get(name), after.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
