"""Training an adapter in place of the whole model: small policies, which vLLM swaps, and a plain model in the end."""

import itertools
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.contract.digest import file_digest
from stages.model.load import load_model
from tests.flows.conftest import SMALL, run_grpo

LORA = ("--set", "update.lora={rank: 4, alpha: 8}", "--set", "update.optimizer.learning_rate=0.01")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The small run with an adapter, sampled by vLLM."""
    folder = tmp_path_factory.mktemp("adapters")
    vllm = ("--set", "sample.engine={type: vllm, cache_gib: 0.25}")
    done = run_grpo(folder, "train", SMALL, *LORA, *vllm)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "artifacts" / "small"


def policy(run, k):
    return run / f"iterations/{k:04d}/update/policy"


def manifest(run, k, stage):
    return json.loads((run / f"iterations/{k:04d}/{stage}/manifest.json").read_text())


def test_policies_after_the_first_are_adapters_on_it(run):
    assert (policy(run, 0) / "model.safetensors").is_file()
    for k in (1, 2, 3):
        names = {path.name for path in policy(run, k).iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
        assert "model.safetensors" not in names
        assert json.loads((policy(run, k) / "adapter_config.json").read_text())["r"] == 4
    assert len({file_digest(policy(run, k) / "adapter_model.safetensors") for k in (1, 2, 3)}) == 3


def test_the_base_is_an_input_wherever_the_adapter_is(run):
    for stage in ("sample", "update"):
        inputs = manifest(run, 3, stage)["inputs"]
        assert "iterations/0000/update/policy/model.safetensors" in inputs
        assert "iterations/0002/update/policy/adapter_model.safetensors" in inputs


def test_vllm_drew_from_each_adapter_what_the_trainer_would(run):
    notes = [manifest(run, k, "sample")["notes"] for k in (1, 2, 3)]
    assert len({tuple(note["engine"]["pids"]) for note in notes}) == 1
    assert all(note["fidelity"]["max"] < 1e-4 for note in notes)
    # the policies differ by more than that, so an adapter that was not swapped would have shown
    ids = torch.tensor([[5, 9, 13, 20, 8]])
    with torch.no_grad():
        logits = [load_model(policy(run, k), "cpu")(ids).logits.log_softmax(-1) for k in (0, 1, 2, 3)]
    assert all((a - b).abs().max() > 1e-2 for a, b in itertools.pairwise(logits))


def test_it_leaves_the_run_merged_with_its_base(run, tmp_path):
    done = run_grpo(run.parents[1], "export", "small", "--to", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[5, 9, 13, 20, 8]])
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, load_model(policy(run, 3), "cpu")(ids).logits, atol=1e-4)


def test_a_stage_made_again_gives_the_same_bytes(run, tmp_path):
    shutil.copytree(run.parent, tmp_path / "artifacts")
    before = manifest(run, 2, "update")["outputs"]
    done = run_grpo(tmp_path, "stage", "update", "small", "--iteration", "2")
    assert done.returncode == 0, done.stderr
    assert "nothing is stale" in done.stdout
    assert manifest(tmp_path / "artifacts" / "small", 2, "update")["outputs"] == before


def test_a_damaged_base_is_found(run, tmp_path):
    shutil.copytree(run.parent, tmp_path / "artifacts")
    weights = tmp_path / "artifacts/small/iterations/0000/update/policy/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = run_grpo(tmp_path, "stage", "update", "small", "--iteration", "3")
    assert done.returncode == 2
    assert "0000/update/policy/model.safetensors: its content is not what its manifest says" in done.stderr
    assert "grpo stage warmstart small --iteration 0" in done.stderr


def test_an_average_of_whole_models_and_an_adapter_do_not_go_together(tmp_path):
    done = run_grpo(tmp_path, "train", SMALL, *LORA, "--set", "update.average.decay=0.9")
    assert done.returncode == 2
    assert "set one of them to null" in done.stderr


def test_an_adapter_cannot_be_the_model_to_start_from(run, tmp_path):
    model = f"warmstart.model={{type: folder, path: {policy(run, 3)}}}"
    done = run_grpo(tmp_path, "train", SMALL, "--set", model, "--set", "warmstart.tuning=null")
    assert done.returncode == 2
    assert "is an adapter; merge it with its base model first" in done.stderr
