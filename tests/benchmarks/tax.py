"""What the pipeline adds to an iteration of the quickstart's tiny model, work A."""

import statistics
import tempfile
from pathlib import Path

import yaml

from tests.benchmarks.fast import Part, limit
from tests.benchmarks.iteration import COMPUTED, train
from tests.benchmarks.settings import Settings
from tests.benchmarks.side import Side

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
ITERATIONS, BAR = 50, 0.4


def measure(settings: Settings) -> Part:
    """Iterations under the embedded server, less generating, rewards and passes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        changed = {
            "base": str(QUICKSTART), "sample": {"prompts": 64}, "warmstart": {"tuning": {"steps": 20}},
            "evaluate": None, "iterations": 1000, "hardware": {"threads": settings.threads},
        }  # fmt: skip
        path.write_text(yaml.safe_dump(changed), encoding="utf-8")
        with Side(train, settings.threads, settings.log("tax"), threads=settings.threads, config=str(path)) as side:
            taken = side.run(ITERATIONS)["iterations"]
    whole = statistics.median(one["seconds"] for one in taken)
    tax = statistics.median(one["seconds"] - sum(one[part] for part in COMPUTED) for one in taken)
    rows = [limit("pipeline tax of an iteration, A", tax, BAR)]
    return Part(rows, f"A, medians of {ITERATIONS} iterations of {whole:.2f} s, {settings.told()}.")
