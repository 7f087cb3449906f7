"""The stages called as plain functions, one after the other, without Prefect."""

import json

import polars as pl
import pytest

from stages.advantage import stage as advantage
from stages.advantage.config import Grpo
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job
from stages.prompts import stage as prompts
from stages.prompts.config import PromptsConfig
from stages.sample import stage as sample
from stages.sample.config import SampleConfig, SamplingConfig
from stages.sample.transformers_engine import TransformersSampler
from stages.score import stage as score
from stages.score.config import ScoreConfig
from stages.update import stage as update
from stages.update.config import KlConfig, UpdateConfig
from stages.warmstart import stage as warmstart
from stages.warmstart.config import WarmstartConfig


def one_iteration(paths, k, reward, config):
    """Runs sample, score, advantage and update of iteration `k`."""
    job = Job(paths, k, seed=1)
    sampling = SamplingConfig(max_tokens=6, stop_token_ids=tuple(range(2, 40)))  # so that lengths differ
    drawing = SampleConfig(prompts=4, group_size=3, sampling=sampling, max_prompt_tokens=12)
    sample.run(job, drawing, TransformersSampler(64, "cpu"))
    score.run(job, ScoreConfig(rewards=[reward], reference="start"))
    advantage.run(job, Grpo())
    update.run(job, config)


@pytest.fixture
def started(tmp_path, tiny_policy):
    """A run with four prompts, of which one is too long, and a starting policy."""
    rows = [{"prompt": f"{i} + 1", "answer": str(i + 1)} for i in range(4)]
    rows[3]["prompt"] = "a prompt of more than twelve characters"
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paths = RunPaths(tmp_path / "run")
    source = {"type": "file", "path": tmp_path / "data.jsonl"}
    prompts.run(Job(paths, 0, seed=1), PromptsConfig(source=source, heldout=0, format="text"))
    warmstart.run(Job(paths, 0, seed=1), WarmstartConfig(model={"type": "folder", "path": tiny_policy}))
    return paths


def manifest(paths, k, stage):
    return json.loads((paths.stage(k, stage) / "manifest.json").read_text())


def weights(paths, k):
    return (paths.policy(k) / "model.safetensors").read_bytes()


def test_with_nothing_to_train_on_the_policy_stays_and_the_next_iteration_goes_on(started):
    constant = {"type": "length", "target": 100, "limit": 200}
    one_iteration(started, 1, constant, UpdateConfig())
    assert manifest(started, 1, "advantage")["dropped"] == {"constant group": 9}
    assert manifest(started, 1, "update")["metrics"]["optimizer_steps"] == 0
    assert pl.read_parquet(started.stage(1, "update") / "steps.parquet").height == 0
    assert weights(started, 1) == weights(started, 0)
    one_iteration(started, 2, {"type": "length", "target": 0, "limit": 6}, UpdateConfig(kl=KlConfig(coefficient=0.1)))
    assert weights(started, 2) != weights(started, 1)
    steps = pl.read_parquet(started.stage(2, "update") / "steps.parquet")
    assert steps["step"].to_list() == [1]
    assert steps["kl"].to_list() == pytest.approx([0.0], abs=1e-6)  # the policy is still the starting one


def test_a_prompt_that_is_too_long_is_dropped_and_counted_before_the_engine_sees_it(started):
    one_iteration(started, 1, {"type": "length", "target": 0, "limit": 6}, UpdateConfig())
    assert manifest(started, 1, "sample")["dropped"] == {"prompt longer than 12 tokens": 1}
    rollouts = pl.read_parquet(started.stage(1, "sample") / "rollouts.parquet")
    assert rollouts.height == 9
    assert rollouts["prompt_tokens"].list.len().max() <= 12


def test_the_manifest_ties_a_policy_to_its_parent(started):
    one_iteration(started, 1, {"type": "length", "target": 0, "limit": 6}, UpdateConfig())
    behaviour = pl.read_parquet(started.stage(1, "sample") / "rollouts.parquet")["policy_digest"].unique().to_list()
    assert behaviour == [manifest(started, 1, "update")["notes"]["parent_digest"]]
    assert behaviour == [manifest(started, 1, "score")["notes"]["reference_digest"]]


def test_a_bit_that_flipped_in_a_table_is_found_before_it_is_trained_on(started):
    one_iteration(started, 1, {"type": "length", "target": 0, "limit": 6}, UpdateConfig())
    path = started.stage(1, "advantage") / "advantages.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"advantages\.parquet: .*grpo stage advantage run --iteration 1"):
        update.run(Job(started, 1, seed=1), UpdateConfig())


def test_a_model_without_chat_template_is_not_asked_to_chat(tmp_path, tiny_policy):
    (tmp_path / "data.jsonl").write_text('{"prompt": "1", "answer": "1"}')
    paths = RunPaths(tmp_path / "run")
    source = {"type": "file", "path": tmp_path / "data.jsonl"}
    prompts.run(Job(paths, 0, seed=1), PromptsConfig(source=source, heldout=0))
    warmstart.run(Job(paths, 0, seed=1), WarmstartConfig(model={"type": "folder", "path": tiny_policy}))
    with pytest.raises(ConfigError, match="no chat template; use text"):
        sample.run(Job(paths, 1, seed=1), SampleConfig(prompts=1), TransformersSampler(64, "cpu"))
