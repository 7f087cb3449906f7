"""A run that begins: prompts from a file and a starting policy, made by the stages themselves."""

import json
from collections.abc import Sequence
from pathlib import Path

from stages.contract.paths import RunPaths
from stages.contract.workspace import Job
from stages.prompts import stage as prompts
from stages.prompts.config import PromptsConfig
from stages.warmstart import stage as warmstart
from stages.warmstart.config import WarmstartConfig


def start_run(folder: Path, asked: Sequence[str], policy: Path, kind: str = "text") -> RunPaths:
    """Iteration 0 of a run below `folder` without held-out prompts; the answer to prompt i is i + 1."""
    rows = [{"prompt": prompt, "answer": str(i + 1)} for i, prompt in enumerate(asked)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = {"type": "file", "path": folder / "data.jsonl"}
    job = Job(RunPaths(folder / "run"), 0, seed=1)
    prompts.run(job, PromptsConfig.model_validate({"source": source, "heldout": 0, "format": kind}))
    warmstart.run(job, WarmstartConfig.model_validate({"model": {"type": "folder", "path": policy}}))
    return job.paths
