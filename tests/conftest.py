"""What several tests share: a tiny policy folder, made once."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


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
