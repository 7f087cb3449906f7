"""Tensors in and out of safetensors."""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stages.contract.errors import ArtifactError

LAYOUT = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types of tensors, in the order in which the library puts them into a file, and their names in it."""

AHEAD = 1 << 22
"""Bytes that are asked for at a time; of more at once a kernel brings only the first."""


class Serialised:
    """Named tensors as the bytes of a safetensors file, the same as `write_tensors` writes, without a copy of them.

    They must not change as long as it is used. Those of another device are brought to the CPU.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        order = list(LAYOUT)
        names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
        self._tensors = [tensors[name].detach().cpu() for name in names]
        header, end = {}, 0
        for name, tensor in zip(names, self._tensors, strict=True):
            begin, end = end, end + tensor.nbytes
            shape = list(tensor.shape)
            header[name] = {"dtype": LAYOUT[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._head = len(text).to_bytes(8, "little") + text
        self.size = len(self._head) + end
        """Bytes."""

    def parts(self) -> Iterator[memoryview]:
        """The file's bytes, tensor by tensor."""
        yield memoryview(self._head)
        for tensor in self._tensors:
            yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes named tensors, contiguous and on the CPU."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def read_ahead(path: Path) -> None:
    """Has a file brought into the system's cache, where there is room, while the process does something else."""

    def ask() -> None:
        with suppress(OSError), path.open("rb") as file:
            for place in range(0, path.stat().st_size, AHEAD):
                os.posix_fadvise(file.fileno(), place, AHEAD, os.POSIX_FADV_WILLNEED)

    threading.Thread(target=ask, name="read ahead", daemon=True).start()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads named tensors into memory of their own: what becomes of the file afterwards changes nothing.

    Raises:
        ArtifactError: not a safetensors file, or a truncated one.
    """
    try:
        return load_file(path, backend="pread")
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: cannot be read as safetensors ({error})") from error
