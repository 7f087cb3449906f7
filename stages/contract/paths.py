"""Where a run's files lie. Pure: nothing here touches the disk."""

import re
from dataclasses import dataclass
from pathlib import Path

from stages.contract.errors import ConfigError

MANIFEST = "manifest.json"
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def checked_name(name: str) -> str:
    """The name of a run.

    Raises:
        ConfigError: the name could lead out of the folder of all runs, or is no portable folder name.
    """
    if not RUN_NAME.fullmatch(name):
        raise ConfigError(
            f"run name {name[:120]!r}: use up to 100 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    return name


@dataclass(frozen=True)
class RunPaths:
    """The places inside one run's folder."""

    root: Path

    @classmethod
    def named(cls, artifacts: Path, name: str) -> "RunPaths":
        """The run `name` below `artifacts`; a name that could leave that folder is a `ConfigError`."""
        return cls(artifacts / checked_name(name))

    @property
    def config(self) -> Path:
        """The frozen configuration."""
        return self.root / "run.yaml"

    def former_config(self, k: int) -> Path:
        """In a fork, the configuration that the iterations up to `k` were made with."""
        return self.root / f"run.{k:04d}.yaml"

    @property
    def fork(self) -> Path:
        """In a fork, the record of the run that it parted from."""
        return self.root / "fork.json"

    @property
    def lock(self) -> Path:
        """The file that holds the one writer's name."""
        return self.root / "run.lock"

    @property
    def promoted(self) -> Path:
        """The file that says which policy is promoted."""
        return self.root / "promoted.json"

    @property
    def data(self) -> Path:
        """The folder into which new prompts may be dropped."""
        return self.root / "data"

    @property
    def nights(self) -> Path:
        """The folder of what the nights did."""
        return self.root / "nights"

    @property
    def gates(self) -> Path:
        """The folder of what was asked and decided at gates."""
        return self.root / "gates"

    @property
    def iterations(self) -> Path:
        """The folder of all iterations."""
        return self.root / "iterations"

    def iteration(self, k: int) -> Path:
        """The folder of iteration `k`."""
        return self.iterations / f"{k:04d}"

    def stage(self, k: int, stage: str) -> Path:
        """The folder that `stage` of iteration `k` writes."""
        return self.iteration(k) / stage

    def partial(self, k: int, stage: str) -> Path:
        """Where that folder grows until it is whole."""
        return self.iteration(k) / f".{stage}.partial"

    def parts(self, k: int, stage: str) -> Path:
        """Where a stage that works in parts keeps them until all are done."""
        return self.iteration(k) / f".{stage}.parts"

    def policy(self, k: int) -> Path:
        """The policy that iteration `k` leaves behind."""
        return self.stage(k, "update") / "policy"

    def critic(self, k: int) -> Path:
        """The critic that iteration `k` leaves behind, from 1."""
        return self.stage(k, "update") / "critic"

    def average(self, k: int) -> Path:
        """The average of the policies up to `k`, from 1."""
        return self.stage(k, "update") / "average"

    @property
    def reward_model(self) -> Path:
        """The reward model that the run trains before its first iteration."""
        return self.stage(0, "reward_model") / "model"

    def superseded(self, k: int, stage: str, n: int) -> Path:
        """The n-th output of that stage that a rerun replaced."""
        return self.root / "superseded" / f"{k:04d}" / f"{stage}.{n}"

    def relative(self, path: Path) -> str:
        """The name that manifests use: relative to the run inside it, absolute outside."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path.absolute())

    def stage_of(self, path: Path) -> Path | None:
        """The stage folder that a file of this run belongs to; None for a file from outside."""
        if not path.is_relative_to(self.iterations):
            return None
        k, stage = path.relative_to(self.iterations).parts[:2]
        return self.iterations / k / stage
