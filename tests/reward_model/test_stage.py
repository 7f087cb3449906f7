"""The stage `reward_model`: it learns what is preferred, and only that."""

import json
import random

import polars as pl
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stages.contract.errors import DataError
from stages.contract.manifest import read_manifest
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job
from stages.reward_model import stage
from stages.reward_model.config import RewardModelConfig


def copies(folder, count, shuffled=False):
    """Pairs in which the number asked for is preferred to one that is near it, or, shuffled, either."""
    draw, rows = random.Random(1), []
    for _ in range(count):
        right = draw.randrange(100, 1000)
        answers = [str(right), str(right + draw.choice([-10, -2, -1, 1, 2, 10]))]
        if shuffled:
            draw.shuffle(answers)
        rows.append({"prompt": f"{right}=", "chosen": answers[0], "rejected": answers[1]})
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def trained(folder, policy, path, **settings):
    pairs = {"type": "file", "path": path, "heldout": 0.2}
    config = {"pairs": pairs, "model": policy, "batch_size": 32, "optimizer": {"learning_rate": 3e-3}} | settings
    paths = RunPaths(folder / "run")
    stage.run(Job(paths, 0, seed=1), RewardModelConfig.model_validate(config))
    manifest = read_manifest(paths.stage(0, "reward_model"))
    assert manifest is not None
    return paths, manifest


def test_it_learns_what_is_preferred_and_nothing_from_shuffled_labels(tiny_policy, tmp_path):
    right, control = (
        trained(tmp_path, tiny_policy, copies(tmp_path, 600, shuffled), epochs=8)[1] for shuffled in (False, True)
    )
    # some 110 held-out pairs: the standard error of an accuracy of 1/2 is 0.048
    assert right.metrics["heldout_accuracy"] > 0.65
    assert right.metrics["heldout_loss"] < 0.67
    assert right.metrics["heldout_margin"] > 0.2
    assert control.metrics["heldout_accuracy"] < 0.62
    assert control.metrics["heldout_loss"] > 0.67
    assert control.metrics["pairs"] + control.metrics["heldout_pairs"] == 600


def test_the_folder_is_a_plain_one_and_gives_the_rewards_of_the_table(tiny_policy, tmp_path):
    path = copies(tmp_path, 80)
    paths, manifest = trained(tmp_path, tiny_policy, path, micro_batch_tokens=64)
    assert {str(tiny_policy / "model.safetensors"), str(path)} <= manifest.inputs.keys()
    table = pl.read_parquet(paths.stage(0, "reward_model") / "preferences.parquet")
    assert table.filter("heldout")["chosen_reward"].null_count() == 0
    assert table.filter(~pl.col("heldout"))["chosen_reward"].null_count() == table.height - table["heldout"].sum()
    model = AutoModelForSequenceClassification.from_pretrained(paths.reward_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(paths.reward_model)
    with torch.no_grad():
        for row in table.filter("heldout").iter_rows(named=True):
            for side in ("chosen", "rejected"):
                assert row[side].endswith(tokenizer.eos_token)
                [[alone]] = model(**tokenizer(row[side], return_tensors="pt")).logits.tolist()
                assert row[f"{side}_reward"] == pytest.approx(alone, abs=1e-5)
    margins = (table["chosen_reward"] - table["rejected_reward"]).drop_nulls()
    assert manifest.metrics["heldout_accuracy"] == pytest.approx((margins > 0).mean())
    assert manifest.metrics["heldout_margin"] == pytest.approx(margins.mean(), abs=1e-6)
    weights = (paths.reward_model / "model.safetensors").read_bytes()
    trained(tmp_path, tiny_policy, path, micro_batch_tokens=64)
    assert (paths.reward_model / "model.safetensors").read_bytes() == weights
    trained(tmp_path, paths.reward_model, path)  # goes on from a reward model


def test_the_size_of_a_micro_batch_changes_no_figure(tiny_policy, tmp_path):
    path = copies(tmp_path, 60)
    steps = []
    for tokens in (40, 100000):
        paths, _ = trained(tmp_path, tiny_policy, path, micro_batch_tokens=tokens)
        steps.append(pl.read_parquet(paths.stage(0, "reward_model") / "preference_steps.parquet"))
    assert steps[0].height == 2
    for name in ("loss", "accuracy", "margin", "gradient_norm"):
        assert steps[0][name].to_list() == pytest.approx(steps[1][name].to_list(), abs=1e-5)
    # at first every reward is 0: a loss of log 2, and no pair is right
    assert steps[0]["loss"][0] == pytest.approx(0.693147, abs=1e-6)
    assert steps[0]["accuracy"][0] == steps[0]["margin"][0] == 0


def test_pairs_that_teach_nothing_or_do_not_fit_are_left_out_and_counted(tiny_policy, tmp_path):
    rows = [
        {"prompt": "1+1=", "chosen": "2", "rejected": "2"},
        {"prompt": "9" * 70, "chosen": "2", "rejected": "3"},
        {"prompt": "1+2=", "chosen": "3", "rejected": "4"},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    nothing = {"pairs": {"type": "file", "path": tmp_path / "pairs.jsonl", "heldout": 0}}
    _, manifest = trained(tmp_path, tiny_policy, tmp_path / "pairs.jsonl", **nothing)
    assert manifest.dropped == {"chosen is rejected too": 1, "pair without tokens or longer than 64": 1}
    assert manifest.metrics["pairs"] == 1
    assert manifest.metrics["heldout_accuracy"] is None
    (tmp_path / "pairs.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(DataError, match="none of 1 pairs is left to train on"):
        trained(tmp_path, tiny_policy, tmp_path / "pairs.jsonl", **nothing)
