"""What several tests share: a tiny policy folder and a small run, made once."""

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
    from tests.sample.policies import make_policy

    return make_policy(tmp_path_factory.mktemp("policy"), context=64)


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real SmolLM2-135M-Instruct, made by the command once a session."""
    from tests.flows.conftest import run_grpo

    folder = tmp_path_factory.mktemp("models")
    done = run_grpo(folder, "model", "smollm2", "--to", "smollm2")
    assert done.returncode == 0, done.stderr
    assert "smollm2: made" in done.stdout
    return folder / "smollm2"


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the small run was trained to its end, unbroken. Tests read it and never change it."""
    from tests.flows.conftest import SMALL, run_grpo

    folder = tmp_path_factory.mktemp("small")
    done = run_grpo(folder, "train", SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
