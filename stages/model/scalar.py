"""Models that give one number: a language model's body with a scalar head, as critics and reward models are."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.contract.errors import ModelError
from stages.contract.policy import base_of
from stages.model.load import load_model


def load_scalar(folder: Path, device: str, kind: Any, called: str) -> PreTrainedModel:
    """The model of a folder, in float32 on `device`, dropout off.

    Args:
        folder: Hugging Face model folder.
        device: `cpu`, `cuda`.
        kind: transformers' class of models of that kind.
        called: what the model is, for messages.

    Raises:
        ModelError: the folder's model is none of that kind, or gives more than one number.
    """
    if (folder / "config.json").is_file() and not holds(folder, kind):
        wanted = kind.__name__.removeprefix("AutoModel")
        raise ModelError(f"{folder}: is no {called}: config.json names no model {wanted}")
    model = load_model(folder, device, kind)
    if model.config.num_labels != 1:
        raise ModelError(f"{folder}: gives {model.config.num_labels} numbers; a {called} gives 1")
    return model


def starting_scalar(folder: Path, device: str, kind: Any, called: str) -> PreTrainedModel:
    """A model made of a folder: as it is where it holds one, else the body of its language model and a head of zeros.

    With a head of zeros every number is 0 at first, and nothing depends on a seed.

    Raises:
        ModelError: the model cannot be loaded, or transformers has none of that kind with its body.
    """
    if base_of(folder) is not None:
        raise ModelError(f"{folder}: an adapter cannot be made a {called}; merge it with its base model first")
    if holds(folder, kind):
        return load_scalar(folder, device, kind, called)
    policy = load_model(folder, "cpu")
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    try:
        made: Any = kind.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise ModelError(f"{folder}: {type(policy).__name__} cannot be made a {called}: {str(error)[:200]}") from error
    model: PreTrainedModel = made
    model.base_model.load_state_dict(policy.base_model.state_dict())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(f"{model.base_model_prefix}."):
                parameter.zero_()
    placed: Any = model
    return placed.to(device).eval()  # type: ignore[no-any-return]


def holds(folder: Path, kind: Any) -> bool:
    """Whether a folder's `config.json` names a model of a kind, e.g. `AutoModelForTokenClassification`."""
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return False  # what is wrong with it is said where the model is loaded
    return any(str(name).endswith(kind.__name__.removeprefix("AutoModel")) for name in names)
