"""Makes the gradient of the same batch again and again, and prints how many digests came out, as JSON.

`python -m tests.model.gradients POLICY --times 200 --threads 4`: policy and critic, full and with an adapter.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor, nn

from stages.contract.metrics import Meter
from stages.model.adapter import add_adapter
from stages.model.config import LoraConfig, OptimizerConfig
from stages.model.critic import starting_critic
from stages.model.determinism import set_deterministic, set_threads
from stages.model.load import load_model
from stages.model.optim import Optimizer
from stages.update.batch import TrainingRow
from stages.update.config import KlConfig, UpdateConfig
from stages.update.loop import accumulate
from stages.update.value import CriticTrainer, accumulate_values

ROWS, TOKENS = 32, 32
"""Rows that share 2 prompts, and completion tokens of each: enough for torch to divide the work among 4 threads."""


def main() -> None:
    """Counts the digests of each kind of gradient."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--not-deterministic", action="store_true")
    options = parser.parse_args()
    set_deterministic(not options.not_deterministic)
    threads = set_threads(options.threads)
    kinds = gradients(options.policy)
    found = {name: len({make() for _ in range(options.times)}) for name, make in kinds.items()}
    print(json.dumps({"threads": threads, "digests": found}))


def gradients(folder: Path) -> dict[str, Callable[[], str]]:
    """Each kind of gradient: a function that makes it and returns its digest."""
    config = UpdateConfig(kl=KlConfig(coefficient=0.1))
    full, adapted = load_model(folder, "cpu"), load_model(folder, "cpu")
    add_adapter(adapted, LoraConfig(rank=4), seed=1)
    critic = starting_critic(folder, "cpu")
    for model in (adapted, critic):  # what begins as zeros would let no gradient through
        stir(model)
    trainee = CriticTrainer(critic, Optimizer(critic, OptimizerConfig()), None)
    rows = batch()
    return {
        "policy": lambda: digest(full, lambda: accumulate(full, rows, config, "cpu", Meter())),
        "adapter": lambda: digest(adapted, lambda: accumulate(adapted, rows, config, "cpu", Meter())),
        "critic": lambda: digest(critic, lambda: accumulate_values(trainee, rows, 16384, "cpu", Meter())),
    }


def stir(model: nn.Module) -> None:
    """Adds noise to the trained parameters that are all 0."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.1)


def batch() -> list[TrainingRow]:
    """Rows of which half have the same prompt."""
    random = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(2, 97, (count,), generator=random).tolist()

    def numbers() -> Tensor:
        return torch.randn(TOKENS, generator=random)

    prompts = [ids(9), ids(5)]
    return [
        TrainingRow(
            prompts[i % 2], ids(TOKENS), 1.0, numbers() - 4, numbers(), numbers() - 4, None, None, numbers(), numbers()
        )
        for i in range(ROWS)
    ]


def digest(model: nn.Module, accumulate_gradient: Callable[[], object]) -> str:
    """Digest of the gradients of all trained parameters."""
    model.zero_grad()
    accumulate_gradient()
    hasher = blake3()
    for parameter in model.parameters():
        if parameter.grad is not None:
            hasher.update(parameter.grad.numpy().tobytes())
    return hasher.hexdigest()


if __name__ == "__main__":
    main()
