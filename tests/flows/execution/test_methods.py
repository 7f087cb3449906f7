"""Every advantage method by its YAML, through all stages of two iterations, without Prefect."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from flows.config.loading import read_config
from stages.contract.paths import RunPaths
from tests.benchmarks.methods import train
from tests.flows.conftest import SMALL

METHODS = {
    "grpo": "{advantage: {type: grpo, scale: batch, baseline: leave_one_out}}",
    "gdpo": "{advantage: {type: grpo, rewards: normalise_then_sum}}",
    "convention": "{convention: nemo}",
    "rloo": "{advantage: {type: rloo, kl: {coefficient: 0.01, estimator: k3, clamp: 10}}}",
    "reinforce": "{advantage: {type: reinforce, baseline: running, max_age: 0}, sample: {group_size: 1}}",
    "plus_plus": "{advantage: {type: reinforce_plus_plus, truncated: mask, kl: {coefficient: 0.01}}}",
    "gae": "{advantage: {type: gae, gae_lambda: 0.9, kl: {coefficient: 0.01}}, critic: {}, sample: {group_size: 1}}",
    "process": "{advantage: {type: process, constant_groups: keep}, score: {rewards: "
    "[{type: reasoning_gym}, {type: equations, wrong: -0.5}, {type: overlong, limit: 6, cache: 3}]}}",
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run's starting policy."""
    paths = RunPaths(tmp_path_factory.mktemp("start") / "small")
    train(paths, read_config(SMALL, {}), 0, last_stage="warmstart")
    return paths.policy(0)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_from_its_yaml(name: str, start: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"base": str(SMALL), "run": name, "evaluate": None} | yaml.safe_load(METHODS[name])
    changes["warmstart"] = {"model": {"type": "folder", "path": str(start)}, "tuning": None}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(changes))
    config = read_config(tmp_path / "mine.yaml", {})
    paths = RunPaths(tmp_path / name)
    train(paths, config, 2)
    for k in (1, 2):
        advantages = pl.read_parquet(paths.stage(k, "advantage") / "advantages.parquet")
        rollouts = pl.read_parquet(paths.stage(k, "sample") / "rollouts.parquet")
        lengths = rollouts["completion_tokens"].list.len().to_list()
        assert advantages["advantages"].list.len().to_list() == lengths
        assert advantages["train"].any()
        assert advantages.filter("train")["advantages"].explode().abs().max() > 0
        assert advantages["returns"].is_null().all() == (name != "gae")
        assert advantages["train"].to_list() == advantages["reason"].is_null().to_list()
    weights = [(paths.policy(k) / "model.safetensors").read_bytes() for k in (0, 1, 2)]
    assert len(set(weights)) == 3
