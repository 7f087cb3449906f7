"""Parts of a table that is being drawn, kept until it is whole: a kill loses the part at work, not those before it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from stages.contract import tables
from stages.contract.columns import ROLLOUTS
from stages.contract.commit import sync
from stages.contract.config import config_digest
from stages.contract.digest import file_digest
from stages.contract.errors import ArtifactError


def ranges(rows: int, shards: int) -> list[range]:
    """The rows 0, 1, … in `shards` parts, as even as can be; as many parts as rows where there are fewer."""
    count = min(rows, shards)
    return [range(i * rows // count, (i + 1) * rows // count) for i in range(count)]


@dataclass(frozen=True)
class Parts:
    """A folder of parts, which is removed when the whole table is put in place.

    Each file's name holds the digest of all that decided its content, and that of its content.
    """

    folder: Path

    def load(self, decided_by: dict[str, Any]) -> pl.DataFrame | None:
        """The part that was drawn for just this; None where there is none, or not a whole one."""
        for path in self.folder.glob(f"{_name(decided_by)}-*.parquet"):
            if path.stem.endswith(file_digest(path)):
                try:
                    return tables.read(path, ROLLOUTS)
                except ArtifactError:
                    return None
        return None

    def store(self, decided_by: dict[str, Any], part: pl.DataFrame) -> None:
        """Keeps a part: it is there whole, or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / ".partial"
        tables.write(aside, part, ROLLOUTS)
        sync(aside)
        aside.rename(self.folder / f"{_name(decided_by)}-{file_digest(aside)}.parquet")
        sync(self.folder)


def _name(decided_by: dict[str, Any]) -> str:
    return config_digest(decided_by)[:32]
