"""What is not finite never reaches the weights or the optimizer's state."""

import math
from pathlib import Path

import polars as pl
import pytest
import torch

from stages.advantage.config import Gae
from stages.contract import tables
from stages.contract.columns import ADVANTAGES
from stages.contract.errors import DivergenceError
from stages.contract.manifest import Manifest, read_manifest
from stages.contract.paths import RunPaths
from stages.contract.weights import read_tensors
from stages.contract.workspace import Job, open_stage
from stages.model.config import CriticConfig
from stages.update import stage as update
from stages.update.config import AverageConfig, UpdateConfig
from tests.starting import start_run
from tests.update.test_stage import SHORT, one_iteration

LEARNING = UpdateConfig(minibatches=3, optimizer={"learning_rate": 1e-3})
EXPLODING = LEARNING.model_copy(update={"optimizer": LEARNING.optimizer.model_copy(update={"learning_rate": 1e20})})


@pytest.fixture
def started(tmp_path: Path, tiny_policy: Path) -> RunPaths:
    return start_run(tmp_path, ["0 + 1", "1 + 1", "2 + 1", "3 + 1"], tiny_policy)


def known(paths: RunPaths, k: int) -> Manifest:
    manifest = read_manifest(paths.stage(k, "update"))
    assert manifest is not None
    return manifest


def poison(paths: RunPaths, k: int, column: str, value: float) -> str:
    """Makes one number of one trained row of the advantages not finite, with a manifest that says so; the row's key."""
    table = tables.read(paths.stage(k, "advantage") / "advantages.parquet", ADVANTAGES)
    row = next(i for i, train in enumerate(table["train"]) if train)
    lists = table[column].to_list()
    lists[row] = [value, *lists[row][1:]]
    with open_stage(Job(paths, k, seed=1), "advantage", "advantage", {}) as desk:
        changed = table.with_columns(pl.Series(column, lists, dtype=table.schema[column]))
        desk.write("advantages.parquet", changed, ADVANTAGES)
    return f"{table['prompt_id'][row]}/{table['sample'][row]}"


def all_finite(paths: RunPaths, k: int) -> bool:
    files = [*paths.stage(k, "update").rglob("*.safetensors")]
    assert len(files) >= 2
    return all(bool(value.isfinite().all()) for file in files for value in read_tensors(file).values())


def again(config: UpdateConfig, choice: str) -> UpdateConfig:
    return config.model_copy(update={"on_nonfinite": choice})


def test_an_exploding_learning_rate_stops_and_the_former_policy_stays(started: RunPaths) -> None:
    with pytest.raises(DivergenceError) as caught:
        one_iteration(started, 1, SHORT, EXPLODING)
    told = str(caught.value)
    assert told.startswith("update of iteration 1: optimizer step 2: the loss is nan; of the batch's 4 rows")
    assert "lower update.optimizer.learning_rate, or set update.on_nonfinite" in told
    ids = set(tables.read(started.stage(1, "advantage") / "advantages.parquet", ADVANTAGES)["prompt_id"])
    assert any(f"{each}/" in told for each in ids)
    assert not started.stage(1, "update").exists()
    assert not list(started.root.rglob("*.partial"))
    update.run(Job(started, 1, seed=1), LEARNING)
    assert all_finite(started, 1)


def test_a_step_that_would_make_weights_infinite_is_told_with_its_learning_rate(started: RunPaths) -> None:
    config = LEARNING.model_copy(update={"optimizer": LEARNING.optimizer.model_copy(update={"learning_rate": 1e39})})
    for choice in ("stop", "skip_step"):  # weights that are gone already cannot be left out
        with pytest.raises(DivergenceError, match=r"at a learning rate of 1e\+39 the weights of .* no longer finite"):
            one_iteration(started, 1, SHORT, again(config, choice))
        assert not started.stage(1, "update").exists()
    one_iteration(started, 1, SHORT, again(config, "rollback"))
    assert all_finite(started, 1)


@pytest.mark.parametrize("minibatches", [1, 3])
def test_a_step_that_leaves_finite_but_useless_weights_is_told(minibatches: int, started: RunPaths) -> None:
    config = EXPLODING.model_copy(update={"minibatches": minibatches})
    told = r"optimizer step 1: at a learning rate of 1e\+20 the weights stay finite, but the policy's log-probabilities"
    with pytest.raises(DivergenceError, match=told) as caught:  # later steps are left out, the first one was taken
        one_iteration(started, 1, SHORT, again(config, "skip_step"))
    assert "or set update.on_nonfinite to rollback: in this iteration alone" in str(caught.value)
    if minibatches == 1:
        with pytest.raises(DivergenceError, match=told):
            one_iteration(started, 1, SHORT, config)
    assert not started.stage(1, "update").exists()
    one_iteration(started, 1, SHORT, again(config, "rollback"))
    assert known(started, 1).metrics["rolled_back"] == 1
    one_iteration(started, 2, SHORT, again(config, "rollback"))  # the sampler can draw from what is left


def test_a_critic_whose_values_are_no_longer_finite_is_told(started: RunPaths) -> None:
    critic = CriticConfig(optimizer={"learning_rate": 3e37})
    told = r"optimizer step 1: at a learning rate of 3e\+37 the weights stay finite, but the critic's values do not"
    with pytest.raises(DivergenceError, match=told):
        config = LEARNING.model_copy(update={"minibatches": 1})
        one_iteration(started, 1, SHORT, config, method=Gae(type="gae"), critic=critic)


def test_rolling_back_leaves_the_average_as_it_was(started: RunPaths) -> None:
    config = again(LEARNING.model_copy(update={"average": AverageConfig(decay=0.5)}), "rollback")
    for k in (1, 2):
        one_iteration(started, k, SHORT, config)
    moved = (started.average(2) / "model.safetensors").read_bytes()
    poison(started, 2, "advantages", math.nan)
    update.run(Job(started, 2, seed=1), config)
    assert known(started, 2).metrics["rolled_back"] == 1
    stayed = [(started.average(k) / "model.safetensors").read_bytes() for k in (1, 2)]
    assert stayed[0] == stayed[1] != moved
    assert stayed[0] != (started.policy(1) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_the_row_that_is_not_finite_is_named(value: float, started: RunPaths) -> None:
    one_iteration(started, 1, SHORT, LEARNING)
    before = {path: path.read_bytes() for path in started.stage(1, "update").rglob("*") if path.is_file()}
    row = poison(started, 1, "advantages", value)
    with pytest.raises(DivergenceError, match=rf"of the batch's 4 rows 1 hold numbers that are not finite: {row}\. "):
        update.run(Job(started, 1, seed=1), LEARNING)
    assert {path: path.read_bytes() for path in before} == before


def test_a_step_that_is_left_out_is_counted_and_leaves_no_trace(started: RunPaths) -> None:
    one_iteration(started, 1, SHORT, LEARNING)
    row = poison(started, 1, "advantages", math.inf)
    update.run(Job(started, 1, seed=1), again(LEARNING, "skip_step"))
    made = known(started, 1)
    assert (made.metrics["skipped_steps"], made.metrics["optimizer_steps"]) == (1, 2)
    (warning,) = made.notes["warnings"]
    assert warning.startswith("left out: optimizer step ") and warning.endswith(row)
    steps = pl.read_parquet(started.stage(1, "update") / "steps.parquet")
    assert steps["step"].to_list() == [1, 2]  # the optimizer never counted it
    assert steps["loss"].is_finite().all()
    assert all_finite(started, 1)
    assert not torch.equal(*(read_tensors(started.policy(k) / "model.safetensors")["lm_head.weight"] for k in (0, 1)))


def test_rolling_back_leaves_policy_critic_and_optimizers_and_the_run_goes_on(started: RunPaths) -> None:
    critic = CriticConfig(optimizer={"learning_rate": 1e-3})
    for k in (1, 2):
        one_iteration(started, k, SHORT, LEARNING, method=Gae(type="gae"), critic=critic)
    poison(started, 2, "returns", math.nan)  # the critic's loss alone is not finite
    update.run(Job(started, 2, seed=1), again(LEARNING, "rollback"), critic)
    made = known(started, 2)
    assert (made.metrics["rolled_back"], made.metrics["optimizer_steps"]) == (1, 0)
    assert made.notes["warnings"][0].startswith("rolled back: optimizer step")
    former = known(started, 1).outputs
    kept = [name for name in former if name.endswith(".safetensors")]
    assert {"policy/model.safetensors", "critic/model.safetensors", "optimizer.safetensors"} <= set(kept)
    assert {name: made.outputs[name].digest for name in kept} == {name: former[name].digest for name in kept}
    one_iteration(started, 3, SHORT, again(LEARNING, "rollback"), method=Gae(type="gae"), critic=critic)
    assert "rolled_back" not in known(started, 3).metrics
    assert known(started, 3).outputs["policy/model.safetensors"] != former["policy/model.safetensors"]


def test_where_the_critic_alone_is_not_finite_the_policy_does_not_step_either(started: RunPaths) -> None:
    critic = CriticConfig(optimizer={"learning_rate": 1e-3})
    config = again(LEARNING.model_copy(update={"minibatches": 1}), "skip_step")
    one_iteration(started, 1, SHORT, config, method=Gae(type="gae"), critic=critic)
    poison(started, 1, "returns", math.inf)
    update.run(Job(started, 1, seed=1), config, critic)
    assert known(started, 1).metrics["skipped_steps"] == 1
    weights = [(started.policy(k) / "model.safetensors").read_bytes() for k in (0, 1)]
    assert weights[0] == weights[1]
