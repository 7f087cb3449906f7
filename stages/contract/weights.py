"""Tensors in and out of safetensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stages.contract.errors import ArtifactError


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes named tensors, contiguous and on the CPU."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads named tensors.

    Raises:
        ArtifactError: not a safetensors file, or a truncated one.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: cannot be read as safetensors ({error})") from error
