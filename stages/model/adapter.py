"""Low-rank adapters (LoRA, arXiv:2106.09685), by the library peft: a policy that is a base and small changes to it.

The folder of such a policy holds `adapter_config.json` and `adapter_model.safetensors` as peft writes them, and the
tokenizer; the base is named by its path from that folder.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.contract.errors import ConfigError, ModelError
from stages.contract.policy import ADAPTER_CONFIG
from stages.contract.weights import read_tensors, write_tensors
from stages.model.config import LoraConfig

WEIGHTS = "adapter_model.safetensors"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
PREFIX = "base_model.model."
"""What peft puts before the names of a model's parameters in its files."""


def rank_of(folder: Path) -> int:
    """The rank of an adapter."""
    return int(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"])


def vllm_rank(rank: int) -> int:
    """The least rank, of those for which vLLM makes room, that an adapter of `rank` fits in."""
    return next(room for room in VLLM_RANKS if room >= rank)


def is_adapted(model: PreTrainedModel) -> bool:
    """Whether a model carries an adapter."""
    return hasattr(model, "peft_config")


def add_adapter(model: PreTrainedModel, config: LoraConfig, seed: int) -> None:
    """Adds a new adapter to a model, in place: only it is trained from now on, and at first it changes nothing.

    Args:
        model: the base.
        config: rank, scale, and which layers.
        seed: decides the adapter's first weights.

    Raises:
        ConfigError: a layer is named that the model does not have.
    """
    peft = _peft()
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.0
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _inject(peft, settings, model, f"update.lora.targets: {config.targets}")


def check_adapter(model: PreTrainedModel, config: LoraConfig) -> None:
    """Refuses to go on with an adapter of another rank or scale than the configuration's.

    Raises:
        ConfigError: the two differ.
    """
    carried: Any = model
    settings = carried.peft_config["default"]
    if (settings.r, settings.lora_alpha) != (config.rank, config.alpha):
        raise ConfigError(
            f"update.lora asks for rank {config.rank} and alpha {config.alpha}, the policy's adapter has rank "
            f"{settings.r} and alpha {settings.lora_alpha}: an adapter keeps its shape through a run"
        )


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Puts the adapter in `folder` on its base model, in place.

    Raises:
        ModelError: the adapter is not whole, or does not fit the model.
    """
    peft = _peft()
    tensors = {name.removeprefix(PREFIX): value for name, value in read_tensors(folder / WEIGHTS).items()}
    settings = peft.LoraConfig.from_pretrained(str(folder))
    settings.inference_mode = False
    _inject(peft, settings, model, str(folder))
    expected = _tensors(peft, model)
    wrong = sorted(expected.keys() ^ tensors.keys()) or sorted(
        n for n in tensors if tensors[n].shape != expected[n].shape
    )
    if wrong:
        raise ModelError(f"{folder}: the adapter does not fit its base model: {wrong[:5]}")
    peft.set_peft_model_state_dict(model, tensors)


def save_adapter(model: PreTrainedModel, folder: Path, base: Path) -> None:
    """Writes a model's adapter; `base` is where the base model is, as the folder's final place sees it."""
    peft = _peft()
    folder.mkdir(parents=True, exist_ok=True)
    carried: Any = model
    settings = carried.peft_config["default"]
    data = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.to_dict().items()}
    data |= {"base_model_name_or_path": str(base), "inference_mode": True}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(data, indent=1, sort_keys=True), encoding="utf-8")
    write_tensors(folder / WEIGHTS, {PREFIX + name: value for name, value in _tensors(peft, model).items()})


def merge_adapter(model: PreTrainedModel) -> None:
    """Adds the adapter to the weights it changes, in place: a plain model is left."""
    lora: Any = importlib.import_module("peft.tuners.lora")
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, lora.LoraLayer)]
    for name, layer in layers:
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config


def _inject(peft: Any, settings: Any, model: PreTrainedModel, where: str) -> None:
    try:
        peft.inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    carried: Any = model
    carried.peft_config = {"default": settings}


def _tensors(peft: Any, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return tensors


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ConfigError("adapters need the package peft: pip install -e '.[lora]'") from error
    return peft
