"""What a run takes on the disk, by iteration and kind."""

from collections import Counter
from pathlib import Path

from flows.runs.retention import OPTIMIZERS, WEIGHTS
from stages.contract.paths import RunPaths

REWARD_MODEL = "model"
"""The folder of weights in the stage `reward_model`; the retention rule leaves them."""
KINDS = ("weights", "optimizer", "tables", "other")


def space(paths: RunPaths) -> list[dict[str, str | int]]:
    """A row for each iteration, one for what was superseded and one for the rest: bytes by kind, all, and shared.

    Shared bytes have another name too, in a fork or its parent: removing this one frees nothing.
    """
    rows: dict[str, Counter[str]] = {}
    seen: set[tuple[int, int]] = set()
    for path in sorted(paths.root.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        stat = path.stat()
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        row = rows.setdefault(_row(path.relative_to(paths.root)), Counter())
        row[_kind(path)] += stat.st_size
        row["all"] += stat.st_size
        row["shared"] += stat.st_size if stat.st_nlink > 1 else 0
    names = [*sorted(rows.keys() - {"superseded", "rest"}, key=int), *(n for n in ("superseded", "rest") if n in rows)]
    return [{"of": name} | {kind: rows[name][kind] for kind in (*KINDS, "all", "shared")} for name in names]


def _row(name: Path) -> str:
    match name.parts:
        case ("iterations", k, _, *_) if k.isdecimal():
            return str(int(k))
        case ("superseded", *_):
            return "superseded"
        case _:
            return "rest"


def _kind(path: Path) -> str:
    if path.name in OPTIMIZERS:
        return "optimizer"
    if path.parent.name in {REWARD_MODEL, *(place.rstrip("/") for place in WEIGHTS)}:
        return "weights"
    return "tables" if path.suffix == ".parquet" else "other"
