"""`grpo train` of work B from nothing to the first generated token, the files in the page cache."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from stages.contract.manifest import read_manifest
from tests.benchmarks.fast import Part, Row, limit
from tests.benchmarks.iteration import configuration
from tests.benchmarks.settings import Settings
from tests.benchmarks.works import CACHE

BAR, LIMIT = 20, 300
GRPO = Path(sys.executable).with_name("grpo")


def measure(settings: Settings) -> Part:
    """Starts of a new run, and of one that goes on."""
    new, again = [], []
    CACHE.mkdir(parents=True, exist_ok=True)
    for n in range(settings.runs + 1):
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            folder = Path(name)
            first = {
                "sample": {"prompts": 8, "group_size": 8, "sampling": {"max_tokens": 1}},
                "advantage": {"type": "grpo"},
            }
            config = configuration(folder, settings.threads, **first)
            new.append(seconds_to_first(config, folder, settings.threads))
            (folder / "b" / "iterations" / "0001" / "sample").rename(folder / "former")
            again.append(seconds_to_first(config, folder, settings.threads))
            settings.say(f"start {n}: new {new[-1]:.1f} s, going on {again[-1]:.1f} s")
    told = f"start-up, medians of {settings.runs} starts after one to warm up; a policy that draws one token."
    rows = [
        limit("`grpo train` to the first token of a new run, B", statistics.median(new[1:]), BAR),
        Row("… of a run that goes on", f"{statistics.median(again[1:]):.2f} s"),
    ]
    return Part(rows, told)


def seconds_to_first(config: Path, folder: Path, threads: int) -> float:
    """Seconds from the command to its first tokens, by the manifest of `sample`, which draws one a completion."""
    command = [str(GRPO), "train", str(config), "--iterations", "1", "--artifacts", str(folder)]
    begun = time.time()
    log = (folder / "start.log").open("wb")
    variables = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)
    try:
        sample = folder / "b" / "iterations" / "0001" / "sample"
        while (manifest := read_manifest(sample) if sample.is_dir() else None) is None:
            assert process.poll() is None and time.time() < begun + LIMIT, (folder / "start.log").read_text("utf-8")
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        log.close()
    parts = manifest.timings
    return datetime.fromisoformat(manifest.started).timestamp() + parts["load"] + parts["generate"] - begun
