"""`grpo export`: a policy leaves its run as a plain model folder, each file as the manifest says, or not at all."""

import shutil

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.contract.digest import file_digest
from stages.contract.manifest import read_manifest
from tests.flows.conftest import run_grpo


def policy_files(folder, k):
    outputs = read_manifest(folder / f"artifacts/small/iterations/{k:04d}/update").outputs
    return {name.removeprefix("policy/"): r.digest for name, r in outputs.items() if name.startswith("policy/")}


def refused(done, *texts):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for text in texts:
        assert text in done.stderr


@pytest.fixture
def own_folder(small_folder, tmp_path):
    """A copy of the small run that a test may spoil."""
    shutil.copytree(small_folder / "artifacts" / "small", tmp_path / "artifacts" / "small")
    return tmp_path


@pytest.mark.parametrize(("settings", "k"), [([], 3), (["--iteration", "1"], 1), (["--iteration", "0"], 0)])
def test_the_folder_is_that_policy(small_folder, tmp_path, settings, k):
    done = run_grpo(small_folder, "export", "small", "--to", tmp_path / "out", *settings)
    assert done.returncode == 0, done.stderr
    assert f"the policy of small, iteration {k}" in done.stdout
    assert "stale" not in done.stdout
    copied = {path.name: file_digest(path) for path in (tmp_path / "out").iterdir()}
    assert copied == policy_files(small_folder, k)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= copied.keys()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == len(
        AutoTokenizer.from_pretrained(tmp_path / "out")
    )


def test_what_the_manifest_does_not_name_stays_behind(own_folder):
    (own_folder / "artifacts/small/iterations/0003/update/policy/notes.txt").write_text("mine")
    assert run_grpo(own_folder, "export", "small", "--to", "out").returncode == 0
    assert "notes.txt" not in {path.name for path in (own_folder / "out").iterdir()}


def test_a_folder_that_holds_something_is_left_alone(small_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("irreplaceable")
    refused(run_grpo(small_folder, "export", "small", "--to", tmp_path / "out"), "is there already")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_damaged_policy_is_not_copied(own_folder, how):
    weights = own_folder / "artifacts/small/iterations/0003/update/policy/model.safetensors"
    if how == "changed":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    else:
        weights.unlink()
    refused(run_grpo(own_folder, "export", "small", "--to", "out"), "model.safetensors", "content" * (how == "changed"))
    assert not (own_folder / "out").exists()
    assert list(own_folder.glob(".out*")) == []


def test_an_iteration_or_run_without_a_policy_is_told(own_folder):
    refused(
        run_grpo(own_folder, "export", "small", "--to", "out", "--iteration", "7"),
        "no policy of iteration 7; there are 0–3",
    )
    refused(run_grpo(own_folder, "export", "smal", "--to", "out"), "no run 'smal'")
    shutil.rmtree(own_folder / "artifacts/small/iterations")
    refused(run_grpo(own_folder, "export", "small", "--to", "out"), "there is no policy yet")


def test_a_policy_that_is_stale_is_exported_and_said_to_be(own_folder):
    changed = (own_folder / "artifacts/small/run.yaml").read_text().replace("epochs: 2", "epochs: 3")
    (own_folder / "artifacts/small/run.yaml").write_text(changed)
    done = run_grpo(own_folder, "export", "small", "--to", "out")
    assert done.returncode == 0, done.stderr
    assert "it is stale: made with another configuration" in done.stdout
