"""The critic of PPO: a policy's body with a scalar head, a plain Hugging Face folder for token classification.

Dimensions: N completion tokens of all rows in row order.
"""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedModel

from stages.contract.workspace import Workspace
from stages.model.config import CriticStart, FolderStart
from stages.model.prefix_batches import TokenBatch, completion_states
from stages.model.scalar import load_scalar, starting_scalar


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
    return load_scalar(folder, device, AutoModelForTokenClassification, "critic")


def starting_critic(folder: Path, device: str) -> PreTrainedModel:
    """A critic made of a folder: as it is where it holds one, else the body of its language model and a head of zeros.

    Raises:
        ModelError: the model cannot be loaded, or transformers has no token classifier with its body.
    """
    return starting_scalar(folder, device, AutoModelForTokenClassification, "critic")


def save_critic(critic: PreTrainedModel, folder: Path) -> None:
    """Writes the critic as safetensors."""
    critic.save_pretrained(folder)


def token_values(critic: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """The value [N] of the state before each completion token, in units of the reward.

    It is read where the token is predicted, at the position before it, so it has not seen the token itself.
    """
    whole: Any = critic
    return completion_states(lambda **inputs: whole(**inputs).logits, critic, batch)[:, 0].float()
