"""This project's side of the comparisons."""

import ctypes
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.contract.paths import RunPaths
from tests.benchmarks.side import Figures, Turns, resident
from tests.benchmarks.works import CACHE, LEARNING_RATE, WORKS, make, model_folder, prompt_tokens


def settings(work: str) -> dict[str, Any]:
    """`update` of the configuration: the same objective as TRL's."""
    return {
        "micro_batch_tokens": WORKS[work].micro_batch_tokens,
        "loss": {"type": "clipped", "epsilon_low": 0.2, "epsilon_high": 0.2, "aggregation": "token_mean"},
        "optimizer": {"learning_rate": LEARNING_RATE},
    }


@contextmanager
def attention(profiled: bool) -> Iterator[Figures]:
    """Seconds of the CPU that what runs within spends in `attention`, from a profile of it; nothing without one."""
    told: Figures = {}
    if not profiled:
        yield told
        return
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        yield told
    ops = (op for op in found.key_averages() if "scaled_dot_product" in op.key)
    told["attention"] = sum(op.self_cpu_time_total for op in ops) / 1e6


def update(turns: Turns, work: str, trim: bool = False, profiled: bool = False, deterministic: bool = True) -> None:
    """The stage `update`, from its tables to the written policy and optimizer state, iteration after iteration.

    All have the same rollouts, as TRL's steps have; from the second one on there is an optimizer state. With `trim`
    what the allocator keeps is given back after each, and the rest told as `left` (MiB). `deterministic` is
    `hardware.deterministic`.
    """
    import polars as pl

    from stages.contract.manifest import read_manifest
    from stages.contract.workspace import Job
    from stages.model.determinism import set_deterministic
    from stages.update import stage
    from stages.update.config import UpdateConfig

    set_deterministic(deterministic)
    made, config = make(WORKS[work]), UpdateConfig.model_validate(settings(work))
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        paths = RunPaths(Path(folder) / "run")
        shutil.copytree(made.root, paths.root, copy_function=os.link)
        turns.imported()
        for k in itertools.count(1):
            if not turns.wait():
                break
            begun = time.perf_counter()
            with attention(profiled) as told:
                stage.run(Job(paths, k, seed=1), config)
            whole = time.perf_counter() - begun
            manifest = read_manifest(paths.stage(k, "update"))
            assert manifest is not None
            step = pl.read_parquet(paths.stage(k, "update") / "steps.parquet").row(0, named=True)
            parts = manifest.timings
            seconds = parts.get("old_logprobs", 0.0) + parts["train"]
            told |= {"loss": step["loss"], "gradient_norm": step["gradient_norm"]}
            if trim:
                ctypes.CDLL(None).malloc_trim(0)
                told["left"] = resident()["VmRSS"]
            turns.done({"seconds": seconds, "whole": whole, **told})
            for name in ("sample", "score", "advantage"):
                shutil.copytree(paths.stage(1, name), paths.stage(k + 1, name), copy_function=os.link)
            if k > 1:
                shutil.rmtree(paths.stage(k - 1, "update"))


def sampling(turns: Turns, work: str, profiled: bool = False) -> None:
    """The transformers engine."""
    from stages.sample.config import SamplingConfig
    from stages.sample.transformers_engine import TransformersSampler

    of = WORKS[work]
    turns.imported()
    engine = TransformersSampler(of.rows, "cpu")
    engine.load_policy(model_folder(of), "benchmark")
    prompts, call = prompt_tokens(of), itertools.count()
    while turns.wait():
        first = next(call) * 10**6
        seeds = [[first + 1000 * p + i for i in range(of.group)] for p in range(of.prompts)]
        begun = time.perf_counter()
        with attention(profiled) as told:
            drawn = engine.generate(prompts, seeds, SamplingConfig(max_tokens=of.tokens), frozenset())
        seconds = time.perf_counter() - begun
        turns.done({"seconds": seconds, "tokens": sum(len(c.tokens) for row in drawn for c in row), **told})


def gradient(turns: Turns, work: str, plain: bool) -> None:
    """Loss and gradient of all rows at once: with logits of a part of the tokens at a time, or of all of them."""
    import torch

    from stages.contract.columns import ADVANTAGES, ROLLOUTS, SCORES
    from stages.contract.metrics import Meter
    from stages.contract.tables import read
    from stages.model.load import load_model
    from stages.update.batch import training_rows
    from stages.update.config import UpdateConfig
    from stages.update.loop import accumulate
    from stages.update.loss.clipped import clipped

    paths = make(WORKS[work])
    tables = [
        read(paths.stage(1, stage) / f"{name}.parquet", schema)
        for stage, name, schema in (
            ("sample", "rollouts", ROLLOUTS),
            ("score", "scores", SCORES),
            ("advantage", "advantages", ADVANTAGES),
        )
    ]
    rows = [replace(row, old_T=row.sampler_T) for row in training_rows(*tables)]
    config = UpdateConfig.model_validate(settings(work) | {"old_logprobs": "sampler"})
    turns.imported()
    model = load_model(model_folder(WORKS[work]), "cpu")
    advantages_N = torch.cat([row.advantages_T for row in rows])
    old_N = torch.cat([row.sampler_T for row in rows])

    def with_all_logits() -> float:
        ids_BS = torch.tensor([[*row.prompt, *row.completion] for row in rows])  # all of one length
        logprobs_BSV = model(input_ids=ids_BS, use_cache=False).logits.log_softmax(-1)
        first = len(rows[0].prompt)
        logprobs_N = logprobs_BSV[:, first - 1 : -1].gather(-1, ids_BS[:, first:, None]).flatten()
        loss = clipped((logprobs_N - old_N).exp(), advantages_N, 0.2, 0.2, None, None).mean()
        torch.autograd.backward(loss)
        return float(loss.detach())

    def by_parts() -> float:
        meter = Meter()
        accumulate(model, rows, config, "cpu", meter)
        return meter.result()["loss"]

    while turns.wait():
        model.zero_grad(set_to_none=True)
        begun = time.perf_counter()
        loss = with_all_logits() if plain else by_parts()
        seconds = time.perf_counter() - begun
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        turns.done({"seconds": seconds, "loss": loss, "gradient_norm": float(norm)})
