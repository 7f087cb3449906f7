"""Loading and saving policies: plain Hugging Face folders, safetensors only, never pickle, never remote code."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from stages.contract.digest import file_digest, names_digest
from stages.contract.errors import ModelError
from stages.contract.policy import base_of
from stages.model.adapter import is_adapted, load_adapter, save_adapter

logging.set_verbosity_error()
logging.disable_progress_bar()

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}


def load_model(folder: Path, device: str, kind: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """The causal language model (or what else `kind` loads) of a folder, in float32 on `device`, dropout off.

    A folder that holds an adapter gives its base model with the adapter on it.

    Raises:
        ModelError: no configuration, no safetensors, a truncated file, tensors missing, left over or of a wrong shape.
    """
    if (base := base_of(folder)) is not None:
        model = load_model(base, "cpu")
        load_adapter(model, folder)
        return _placed(model, device)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; a Hugging Face model folder is wanted")
    _check_weights(folder)
    loaded: Any
    try:
        loaded = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:500]}") from error
    info: dict[str, Any] = loaded[1]
    wrong = {
        name: sorted(map(str, info[name]))
        for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[name]
    }
    if wrong:
        raise ModelError(f"{folder}: the weights do not fit config.json: {str(wrong)[:500]}")
    return _placed(loaded[0], device)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    Raises:
        ModelError: there is none, or it has no end token.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise ModelError(f"{folder}: no tokenizer.json; save the tokenizer into the model's folder")
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix not in WEIGHTS]
    digest = names_digest({path.name: file_digest(path) for path in files})
    if digest not in _tokenizers:
        _tokenizers.clear()
        _tokenizers[digest] = _read_tokenizer(folder)
    return _tokenizers[digest]


_tokenizers: dict[str, PreTrainedTokenizerBase] = {}
"""The last one that was loaded, by the digest of the files beside the weights: all policies of a run have the same."""


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder}: the tokenizer cannot be loaded: {' '.join(str(error).split())[:500]}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: the tokenizer has no eos_token, without which no completion ends")
    return tokenizer


def save_policy(model: PreTrainedModel, folder: Path, parent: Path | None, base: Path | None = None) -> None:
    """Writes the model as safetensors; takes every other file (tokenizer, chat template, …) from `parent` as it is.

    Of a model with an adapter only that is written; `base` is the base model's folder, as seen from the policy's place.
    """
    if is_adapted(model):
        assert base is not None
        save_adapter(model, folder, base)
    else:
        model.save_pretrained(folder)
    left = {"config.json"} if is_adapted(model) else set()
    for path in sorted(parent.iterdir()) if parent else []:
        weights = path.suffix in WEIGHTS or ".index.json" in path.name or path.name in left
        if path.is_file() and not weights and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def context_length(model: PreTrainedModel) -> int:
    """Tokens that the model can see."""
    config: Any = model.config.get_text_config()
    return int(config.max_position_embeddings)


def folder_context(folder: Path) -> int | None:
    """The same of a model's folder, by its configuration alone; None where that does not say it."""
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: config.json cannot be used: {' '.join(str(error).split())[:500]}") from error
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)


def vocabulary(model: PreTrainedModel) -> int:
    """Token ids that the model knows are below this."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def _placed(model: Any, device: str) -> PreTrainedModel:
    placed: PreTrainedModel = model.to(device).eval()
    return placed


def _check_weights(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no *.safetensors; weights in other formats are not loaded")
    for path in files:
        try:
            with safe_open(path, framework="pt") as handle:
                handle.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not a whole safetensors file ({error})") from error
