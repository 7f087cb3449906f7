"""What a benchmark is run with."""

from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.works import CACHE


@dataclass(frozen=True)
class Settings:
    """Of one part."""

    runs: int
    """Measured runs of each side."""
    threads: int
    """Threads of torch."""
    pictures: Path
    """Where plots go."""

    def log(self, name: str) -> Path:
        """Where a side's stderr goes."""
        return CACHE / "logs" / f"{name}.log"

    def say(self, text: str) -> None:
        """Progress."""
        print(text, flush=True)

    def told(self) -> str:
        """The threads, in words."""
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}"

    def told_runs(self) -> str:
        """How often each side was measured, in words."""
        return f"medians of {self.runs} runs in turn" if self.runs > 1 else "one run of each side"
