"""Calls an operation for the first time in many fresh processes, and prints how often a second call gave other bytes.

`python -m tests.model.first_calls --processes 300`: a JSON mapping of operations to numbers of processes. Each process
is forked from one that has imported torch and computed nothing.
"""

import argparse
import json
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from stages.model.determinism import set_deterministic, set_threads

THREADS = 2
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "cos": torch.cos,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "silu": silu,
    "logsumexp": lambda x_NH: x_NH.logsumexp(-1),
    "matmul": lambda x_NH: x_NH @ x_NH.T[:, :64],
    "attention": lambda x_NH: scaled_dot_product_attention(*[x_NH.view(64, 2, -1, 32)] * 3, is_causal=True),
}
"""What a forward pass does: rotary embeddings, norms, attention, products, log-probabilities."""


def main() -> None:
    """Counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=300, help="of each operation")
    parser.add_argument("--unprepared", action="store_true", help="without what a stage does first")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process in which threads are at work cannot be forked
    torch.use_deterministic_algorithms(True)  # imports what each forked process would have to import
    x_NH = torch.rand(4096, 64, generator=torch.Generator().manual_seed(0)) + 0.5
    print(
        json.dumps(
            {
                name: sum(differs(operation, x_NH, not options.unprepared) for _ in range(options.processes))
                for name, operation in OPERATIONS.items()
            }
        )
    )


def differs(operation: Callable[[Tensor], Tensor], x_NH: Tensor, prepared: bool) -> bool:
    """Whether the first call in a forked process gives other bytes than the second one."""
    process = os.fork()
    if process == 0:
        if prepared:
            set_deterministic(True)
        set_threads(THREADS)
        first, second = operation(x_NH), operation(x_NH)
        os._exit(0 if torch.equal(first, second) else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 1), code
    return code == 1


if __name__ == "__main__":
    main()
