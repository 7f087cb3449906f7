"""The stages called as plain functions, one after the other, without Prefect."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from pydantic import TypeAdapter

from stages.advantage import stage as advantage
from stages.advantage.config import Gae, Grpo
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.paths import RunPaths
from stages.contract.weights import read_tensors
from stages.contract.workspace import Job
from stages.model.config import CriticConfig, FolderStart
from stages.model.load import load_model
from stages.sample import stage as sample
from stages.sample.config import SampleConfig, SamplingConfig
from stages.sample.transformers_engine import TransformersSampler
from stages.score import stage as score
from stages.score.config import AverageReference, RefreshedReference, ScoreConfig, StartReference
from stages.update import stage as update
from stages.update.batch import group_counts
from stages.update.config import AverageConfig, KlConfig, Loss, UpdateConfig
from tests.starting import start_run


def one_iteration(paths, k, reward, config, reference="start", method=None, critic=None):
    """Runs sample, score, advantage and update of iteration `k`."""
    job = Job(paths, k, seed=1)
    sampling = SamplingConfig(max_tokens=6, stop_token_ids=tuple(range(2, 40)))  # so that lengths differ
    drawing = SampleConfig(prompts=4, group_size=3, sampling=sampling, max_prompt_tokens=12)
    sample.run(job, drawing, TransformersSampler(64, "cpu"))
    score.run(job, ScoreConfig(rewards=[reward], reference=reference), critic.start if critic else None)
    advantage.run(job, method or Grpo())
    update.run(job, config, critic)


@pytest.fixture
def started(tmp_path, tiny_policy):
    """A run with four prompts, of which one is too long, and a starting policy."""
    asked = ["0 + 1", "1 + 1", "2 + 1", "a prompt of more than twelve characters"]
    return start_run(tmp_path, asked, tiny_policy)


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


SHORT = {"type": "length", "target": 0, "limit": 6}
LEARNING = UpdateConfig(minibatches=2, optimizer={"learning_rate": 1e-3})


def digests(paths, k, stage):
    return {name: record["digest"] for name, record in manifest(paths, k, stage)["outputs"].items()}


def test_policy_and_critic_of_ppo_go_from_iteration_to_iteration(started):
    critic = CriticConfig(clip=0.2, optimizer={"learning_rate": 1e-3})
    for k in (1, 2):
        one_iteration(started, k, SHORT, LEARNING, method=Gae(type="gae"), critic=critic)
    scores = [pl.read_parquet(started.stage(k, "score") / "scores.parquet") for k in (1, 2)]
    tokens = pl.read_parquet(started.stage(1, "sample") / "rollouts.parquet")["completion_tokens"]
    assert (scores[0]["values"].list.len() == tokens.list.len()).all()
    assert scores[0]["values"].explode().abs().max() == 0  # a head of zeros
    assert scores[1]["values"].explode().abs().max() > 0
    made = digests(started, 1, "update")
    assert {"critic/config.json", "critic/model.safetensors", "critic_optimizer.safetensors"} <= made.keys()
    for stage in ("score", "update"):  # both read the critic that iteration 1 left
        read = manifest(started, 2, stage)["inputs"]["iterations/0001/update/critic/model.safetensors"]
        assert read["digest"] == made["critic/model.safetensors"]
        assert "critic" in manifest(started, 2, stage)["config"]
    steps = pl.read_parquet(started.stage(2, "update") / "steps.parquet")
    assert steps["step"].to_list() == [3, 4]
    assert steps["value_loss"].min() > 0
    assert steps["explained_variance"].is_not_null().all()
    assert manifest(started, 2, "update")["metrics"]["explained_variance"] is not None


def test_the_stages_of_ppo_done_again_give_the_same_bytes(started):
    critic = CriticConfig(optimizer={"learning_rate": 1e-3})
    config = LEARNING.model_copy(update={"kl": KlConfig(coefficient=0.1, adaptive={"target": 0.01}), "epochs": 2})
    for k in (1, 2):
        one_iteration(started, k, SHORT, config, method=Gae(type="gae"), critic=critic)
    before = {stage: digests(started, 2, stage) for stage in ("score", "advantage", "update")}
    job = Job(started, 2, seed=1)
    score.run(job, ScoreConfig(rewards=[SHORT], reference="start"), critic.start)
    advantage.run(job, Gae(type="gae"))
    update.run(job, config, critic)
    assert {stage: digests(started, 2, stage) for stage in before} == before


def test_the_policy_that_the_process_holds_from_the_iteration_before_gives_the_bytes_that_the_disk_gives(
    started, monkeypatch
):
    critic = CriticConfig(optimizer={"learning_rate": 1e-3})
    one_iteration(started, 1, SHORT, LEARNING, method=Gae(type="gae"), critic=critic)
    read = []
    monkeypatch.setattr(update, "load_model", lambda folder, device: read.append(folder) or load_model(folder, device))
    one_iteration(started, 2, SHORT, LEARNING, method=Gae(type="gae"), critic=critic)
    assert not read
    held = digests(started, 2, "update")
    update.run(Job(started, 2, seed=1), LEARNING, critic)  # what is held by now is of iteration 2
    assert read == [started.policy(1)]
    assert digests(started, 2, "update") == held


def test_a_critic_of_its_own_folder_is_where_iteration_1_begins(started):
    critic = CriticConfig(optimizer={"learning_rate": 1e-3})
    one_iteration(started, 1, SHORT, LEARNING, method=Gae(type="gae"), critic=critic)
    own = started.root.parent / "own"
    shutil.copytree(started.critic(1), own)
    other = critic.model_copy(update={"start": FolderStart(type="folder", path=own)})
    score.run(Job(started, 1, seed=1), ScoreConfig(rewards=[SHORT]), other.start)
    values = pl.read_parquet(started.stage(1, "score") / "scores.parquet")["values"]
    assert values.explode().abs().max() > 0
    assert str(own / "model.safetensors") in manifest(started, 1, "score")["inputs"]


def test_a_critic_without_returns_is_told(started):
    critic = CriticConfig()
    with pytest.raises(ConfigError, match=r"a critic to train, but no returns: use advantage\.type gae"):
        one_iteration(started, 1, SHORT, LEARNING, critic=critic)


def test_a_refreshed_reference_is_the_policy_of_every_nth_iteration():
    paths = RunPaths(Path("run"))
    every = RefreshedReference(type="refresh", every=3)
    folders = [score.reference_folder(paths, k, every) for k in range(1, 9)]
    assert folders == [paths.policy(j) for j in (0, 0, 0, 3, 3, 3, 6, 6)]
    assert score.reference_folder(paths, 8, StartReference(type="start")) == paths.policy(0)
    average = [score.reference_folder(paths, k, AverageReference(type="average")) for k in (1, 2)]
    assert average == [paths.policy(0), paths.average(1)]


def test_the_average_of_the_policies_is_kept_and_referred_to(started):
    config = LEARNING.model_copy(update={"average": AverageConfig(decay=0.75), "kl": KlConfig(coefficient=0.01)})
    for k in (1, 2):
        one_iteration(started, k, SHORT, config, reference={"type": "average"})
    policies = [read_tensors(started.policy(k) / "model.safetensors") for k in (0, 1, 2)]
    averages = [read_tensors(started.average(k) / "model.safetensors") for k in (1, 2)]
    for name, zero in policies[0].items():
        first = 0.75 * zero + 0.25 * policies[1][name]
        torch.testing.assert_close(averages[0][name], first)
        torch.testing.assert_close(averages[1][name], 0.75 * first + 0.25 * policies[2][name])
    assert (started.average(2) / "tokenizer.json").is_file()
    read = manifest(started, 2, "score")["inputs"]["iterations/0001/update/average/model.safetensors"]
    assert read["digest"] == digests(started, 1, "update")["average/model.safetensors"]


def test_an_adaptive_beta_is_read_from_where_the_iteration_before_left_it(started):
    kl = KlConfig(coefficient=0.1, adaptive={"target": 1e-6, "gain": 0.5})
    config = LEARNING.model_copy(update={"kl": kl, "epochs": 2})
    for k in (1, 2, 3):
        one_iteration(started, k, SHORT, config)
    metrics = [manifest(started, k, "update")["metrics"] for k in (1, 2, 3)]
    assert all(figures["kl"] > 2e-6 for figures in metrics)  # so that each raises β by 0.5 · 0.2
    assert [figures["kl_coefficient"] for figures in metrics] == pytest.approx([0.1, 0.11, 0.121])
    assert "iterations/0001/update/kl.safetensors" in manifest(started, 2, "update")["inputs"]
    steps = pl.read_parquet(started.stage(3, "update") / "steps.parquet")
    bounded = (steps["kl_loss"] / 0.121).to_list()
    assert bounded == pytest.approx(steps["kl"].to_list(), rel=1e-4)


def test_gpg_counts_the_rows_of_constant_groups_that_are_not_trained_on(started):
    loss = TypeAdapter(Loss).validate_python({"type": "gpg"})
    one_iteration(started, 1, SHORT, LEARNING.model_copy(update={"loss": loss}))
    rollouts = pl.read_parquet(started.stage(1, "sample") / "rollouts.parquet")
    advantages = pl.read_parquet(started.stage(1, "advantage") / "advantages.parquet")
    assert advantages["train"].any()
    rows, constant, tokens, trained = group_counts(rollouts, advantages)
    assert rows - constant == advantages["train"].sum()
    assert trained == rollouts.filter(advantages["train"])["completion_tokens"].list.len().sum() <= tokens


def test_a_bit_that_flipped_in_a_table_is_found_before_it_is_trained_on(started):
    one_iteration(started, 1, {"type": "length", "target": 0, "limit": 6}, UpdateConfig())
    path = started.stage(1, "advantage") / "advantages.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"advantages\.parquet: .*grpo stage advantage run --iteration 1"):
        update.run(Job(started, 1, seed=1), UpdateConfig())


def test_a_model_without_chat_template_is_not_asked_to_chat(tmp_path, tiny_policy):
    paths = start_run(tmp_path, ["1"], tiny_policy, kind="chat")
    config = SampleConfig(prompts=1)
    with pytest.raises(ConfigError, match="no chat template; use text"):
        sample.run(Job(paths, 1, seed=1), config, TransformersSampler(64, "cpu"))


LORA = UpdateConfig(lora={"rank": 2, "alpha": 4}, optimizer={"learning_rate": 1e-2})


def test_an_adapter_is_young_enough_in_the_iteration_after_it(started):
    for k in (1, 2, 3):
        one_iteration(started, k, SHORT, LORA, method=Grpo(max_age=0))
    table = pl.read_parquet(started.stage(3, "advantage") / "advantages.parquet")
    assert table["train"].any()
    assert not table["reason"].str.contains("older").fill_null(False).any()
    assert "iterations/0000/update/policy/model.safetensors" in manifest(started, 3, "advantage")["inputs"]


def test_an_adapter_keeps_its_shape_through_a_run(started):
    one_iteration(started, 1, SHORT, LORA)
    with pytest.raises(ConfigError, match=r"rank 8 and alpha 4.0, the policy's adapter has rank 2"):
        one_iteration(started, 2, SHORT, UpdateConfig(lora={"rank": 8, "alpha": 4}))
    with pytest.raises(ConfigError, match=r"update.lora is null, but the policy is an adapter"):
        one_iteration(started, 2, SHORT, UpdateConfig())


def test_an_adapter_does_not_begin_in_the_middle_of_a_run(started):
    one_iteration(started, 1, SHORT, UpdateConfig())
    with pytest.raises(ConfigError, match=r"policy 1 is a whole model; a run trains an adapter from iteration 1 on"):
        one_iteration(started, 2, SHORT, LORA)


def test_a_constant_group_is_one_whose_rows_all_have_no_advantage():
    rollouts = pl.DataFrame(
        {
            "prompt_id": ["a"] * 3 + ["b"] * 3,
            "sample": [0, 1, 2] * 2,
            "completion_tokens": [[1, 2]] * 6,
        }
    )
    rewards = [[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]  # 0, ½, 1 and ½, ½, ½
    advantages = rollouts.select("prompt_id", "sample").with_columns(
        pl.Series("advantages", rewards), pl.lit(True).alias("train"), pl.lit(None, pl.String).alias("reason")
    )
    assert group_counts(rollouts, advantages) == (6, 3, 12, 12)
