"""The stage `sample` as a plain function: shards, what they outlive, and how near sampler and trainer have to be."""

import shutil

import polars as pl
import pytest

from stages.contract import tables
from stages.contract.columns import PROMPTS
from stages.contract.errors import EngineError
from stages.contract.manifest import read_manifest
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job, open_stage
from stages.sample.config import SampleConfig
from stages.sample.stage import run
from stages.sample.transformers_engine import TransformersSampler

SETTINGS = {"prompts": 7, "group_size": 3, "max_prompt_tokens": 20, "sampling": {"max_tokens": 8}}
STRICT = {"fidelity": {"completions": 8, "error": 1e-15, "warn": 1e-15}}
"""Nearer than float32 can be."""


@pytest.fixture
def started(tmp_path, tiny_policy):
    """A run with ten prompts, of which some are too long, and a starting policy."""
    paths = RunPaths(tmp_path / "run")
    contents = [f"{i}+{i * i}=" for i in range(8)] + ["a prompt of more than twenty characters"] * 2
    prompts = {
        "prompt_id": [f"p{i}" for i in range(10)],
        "messages": [[{"role": "user", "content": content}] for content in contents],
        "format": ["text"] * 10,
        "task": ["sums"] * 10,
        "answer": [None] * 10,
        "metadata": ["{}"] * 10,
        "source": [None] * 10,
        "level": [None] * 10,
    }
    with open_stage(Job(paths, 0, seed=1), "prompts", "prompts", {}) as desk:
        desk.write("train.parquet", tables.frame(PROMPTS, prompts), PROMPTS)
    with open_stage(Job(paths, 0, seed=1), "warmstart", "update", {}) as desk:
        shutil.copytree(tiny_policy, desk.folder / "policy")
    return paths


def draw(paths, **changes):
    """Runs the stage; its table and manifest."""
    config = SampleConfig.model_validate(SETTINGS | changes)
    run(Job(paths, 1, seed=1), config, TransformersSampler(64, "cpu"))
    folder = paths.stage(1, "sample")
    return (folder / "rollouts.parquet").read_bytes(), read_manifest(folder)


@pytest.mark.parametrize("shards", [2, 5, 100])
def test_shards_change_neither_tokens_nor_order_and_drop_nothing_more(started, shards):
    draw(started)
    one = pl.read_parquet(started.stage(1, "sample") / "rollouts.parquet")
    before = read_manifest(started.stage(1, "sample"))
    _, after = draw(started, shards=shards)
    other = pl.read_parquet(started.stage(1, "sample") / "rollouts.parquet")
    assert one.drop("sampler_logprobs").equals(other.drop("sampler_logprobs"))
    # this engine pads prompts to the longest of a batch, which shows in the last bits
    difference = one["sampler_logprobs"].explode() - other["sampler_logprobs"].explode()
    assert difference.abs().max() < 1e-5
    assert (before.dropped, before.config_digest) == (after.dropped, after.config_digest)
    assert after.notes["shards"] == {"all": min(shards, one["prompt_id"].n_unique()), "kept_from_before": 0}
    assert not started.parts(1, "sample").exists()


def test_shards_outlive_a_stage_that_fails_after_they_were_drawn(started):
    whole, _ = draw(started, shards=3)
    with pytest.raises(EngineError, match=r"sample\.fidelity\.error allows 1e-15"):
        draw(started, shards=3, **STRICT)
    assert len(list(started.parts(1, "sample").glob("*.parquet"))) == 3
    again, manifest = draw(started, shards=3)
    assert manifest.notes["shards"] == {"all": 3, "kept_from_before": 3}
    assert again == whole
    assert not started.parts(1, "sample").exists()


def test_shards_of_another_sampling_are_not_used(started):
    with pytest.raises(EngineError):
        draw(started, shards=3, **STRICT)
    _, manifest = draw(started, shards=3, sampling={"max_tokens": 8, "temperature": 0.5})
    assert manifest.notes["shards"] == {"all": 3, "kept_from_before": 0}
    assert not started.parts(1, "sample").exists()


def test_a_difference_between_sampler_and_trainer_is_noted_warned_of_and_refused(started):
    _, manifest = draw(started, fidelity={"completions": 8})
    figures = manifest.notes["fidelity"]
    assert figures["completions"] == 8
    assert 0 < figures["mean"] <= figures["max"] < 1e-4
    assert "warnings" not in manifest.notes
    _, manifest = draw(started, fidelity={"completions": 8, "warn": 1e-15})
    [warning] = manifest.notes["warnings"]
    assert warning.startswith("sampler and trainer differ by ")
    assert warning.endswith("sample.fidelity.warn is 1e-15")
    with pytest.raises(EngineError, match="too low, or it computes another model"):
        draw(started, **STRICT)


def test_comparing_can_be_left_out(started):
    _, manifest = draw(started, fidelity={"completions": 0, "error": 1e-15, "warn": 1e-15})
    assert "fidelity" not in manifest.notes
    assert not any(name.startswith("fidelity") for name in manifest.metrics)
