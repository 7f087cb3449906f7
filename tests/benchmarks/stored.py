"""Work E: what is done with stored rollouts without a model. Advantages of a million rows beside a loop over rows."""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch

from stages.advantage import stage as advantage
from stages.advantage.config import Grpo
from stages.advantage.stage import advantage_rows
from stages.contract import tables
from stages.contract.columns import ADVANTAGES, ROLLOUTS, SCORES
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job, open_stage
from stages.score import stage as score
from stages.score.config import ScoreConfig
from stages.update.batch import training_rows
from tests.benchmarks.advantages import METHODS, loop_seconds
from tests.benchmarks.advantages import rows as rows_of
from tests.benchmarks.fast import Part, Row, limit
from tests.benchmarks.settings import Settings

ROWS, TOKENS, STORED, GROUP = 1_000_000, 64, 100_000, 8
BAR, LOOP = 2, 50


def median_seconds(work: Callable[[], object], runs: int) -> float:
    """After a run to warm up."""
    taken = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[1:])


def drawn(count: int) -> pl.DataFrame:
    """Rollouts of 16 tokens each that answer sums, half of them rightly."""
    rng = np.random.default_rng(0)
    prompt = np.arange(count) // GROUP
    given = prompt + rng.integers(0, 2, count)
    tokens = rng.integers(1, 1000, (count, 16)).tolist()
    columns = {
        "prompt_id": [f"{n:08d}" for n in prompt], "sample": list(np.arange(count) % GROUP), "prompt": [""] * count,
        "prompt_tokens": tokens, "completion": [f"The answer is {n}." for n in given], "completion_tokens": tokens,
        "sampler_logprobs": rng.random((count, 16)).tolist(), "finish_reason": ["stop"] * count,
        "temperature": [1.0] * count, "seed": list(range(count)), "task": ["sums"] * count,
        "answer": [str(n) for n in prompt], "metadata": ["{}"] * count, "policy_digest": [""] * count,
        "messages": [None] * count, "format": ["text"] * count,
    }  # fmt: skip
    return tables.frame(ROLLOUTS, columns)


def loop_by_tensors(frame: pl.DataFrame) -> list[float]:
    """GRPO as verl has it: rows one by one, a dictionary of lists of tensors by prompt."""
    names, scores = frame["prompt_id"].to_list(), torch.tensor(frame["reward"].to_list())
    groups: dict[str, list[torch.Tensor]] = defaultdict(list)
    for i, name in enumerate(names):
        groups[name].append(scores[i])
    mean = {name: torch.stack(group).mean() for name, group in groups.items()}
    std = {name: torch.stack(group).std() for name, group in groups.items()}
    for i, name in enumerate(names):
        scores[i] = (scores[i] - mean[name]) / (std[name] + 1e-6)
    return scores.tolist()


def measure(settings: Settings) -> Part:
    """Advantages of a million rows; score, advantage and reading of 100,000."""
    config, frame = METHODS["grpo"], rows_of(ROWS, TOKENS, METHODS["grpo"])
    whole = median_seconds(lambda table=frame: advantage_rows(table, config), settings.runs)
    part = frame.head(ROWS // 50)
    ours = advantage_rows(part, config)[0]["advantages"].list.first()
    np.testing.assert_allclose(loop_by_tensors(part), ours, rtol=1e-3)
    tensors = ROWS / part.height * median_seconds(lambda: loop_by_tensors(part), 1)
    loop = loop_seconds(config, frame, part.height)
    assert loop is not None
    del frame
    told = f"{whole:.2f} s"
    with tempfile.TemporaryDirectory() as folder:
        stages = of_stored(RunPaths(Path(folder) / "run"), settings.runs)
    return Part(
        [
            limit("advantages of a million rows, E", whole, BAR),
            Row(
                "… beside verl's loop", told, f"{tensors:.1f} s", tensors / whole, f"≥ {LOOP}", tensors >= LOOP * whole
            ),
            Row("… beside a loop over plain numbers", told, f"{loop:.1f} s", loop / whole),
            *(Row(f"{name} of {STORED:,} stored rollouts, E", f"{seconds:.2f} s") for name, seconds in stages.items()),
        ],
        f"E, medians of {settings.runs} runs after one to warm up; advantages from table to table, {TOKENS} tokens a "
        "completion. The loops (verl's: over rows and a dictionary of tensors) give one number a completion; their "
        "times are from a fiftieth of the rows.",
    )


def of_stored(paths: RunPaths, runs: int) -> dict[str, float]:
    """Seconds of the stages score and advantage as the flow runs them, and of what update reads of their tables."""
    job = Job(paths, 1, seed=1)
    with open_stage(job, "sample", "sample", {}) as desk:
        desk.write("rollouts.parquet", drawn(STORED), ROLLOUTS)
    judging = ScoreConfig.model_validate({"rewards": [{"type": "math", "extract": "last_number"}]})

    def read() -> None:
        files = {"sample/rollouts": ROLLOUTS, "score/scores": SCORES, "advantage/advantages": ADVANTAGES}
        parts = [tables.read(paths.stage(1, "") / f"{name}.parquet", schema) for name, schema in files.items()]
        assert training_rows(*parts)

    return {
        "score": median_seconds(lambda: score.run(job, judging), runs),
        "advantage": median_seconds(lambda: advantage.run(job, Grpo()), runs),
        "reading for the update": median_seconds(read, runs),
    }
