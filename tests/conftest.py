"""What several tests share: a tiny policy folder, made once."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of 0.1 million random weights with the character tokenizer, as `warmstart` makes it."""
    from stages.model.load import save_policy
    from stages.warmstart.config import NewModel
    from stages.warmstart.new_model import character_tokenizer, new_model

    folder = tmp_path_factory.mktemp("policy")
    config = NewModel(type="new", hidden_size=64, intermediate_size=96, layers=2, heads=2, context_length=64)
    tokenizer = character_tokenizer(config.characters)
    save_policy(new_model(config, tokenizer, seed=5), folder, None)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real SmolLM2-135M-Instruct, made by the command once a session."""
    from tests.flows.conftest import run_grpo

    folder = tmp_path_factory.mktemp("models")
    done = run_grpo(folder, "model", "smollm2", "--to", "smollm2")
    assert done.returncode == 0, done.stderr
    assert "smollm2: made" in done.stdout
    return folder / "smollm2"
