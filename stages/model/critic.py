"""The critic of PPO: a policy's body with a scalar head, a plain Hugging Face folder for token classification.

Dimensions: N completion tokens of all rows in row order.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedModel

from stages.contract.errors import ModelError
from stages.contract.policy import base_of
from stages.contract.workspace import Workspace
from stages.model.config import CriticStart, FolderStart
from stages.model.load import load_model
from stages.model.logprobs import TokenBatch


def former_critic(desk: Workspace, k: int, start: CriticStart, device: str) -> PreTrainedModel:
    """The critic that iteration k-1 left, and in iteration 1 the starting one; its files become the stage's inputs."""
    folder = desk.paths.critic(k - 1)
    if k == 1:
        folder = start.path if isinstance(start, FolderStart) else desk.paths.policy(0)
    desk.notes["critic_digest"] = desk.take_folder(folder)
    return starting_critic(folder, device) if k == 1 else load_critic(folder, device)


def load_critic(folder: Path, device: str) -> PreTrainedModel:
    """The critic of a folder, in float32 on `device`, dropout off.

    Raises:
        ModelError: the folder's model is none, or gives more than one number a token.
    """
    critic = load_model(folder, device, AutoModelForTokenClassification)
    if critic.config.num_labels != 1:
        raise ModelError(f"{folder}: gives {critic.config.num_labels} numbers a token; a critic gives 1")
    return critic


def starting_critic(folder: Path, device: str) -> PreTrainedModel:
    """A critic made of a folder: as it is where it holds one, else the body of its language model and a head of zeros.

    With a head of zeros every value is 0 at first, and nothing depends on a seed.

    Raises:
        ModelError: the model cannot be loaded, or transformers has no token classifier with its body.
    """
    if base_of(folder) is not None:
        raise ModelError(f"{folder}: an adapter cannot be made a critic; merge it with its base model first")
    if _classifies_tokens(folder):
        return load_critic(folder, device)
    policy = load_model(folder, "cpu")
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    try:
        made: Any = AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise ModelError(f"{folder}: {type(policy).__name__} cannot be made a critic: {str(error)[:200]}") from error
    critic: PreTrainedModel = made
    critic.base_model.load_state_dict(policy.base_model.state_dict())
    with torch.no_grad():
        for name, parameter in critic.named_parameters():
            if not name.startswith(f"{critic.base_model_prefix}."):
                parameter.zero_()
    placed: Any = critic
    return placed.to(device).eval()  # type: ignore[no-any-return]


def _classifies_tokens(folder: Path) -> bool:
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return False  # what is wrong with it is said where the model is loaded
    return any("TokenClassification" in str(name) for name in names)


def save_critic(critic: PreTrainedModel, folder: Path) -> None:
    """Writes the critic as safetensors."""
    critic.save_pretrained(folder)


def token_values(critic: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """The value [N] of the state before each completion token, in units of the reward.

    It is read where the token is predicted, at the position before it, so it has not seen the token itself.
    """
    out = critic(input_ids=batch.ids_BS, attention_mask=batch.mask_BS, use_cache=False)
    values_N: Tensor = out.logits.flatten(0, 1)[batch.positions_N, 0].float()
    return values_N
