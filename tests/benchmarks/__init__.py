"""Measurements that take minutes; run by hand, never collected as tests. Each writes into `results/`."""

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "polars", "prefect", "pyarrow", "torch", "transformers", "trl")


def circumstances() -> str:
    """Date, commit (`-dirty` where more than what benchmarks write is changed), machine and versions, as Markdown."""
    commit = _git("describe", "--always").stdout.strip() or "unknown"
    changed = _git("diff", "--quiet", "HEAD", "--", ":/", ":!/README.md", f":!{RESULTS.name}").returncode == 1
    names = [line.split(":", 1)[1].strip() for line in _read("/proc/cpuinfo").splitlines() if "model name" in line]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    machine = f"{len(names)} × {names[0]}" if names else platform.machine()
    load = _read("/proc/loadavg").split(" ")[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit}{'-dirty' if changed else ''}, {machine}, load {load}, "
        f"Python {platform.python_version()}, {versions}."
    )


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=RESULTS.parent, capture_output=True, text=True, check=False)


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else ""
