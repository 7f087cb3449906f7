"""What decides the last bits of torch's results: threads, deterministic algorithms, the processor's instruction set."""

import ctypes
import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from stages.contract.errors import EngineError, ModelError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
"""Values with which cuBLAS is deterministic (cuBLAS library documentation, 'Results reproducibility')."""
MKL_BRANCHES = {3: "COMPATIBLE", 4: "SSE2", 8: "SSE4_2", 9: "AVX", 10: "AVX2", 12: "AVX512", 14: "AVX512_E1"}
"""Names of MKL's code branches (`MKL_CBWR_…` in its header mkl_types.h)."""
STRICT = 0x10000
"""The flag of MKL_CBWR that a branch named `…,STRICT` has beside its number."""
REFUSAL = re.compile(r"([\w ()]+?) does not have a deterministic implementation")


def set_deterministic(deterministic: bool) -> None:
    """Switches torch's deterministic algorithms in this process on or off; to be called before any other work of torch.

    cuBLAS reads its environment variable when its handle is made; a value with which cuBLAS is deterministic stays.
    """
    initialize_vector_math()
    if deterministic and os.environ.get(WORKSPACE) not in WORKSPACES:
        os.environ[WORKSPACE] = WORKSPACES[0]
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = False


def initialize_vector_math() -> None:
    """Calls MKL's vector math once from one thread.

    Where the first call in a process (cos, exp, log, sqrt, …) comes from two threads at once, one of the threads may
    take a kernel of about 12 correct bits: in 23 of 900 processes that thread's half was off by up to 8e-4, in none of
    2,700 after a call from one thread (torch 2.13.0).
    """
    torch.ones(1).cos()


def set_threads(threads: int | None) -> int:
    """Sets torch's threads for the calling thread; returns their number.

    OpenMP keeps the number by thread, so that each stage sets it in the thread that computes. The number is set also
    where it is torch's own: MKL may otherwise take fewer threads, and a former stage may have left another number.
    OpenMP is kept from choosing fewer threads at a high load (OMP_DYNAMIC), and from more than OMP_THREAD_LIMIT.

    Args:
        threads: the number; None takes torch's own, as it was before any stage set another one.
    """
    own = default_threads()  # read before the first stage changes it, also where that stage names a number
    openmp = ctypes.CDLL(None)  # torch loads its OpenMP library for all to see
    limit = threads or own
    with suppress(AttributeError):
        openmp.omp_set_dynamic(0)
        limit = min(limit, openmp.omp_get_thread_limit())
    torch.set_num_threads(limit)
    return torch.get_num_threads()


@functools.cache
def default_threads() -> int:
    """The number of threads that torch takes by itself in this process."""
    return torch.get_num_threads()


def processor(device: str) -> dict[str, str]:
    """The instruction sets that torch, MKL and oneDNN use, and with a GPU its name and the versions of CUDA and cuDNN.

    oneDNN does not export its own: it takes the best that the processor has, up to ONEDNN_MAX_CPU_ISA.
    """
    found = {"torch": torch.backends.cpu.get_cpu_capability(), "onednn": _onednn()}
    if (mkl := _mkl()) is not None:
        found["mkl"] = mkl
    if device == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
        }
    return found


def _mkl() -> str | None:
    """MKL's code branch; None where torch was built without MKL."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        forced, best = library.mkl_serv_cbwr_get(-1), library.mkl_serv_cbwr_get_auto_branch()
        strict = forced > 0 and bool(forced & STRICT)
        branch = forced & ~STRICT if forced > 0 and forced & ~STRICT in MKL_BRANCHES else best
        return MKL_BRANCHES.get(branch, str(branch)) + (",STRICT" if strict else "")
    return None


def _onednn() -> str:
    known = torch.cpu.get_capabilities()
    best = next((name for name in ("amx_tile", "avx512_f", "avx2", "sse4_1") if known.get(name)), "other")
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL").upper()
    name = {"amx_tile": "AMX", "avx512_f": "AVX512"}.get(best, best.upper())
    return name if limit in ("ALL", "DEFAULT") else f"{name}, at most {limit}"


@contextmanager
def refusals_named() -> Iterator[None]:
    """Says in one sentence which operation torch refuses in deterministic mode, and which switch turns the mode off.

    Raises:
        ModelError: an operation has no deterministic implementation.
    """
    try:
        yield
    except (RuntimeError, EngineError) as error:
        refusal = REFUSAL.search(str(error))
        if refusal is None:
            raise
        raise ModelError(
            f"torch's operation {refusal[1].strip()} has no deterministic implementation, and hardware.deterministic "
            "is true: set hardware.deterministic to false, whereupon equal inputs need not give equal bytes"
        ) from error
