"""The exponential average of policies (Polyak averaging; as a reference policy TR-DPO, arXiv:2404.09656)."""

import torch
from torch import nn


@torch.no_grad()
def move_towards(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average ← decay · average + (1 - decay) · model, in place, parameter by parameter.

    Args:
        average: what is moved.
        model: where to; the same architecture.
        decay: part of the old average that stays, in (0, 1).
    """
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.lerp_(theirs, 1 - decay)
