"""Dynamic sampling: bounded, never overfull, and the same again."""

import json
import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract.workspace import Job
from stages.sample import stage as sample
from stages.sample.config import SampleConfig, SamplingConfig
from stages.sample.dynamic import fill, useful_groups
from stages.sample.transformers_engine import TransformersSampler
from tests.starting import start_run


def drawn(indices):
    """Two completions a prompt; the completion of an even prompt tells nothing."""
    return pl.DataFrame({"prompt_id": [str(i) for i in indices for _ in range(2)], "sample": [0, 1] * len(indices)})


def judged(rollouts):
    return pl.Series([float(int(p) % 2 * s) for p, s in rollouts.select("prompt_id", "sample").iter_rows()])


def test_groups_with_two_different_rewards_are_useful():
    rollouts = pl.DataFrame({"prompt_id": list("aabbccdde")})
    rewards = pl.Series([0.35, 0.35, 1.0, 0.0, None, 1.0, math.nan, 1.0, 1.0])
    assert useful_groups(rollouts, rewards) == 1
    assert useful_groups(rollouts.head(0), rewards.head(0)) == 0


def test_rounds_by_hand():
    asked = []

    def draw(indices):
        asked.append(list(indices))
        return drawn(indices)

    got = fill(drawn([0, 1, 2, 3]), 4, [4, 6, 5, 8, 7, 9], 9, draw, judged)
    assert asked == [[4, 6], [5, 8], [7]]
    assert (got.rounds, got.groups, got.useful) == (4, 9, 4)
    assert got.rollouts["prompt_id"].unique(maintain_order=True).to_list() == list("012346587")


@given(st.integers(1, 6), st.integers(0, 12), st.integers(1, 6))
def test_it_never_draws_more_than_is_missing_nor_more_rounds_than_it_may(wanted, others, rounds):
    first, more = list(range(wanted)), list(range(100, 100 + others))
    got = fill(drawn(first), wanted, more, rounds, drawn, judged)
    assert got.useful <= wanted
    assert got.rounds <= rounds
    assert got.groups <= wanted + others
    assert got.rollouts.height == 2 * got.groups
    full, used_up = got.useful == wanted, got.groups == wanted + others
    assert full or used_up or got.rounds == rounds


@pytest.fixture
def started(tmp_path, tiny_policy):
    asked = [f"{'9' * 30 if i % 4 == 3 else f'{i} + 1'} + {i}" for i in range(12)]
    return start_run(tmp_path, asked, tiny_policy)


def test_the_stage_fills_its_batch_counts_it_and_gives_the_same_bytes_again(started):
    sampling = SamplingConfig(max_tokens=4, stop_token_ids=tuple(range(2, 40)))
    config = SampleConfig(prompts=2, group_size=3, sampling=sampling, max_prompt_tokens=16, rounds=20)

    def judge(_, rollouts):  # no group of the first prompts that are drawn is useful
        late = rollouts["prompt_id"].rank("dense") > 1 if rollouts.height > 6 else rollouts["sample"] >= 0
        return (rollouts["sample"] % 2).cast(pl.Float64) * late.cast(pl.Float64)

    never = []

    def hopeless(_, rollouts):
        never.append(rollouts["prompt_id"].n_unique())
        return pl.Series([0.35] * rollouts.height)

    for function, useful in ((judge, 2), (hopeless, 0)):
        sample.run(Job(started, 1, seed=1), config, TransformersSampler(64, "cpu"), function)
        folder = started.stage(1, "sample")
        first = (folder / "rollouts.parquet").read_bytes()
        metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
        assert (metrics["useful_groups"], metrics["unfilled"]) == (useful, 2 - useful)
        sample.run(Job(started, 1, seed=1), config, TransformersSampler(64, "cpu"), function)
        assert (folder / "rollouts.parquet").read_bytes() == first
    # Hopeless: all nine prompts that fit were drawn, the three that are too long were dropped, and it came to an end.
    dropped = json.loads((folder / "manifest.json").read_text())["dropped"]
    assert dropped == {"prompt longer than 16 tokens": 3}
    assert pl.read_parquet(folder / "rollouts.parquet")["prompt_id"].n_unique() == 9
    assert max(never) <= 2
