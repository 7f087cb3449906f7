"""Sources → training and held-out prompts, what was left out, and what to look at. No run is needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import polars as pl

from stages.contract.errors import DataError
from stages.prompts.config import MixtureSource, PromptsConfig, Source, parts_of, worded
from stages.prompts.sources import read
from stages.prompts.split import Known, split
from stages.prompts.table import NEAR, table

AT_ONCE = 20_000
"""Prompts that are plain Python at a time; what is read already is in columns, which take a fraction of the memory."""


@dataclass(frozen=True)
class Prepared:
    """Prompts of a configuration."""

    train: pl.DataFrame
    """Table `prompts`, and the column `near`."""
    heldout: pl.DataFrame
    """The same; none of its prompts is in `train`."""
    read: pl.DataFrame
    """All that the training source gave, equal prompts included: prompt_id, task, source, level."""
    dropped: dict[str, int]
    """Prompts that are in neither, counted by reason."""
    warnings: list[str]


def prepare(config: PromptsConfig, known: Known | None = None) -> Prepared:
    """Reads all sources, splits, and looks for leaks and contradictions.

    Args:
        config: the sources and how they are split.
        known: prompts of the phases before.

    Raises:
        DataError: a source cannot be used, or none of its prompts is left to train on.
    """
    prompts = _whole(config, config.source, "prompts.source")
    other = config.heldout_source
    heldout = _whole(config, other, "prompts.heldout_source") if other else None
    train, held, dropped = split(prompts, config.heldout, heldout, known)
    close = train.join(held, on=NEAR, how="semi", maintain_order="left")
    if config.near_duplicates == "drop":
        train = train.join(held, on=NEAR, how="anti", maintain_order="left")
        dropped["held out but for case and white space"] = close.height
        close = close.clear()
    if not train.height:
        raise DataError(f"prompts: of {prompts.height} prompts none is left to train on ({dropped})")
    if isinstance(other or config.source, MixtureSource) or held["level"].drop_nulls().len():
        held = held.sort("prompt_id")  # in the order of digests the first N are some of each part and level
    return Prepared(
        train,
        held,
        prompts.select("prompt_id", "task", "source", "level"),
        dropped,
        [*_contradictions(prompts), *_close(close), *_empty_parts(config, train)],
    )


def _whole(config: PromptsConfig, source: Source, field: str) -> pl.DataFrame:
    return pl.concat(_chunks(config, source, field), rechunk=True)


def _chunks(config: PromptsConfig, source: Source, field: str) -> Iterator[pl.DataFrame]:
    for place, part in parts_of(source).items():
        prompts = read(part.source, field + place)
        while some := list(islice(prompts, AT_ONCE)):
            yield table(some, worded(config, part), part.name)


def _contradictions(prompts: pl.DataFrame) -> Iterator[str]:
    """Equal prompts whose answers differ, of which the first is kept."""
    answers = prompts.group_by("prompt_id", maintain_order=True).agg(pl.col("answer").unique(maintain_order=True))
    torn = answers.filter(pl.col("answer").list.len() > 1)
    for prompt_id, found in torn.head(1).iter_rows():
        yield (
            f"prompts that come again with another answer, of which the first counts: {torn.height}, e.g. {prompt_id} "
            f"with {found[0]!r:.40}, then {found[1]!r:.40}"
        )


def _close(close: pl.DataFrame) -> Iterator[str]:
    for row in close.head(1).iter_rows(named=True):
        yield (
            f"training prompts that are held out too but for case and white space: {close.height}, e.g. "
            f"{row['prompt_id']} {row['messages'][-1]['content']!r:.60}; prompts.near_duplicates: drop leaves them out"
        )


def _empty_parts(config: PromptsConfig, train: pl.DataFrame) -> Iterator[str]:
    if isinstance(config.source, MixtureSource):
        there = set(train["source"].unique())
        names = [part.name for part in config.source.parts if part.name not in there]
        yield from (f"the part {name!r} has no training prompt that is not another part's too" for name in names)
