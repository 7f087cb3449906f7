"""Which prompts are held out. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl
from blake3 import blake3

from stages.prompts.table import NEAR


@dataclass(frozen=True)
class Known:
    """Prompts of the runs whose policies led to this one's: tables `prompts`."""

    trained: pl.DataFrame
    heldout: pl.DataFrame


def is_heldout(prompt_id: str, share: float) -> bool:
    """Whether a prompt belongs to the held-out share: decided by its own digest, so more data never moves it."""
    return int.from_bytes(blake3(f"heldout {prompt_id}".encode()).digest(6), "big") < share * 2**48


def split(
    prompts: pl.DataFrame, share: float, heldout: pl.DataFrame | None, known: Known | None = None
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """Training prompts, held-out prompts, and the number of dropped ones by reason.

    Args:
        prompts: table `prompts`, possibly with equal ones.
        share: the part to hold out where `heldout` is None.
        heldout: held-out prompts of another source; those are removed from the training prompts.
        known: prompts of the phases before. What was trained on is not held out; what was held out stays so, where a
            share is to be. Wording, case and white space make no difference.
    """
    unique = prompts.unique("prompt_id", keep="first", maintain_order=True)
    dropped = {"equal prompt": prompts.height - unique.height}
    if heldout is None:
        mask = _mask(is_heldout(prompt_id, share) for prompt_id in unique["prompt_id"])
        if known is not None and share:
            mask = (mask | _among(unique, known.heldout)) & ~_among(unique, known.trained)
        return unique.filter(~mask), unique.filter(mask), dropped
    chosen = heldout.unique("prompt_id", keep="first", maintain_order=True)
    train = unique.join(chosen, on="prompt_id", how="anti", maintain_order="left")
    dropped["equal prompt"] += heldout.height - chosen.height
    dropped["also held out"] = unique.height - train.height
    if known is not None:
        trained = _among(chosen, known.trained)
        chosen, dropped["trained on in a phase before"] = chosen.filter(~trained), int(trained.sum())
    return train, chosen, dropped


def _among(prompts: pl.DataFrame, others: pl.DataFrame) -> pl.Series:
    """Which of the prompts are among others, wherever these are worded alike or not."""
    same = prompts["prompt_id"].is_in(others["prompt_id"].implode())
    return same | prompts[NEAR].is_in(others[NEAR].implode())


def _mask(values: Iterable[bool]) -> pl.Series:
    return pl.Series(list(values), dtype=pl.Boolean)
