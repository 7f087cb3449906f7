"""The recipe of `configs/smollm2.yaml` on the real model, cut down to one short iteration."""

import polars as pl
import pytest
from transformers import AutoTokenizer

from flows.config.loading import read_config
from stages.contract.manifest import read_manifest
from tests.flows.conftest import ROOT, run_grpo

CONFIG = ROOT / "configs" / "smollm2.yaml"


def test_without_the_folder_it_says_which_command_makes_it(tmp_path):
    done = run_grpo(tmp_path, "train", CONFIG)
    assert done.returncode == 2
    assert "warmstart.model.path: nothing at artifacts/.models/smollm2" in done.stderr
    assert "`grpo model smollm2 --to artifacts/.models/smollm2` makes it" in done.stderr
    assert list(tmp_path.glob("artifacts/smollm2*")) == []


@pytest.fixture(scope="module")
def trained(smollm2_folder, tmp_path_factory):
    """The run's folder after an iteration of 4 prompts, with what the command `grpo model` made where it makes it."""
    folder = tmp_path_factory.mktemp("smollm2")
    models = folder / "artifacts" / ".models"
    models.mkdir(parents=True)
    (models / "smollm2").symlink_to(smollm2_folder)
    smaller = (
        "iterations=1",
        "sample.prompts=4",
        "evaluate.prompts=2",
        "evaluate.samples=1",
        "hardware.threads=1",
    )
    done = run_grpo(folder, "train", CONFIG, *[part for setting in smaller for part in ("--set", setting)])
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "artifacts" / "smollm2" / "iterations"


def test_the_model_is_asked_by_its_own_chat_template(trained):
    rollouts = pl.read_parquet(trained / "0001/sample/rollouts.parquet")
    assert rollouts.height == 4 * 8
    tokenizer = AutoTokenizer.from_pretrained(trained / "0001/update/policy")
    for row in rollouts.iter_rows(named=True):
        asked = (
            row["prompt"]
            .removeprefix("<|im_start|>system\nYou are a calculator.<|im_end|>\n<|im_start|>user\n")
            .removesuffix(" =<|im_end|>\n<|im_start|>assistant\n")
        )
        assert asked in {f"{a} {sign} {b}" for a in range(10) for b in range(10) for sign in "+-"}
        assert tokenizer.decode(row["prompt_tokens"]) == row["prompt"]


def test_the_last_number_of_a_completion_is_judged(trained):
    rollouts = pl.read_parquet(trained / "0001/sample/rollouts.parquet")
    scores = pl.read_parquet(trained / "0001/score/scores.parquet")
    assert set(scores["status_math"]) == {"ok"}
    for answer, found, reward in zip(rollouts["answer"], scores["extracted"], scores["reward"], strict=True):
        assert reward == float(found is not None and float(found.replace(",", "").replace("−", "-")) == float(answer))


def test_sampler_and_trainer_agree_as_the_recipe_takes_for_granted(trained):
    assert read_config(CONFIG, {}).update.old_logprobs == "sampler"
    assert read_manifest(trained / "0001/sample").metrics["fidelity_max"] < 1e-4
