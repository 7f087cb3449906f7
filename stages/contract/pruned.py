"""What the retention rule removed of a stage's output, named beside the manifest: it is not taken for damage."""

import json
from pathlib import Path

from stages.contract.commit import write_text

PRUNED = "pruned.json"


def pruned(folder: Path) -> frozenset[str]:
    """Names of the outputs that were removed from a stage's folder; a note that cannot be read counts for nothing."""
    try:
        names = json.loads((folder / PRUNED).read_bytes().decode("utf-8"))["files"]
        return frozenset(str(name) for name in names)
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def note_pruned(folder: Path, names: frozenset[str]) -> None:
    """Notes that outputs are to be removed, before they are: a kill between the two leaves files that nobody misses."""
    write_text(folder / PRUNED, json.dumps({"files": sorted(pruned(folder) | names)}, indent=1))
