"""REINFORCE and REINFORCE++: by hand, by definition; a running baseline that goes on from the table on disk."""

import json
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.advantage import stage
from stages.advantage.config import KlReward, Reinforce, ReinforcePlusPlus
from stages.advantage.stage import advantage_rows
from stages.contract import tables
from stages.contract.columns import ROLLOUTS, SCORES
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job, open_stage
from tests.advantage.numbers import table

REINFORCE = Reinforce(type="reinforce")
PLUS_PLUS = ReinforcePlusPlus(type="reinforce_plus_plus", eps=0.0)


def of(rows, config, former=None):
    out, result = advantage_rows(rows, config, former=former)
    return np.concatenate(out["advantages"].to_list()), result


def with_(config, **fields):
    return type(config).model_validate(config.model_dump() | fields)


def test_the_reward_to_go_by_hand():
    rows = table(["a", "b"], [1.0, 2.0], [3, 1])
    assert of(rows, REINFORCE)[0].tolist() == [1, 1, 1, 2]
    assert of(rows, with_(REINFORCE, gamma=0.5))[0].tolist() == [0.25, 0.5, 1, 2]
    assert of(rows, with_(REINFORCE, gamma=0.0))[0].tolist() == [0, 0, 1, 2]
    on_the_way = rows.with_columns(pl.Series("token_rewards", [[0.5, 0, 0], None], dtype=pl.List(pl.Float32)))
    assert of(on_the_way, with_(REINFORCE, gamma=0.5))[0].tolist() == [0.5 + 0.125, 0.25, 0.5, 2]


def test_baselines_by_hand():
    rows = table(["a", "b", "c"], [1.0, 4.0, None], [2, 1, 1])
    assert of(rows, with_(REINFORCE, baseline="batch"))[0].tolist() == [-1.5, -1.5, 1.5, 0]
    running = with_(REINFORCE, baseline="running", decay=0.75)
    values, result = of(rows, running)  # the first iteration takes its own mean
    assert (values.tolist(), result.state) == ([-1.5, -1.5, 1.5, 0], {"baseline": 2.5})
    values, result = of(rows, running, {"baseline": 0.5})
    assert (values.tolist(), result.state) == ([0.5, 0.5, 3.5, 0], {"baseline": 0.75 * 0.5 + 0.25 * 2.5})
    nothing = table(["c"], [None], [1])
    assert of(nothing, running, {"baseline": 0.5})[1].state == {"baseline": 0.5}
    assert of(nothing, running)[1].state == {}


@given(st.lists(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=5), min_size=1, max_size=5), st.floats(0, 1))
def test_rewards_of_tokens_are_discounted_by_definition(rows, gamma):
    rows_table = table(
        [str(i) for i in range(len(rows))], [math.fsum(r) for r in rows], [len(r) for r in rows], token_rewards=rows
    )
    got, _ = of(rows_table, with_(REINFORCE, gamma=gamma))
    wanted = [sum(gamma**i * x for i, x in enumerate(r[t:])) for r in rows for t in range(len(r))]
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_reinforce_plus_plus_by_hand():
    # tokens 1 1 0: mean 2/3, sample variance 1/3
    rows = table(["a", "b"], [1.0, 0.0], [2, 1])
    np.testing.assert_allclose(of(rows, PLUS_PLUS)[0], np.array([1, 1, -2]) / math.sqrt(3), rtol=1e-6)
    # less the group means 1/2 and 3: 1/2 1/2 -1/2 -1 1, over tokens mean 1/10, squares 2.75 - 5/100 = 2.7
    rows = table(["a", "a", "b", "b"], [1.0, 0.0, 2.0, 4.0], [2, 1, 1, 1])
    centred = np.array([0.5, 0.5, -0.5, -1, 1]) - 0.1
    np.testing.assert_allclose(of(rows, with_(PLUS_PLUS, baseline="group"))[0], centred / math.sqrt(2.7 / 4), rtol=1e-6)


def test_the_papers_kl_runs_from_a_token_to_the_end():
    # A_t = r - β Σ_{i≥t} KL(i); β 1/2, KL 1 0 2 and 0: 1 - 3/2, 1 - 1, 1 - 1 and 0
    logprobs = {"sampler_logprobs": [[-1, -1, -1], [-1]], "reference_logprobs": [[-2, -1, -3], [-1]]}
    rows = table(["a", "b"], [1.0, 0.0], [3, 1], **logprobs)
    kl = KlReward(coefficient=0.5)
    raw = np.array([-0.5, 0, 0, 0])
    wanted = (raw - raw.mean()) / raw.std(ddof=1)
    np.testing.assert_allclose(of(rows, with_(PLUS_PLUS, kl=kl))[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(of(rows, with_(REINFORCE, kl=kl))[0], raw)


def test_a_kl_penalty_needs_the_reference():
    with pytest.raises(ConfigError, match=r"hold no reference_logprobs: set score\.reference"):
        of(table(["a"], [1.0], [1], sampler_logprobs=[[-1]]), with_(REINFORCE, kl=KlReward(coefficient=0.5)))


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-5, 5), st.integers(1, 4)), min_size=2, max_size=10),
    st.sampled_from(["none", "group"]),
    st.sampled_from([0.5, 4.0]),
)
def test_whitened_over_the_trained_tokens_whatever_the_rewards_scale(rows, baseline, factor):
    ids, rewards, lengths = [str(g) for g, _, _ in rows], [float(r) for _, r, _ in rows], [n for _, _, n in rows]
    config = with_(PLUS_PLUS, baseline=baseline)
    out, _ = advantage_rows(table(ids, rewards, lengths), config)
    values = np.concatenate(out.filter("train")["advantages"].to_list() or [[]])
    if len(set(values.tolist())) > 1:
        np.testing.assert_allclose([values.mean(), values.std(ddof=1)], [0, 1], atol=1e-5)
    scaled, _ = advantage_rows(table(ids, [factor * r for r in rewards], lengths), config)
    np.testing.assert_allclose(
        np.concatenate(scaled.filter("train")["advantages"].to_list() or [[]]), values, atol=1e-5
    )


# On disk


def write_inputs(paths, k, rewards, digest="d" * 64, reference=None):
    """Rollouts and scores of iteration k, a prompt and a token each."""
    ids, n = [f"p{i}" for i in range(len(rewards))], len(rewards)
    key = {"prompt_id": ids, "sample": [0] * n}
    texts = dict.fromkeys(("prompt", "completion", "task", "metadata"), ["{}"] * n)
    drawn = {"prompt_tokens": [[1]] * n, "completion_tokens": [[1]] * n, "sampler_logprobs": [[-1.0]] * n}
    rest = {"finish_reason": ["stop"] * n, "temperature": [1.0] * n, "seed": [0] * n, "answer": [None] * n}
    rest |= {"messages": [None] * n, "format": [None] * n}
    rollouts = key | texts | drawn | rest | {"policy_digest": [digest] * n}
    lists = ("error", "extracted", "values", "token_rewards", "step_ends")
    scores = key | {"reward": rewards} | dict.fromkeys(lists, [None] * n)
    scores["reference_logprobs"] = [None if reference is None else [reference]] * n
    for name, file, columns, schema in (
        ("sample", "rollouts.parquet", rollouts, ROLLOUTS),
        ("score", "scores.parquet", scores, SCORES),
    ):
        with open_stage(Job(paths, k, seed=1), name, name, {}) as desk:
            desk.write(file, tables.frame(schema, columns), schema)


def manifest(paths, k):
    return json.loads((paths.stage(k, "advantage") / "manifest.json").read_text())


def test_a_running_baseline_goes_on_from_the_iteration_before_and_names_it_as_an_input(tmp_path):
    paths = RunPaths(tmp_path / "run")
    config = Reinforce(type="reinforce", baseline="running", decay=0.5)
    for k, rewards in enumerate([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], start=1):
        write_inputs(paths, k, rewards)
        stage.run(Job(paths, k, seed=1), config)
    read = [pl.read_parquet(paths.stage(k, "advantage") / "advantages.parquet") for k in (1, 2, 3)]
    # b = 1/2, 1/2, then 1/2 · 1/2 + 1/2 · 1 = 3/4
    assert [t["advantages"].list.first().to_list() for t in read] == [[0.5, -0.5], [0.5, 0.5], [-0.75, 0.25]]
    assert "iterations/0002/advantage/state.parquet" in manifest(paths, 3)["inputs"]
    before = (paths.stage(3, "advantage") / "advantages.parquet").read_bytes()
    stage.run(Job(paths, 3, seed=1), config)
    assert (paths.stage(3, "advantage") / "advantages.parquet").read_bytes() == before


def test_a_running_baseline_cannot_begin_in_the_middle_of_a_run(tmp_path):
    paths = RunPaths(tmp_path / "run")
    for k in (1, 2):
        write_inputs(paths, k, [1.0, 0.0])
    stage.run(Job(paths, 1, seed=1), REINFORCE)
    with pytest.raises(
        ArtifactError, match=r"state\.parquet: missing; advantage of iteration 1 was configured without it"
    ):
        stage.run(Job(paths, 2, seed=1), Reinforce(type="reinforce", baseline="running"))


def test_a_coefficient_that_follows_its_target_goes_on_from_the_iteration_before(tmp_path):
    paths = RunPaths(tmp_path / "run")
    kl = KlReward(coefficient=0.1, adaptive={"target": 0.5, "gain": 1.0})
    config = Reinforce(type="reinforce", kl=kl)
    for k, reference in enumerate([-3.0, -1.05, -1.45], start=1):  # the sampler's are -1: KL 2, 0.05, 0.45
        write_inputs(paths, k, [1.0, 0.0], reference=reference)
        stage.run(Job(paths, k, seed=1), config)
    handed_on = [manifest(paths, k)["metrics"]["kl_coefficient"] for k in (1, 2, 3)]
    # 1.2 and 0.8 are the bounds; 0.45 / 0.5 - 1 = -0.1
    assert handed_on == pytest.approx([0.12, 0.096, 0.0864])
    last = pl.read_parquet(paths.stage(3, "advantage") / "advantages.parquet")
    assert last["advantages"].list.first().to_list() == pytest.approx([1 - 0.096 * 0.45, -0.096 * 0.45])


def write_policy(paths, k, weights):
    with open_stage(Job(paths, k, seed=1), "update", "update", {}) as desk:
        (desk.folder / "policy").mkdir()
        (desk.folder / "policy" / "model.safetensors").write_bytes(weights)
        (desk.folder / "optimizer.safetensors").write_bytes(b"moments")
    with open_stage(Job(paths, k, seed=1), "evaluate", "evaluate", {}) as desk:
        return desk.take_folder(paths.policy(k))


def test_completions_of_an_older_policy_than_is_allowed_are_left_out_and_counted(tmp_path):
    paths = RunPaths(tmp_path / "run")
    oldest, *_ = [write_policy(paths, k, bytes([k])) for k in (0, 1, 2)]
    write_inputs(paths, 3, [1.0, 0.0], digest=oldest)
    for age, dropped in ((2, {}), (1, {"older policy": 2}), (0, {"older policy": 2})):
        stage.run(Job(paths, 3, seed=1), Reinforce(type="reinforce", max_age=age))
        assert manifest(paths, 3)["dropped"] == dropped
    assert "iterations/0002/update/policy/model.safetensors" in manifest(paths, 3)["inputs"]
    assert "iterations/0001/update/policy/model.safetensors" not in manifest(paths, 3)["inputs"]
    out = pl.read_parquet(paths.stage(3, "advantage") / "advantages.parquet")
    assert out.height == 2
    assert not out["train"].any()


def test_completions_cut_by_length_are_masked_but_count_in_their_group():
    rows = table(["a"] * 3, [3.0, 0.0, 0.0], [1] * 3, finish_reason=["stop", "length", "stop"])
    for config in (REINFORCE, PLUS_PLUS):
        out, _ = advantage_rows(rows, with_(config, truncated="mask"))
        assert out["reason"].to_list() == [None, "cut by length", None]
        assert advantage_rows(rows, config)[0]["train"].all()
    out, _ = advantage_rows(rows, stage_grpo(truncated="mask"))
    assert out["advantages"].list.first().to_list() == [2, -1, -1]  # the mean is that of all three
    assert out["train"].to_list() == [True, False, True]


def stage_grpo(**fields):
    from stages.advantage.config import Grpo

    return Grpo(scale="none", **fields)
