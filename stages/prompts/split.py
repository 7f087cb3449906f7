"""Which prompts are held out. Pure."""

from collections.abc import Iterable

import polars as pl
from blake3 import blake3


def is_heldout(prompt_id: str, share: float) -> bool:
    """Whether a prompt belongs to the held-out share: decided by its own digest, so more data never moves it."""
    return int.from_bytes(blake3(f"heldout {prompt_id}".encode()).digest(6), "big") < share * 2**48


def split(
    prompts: pl.DataFrame, share: float, heldout: pl.DataFrame | None
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """Training prompts, held-out prompts, and the number of dropped ones by reason.

    Args:
        prompts: table `prompts`, possibly with equal ones.
        share: the part to hold out where `heldout` is None.
        heldout: held-out prompts of another source; those are removed from the training prompts.
    """
    unique = prompts.unique("prompt_id", keep="first", maintain_order=True)
    dropped = {"equal prompt": prompts.height - unique.height}
    if heldout is None:
        mask = _mask(is_heldout(prompt_id, share) for prompt_id in unique["prompt_id"])
        return unique.filter(~mask), unique.filter(mask), dropped
    chosen = heldout.unique("prompt_id", keep="first", maintain_order=True)
    train = unique.join(chosen, on="prompt_id", how="anti", maintain_order="left")
    dropped["equal prompt"] += heldout.height - chosen.height
    return train, chosen, dropped | {"also held out": unique.height - train.height}


def _mask(values: Iterable[bool]) -> pl.Series:
    return pl.Series(list(values), dtype=pl.Boolean)
