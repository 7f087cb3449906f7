"""What is to be seen of prompts before a run: counts, lengths, and how the model will see some. No file is written."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from stages.prompts.prepare import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GROUP = ("source", "task", "level")
BINS = 32


def spread(height: int, count: int) -> list[int]:
    """`count` rows of `height`, evenly apart; all where there are fewer."""
    return [i * height // count for i in range(count)] if height > count else list(range(height))


def token_lengths(prompts: pl.DataFrame, tokenizer: "PreTrainedTokenizerBase", most: int) -> pl.DataFrame:
    """Source, task, level and token ids (`tokens`, their number) of up to `most` prompts, evenly apart."""
    from stages.model.render import encode, render

    some = prompts[spread(prompts.height, most)]
    rows = some.select("messages", "format").rows()
    counts = [len(encode(tokenizer, render(tokenizer, messages, kind), kind)) for messages, kind in rows]
    return some.select(*GROUP).with_columns(pl.Series("tokens", counts, pl.Int64))


def groups(prepared: Prepared, lengths: pl.DataFrame | None, limit: int | None) -> list[dict[str, Any]]:
    """A row for each source, task and level, in the order in which they come, with counts and lengths.

    Args:
        prepared: the prompts.
        lengths: as `token_lengths` gives them; None where there is no tokenizer.
        limit: tokens of a prompt at most.

    Returns:
        source, task, level; read, train, heldout (prompts), answered (of these), tokens (least, median, p95, most) and
        too_long (of those measured).
    """
    table = prepared.read.group_by(*GROUP, maintain_order=True).agg(pl.len().alias("read"))
    held = prepared.heldout.group_by(*GROUP, maintain_order=True).agg(pl.len().alias("heldout"))
    train = prepared.train.group_by(*GROUP, maintain_order=True).agg(pl.len().alias("train"))
    answered = pl.concat([prepared.train, prepared.heldout]).group_by(*GROUP, maintain_order=True)
    table = table.join(held, on=GROUP, how="full", coalesce=True, nulls_equal=True, maintain_order="left_right")
    for other in (train, answered.agg(pl.col("answer").is_not_null().sum().alias("answered"))):
        table = table.join(other, on=GROUP, how="left", nulls_equal=True, maintain_order="left")
    if lengths is not None:
        tokens = pl.col("tokens")
        figures = {
            "least": tokens.min(),
            "median": tokens.quantile(0.5, "nearest").cast(pl.Int64),
            "p95": tokens.quantile(0.95, "nearest").cast(pl.Int64),
            "most": tokens.max(),
            "too_long": (tokens > limit).sum() if limit is not None else pl.lit(0),
        }
        measured = lengths.group_by(*GROUP, maintain_order=True).agg(**figures)
        table = table.join(measured, on=GROUP, how="left", nulls_equal=True, maintain_order="left")
    return table.with_columns(pl.col("read", "train", "heldout", "answered").fill_null(0)).to_dicts()


def histogram(lengths: Sequence[int], bins: int = BINS) -> list[int]:
    """How many lengths fall into each of some bins of equal width, from the least to the most."""
    if not lengths:
        return []
    least, width = min(lengths), (max(lengths) - min(lengths) + 1) / bins
    counts = [0] * bins
    for length in lengths:
        counts[min(int((length - least) / width), bins - 1)] += 1
    return counts


def samples(prompts: pl.DataFrame, count: int) -> pl.DataFrame:
    """Some prompts, evenly apart, of as many groups as can be."""
    of_each = prompts.with_row_index("row").group_by(*GROUP, maintain_order=True).first()["row"].to_list()
    rows = [of_each[i] for i in spread(len(of_each), count)]
    rows += [row for row in spread(prompts.height, count + len(rows)) if row not in rows]
    return prompts[sorted(rows[:count])]


def as_seen(prompts: pl.DataFrame, tokenizer: "PreTrainedTokenizerBase | None") -> Iterator[dict[str, Any]]:
    """Prompts as the model will see them: the text, its tokens, and what these say where it is something else."""
    for row in prompts.iter_rows(named=True):
        seen = {name: row[name] for name in ("prompt_id", *GROUP, "answer")}
        if tokenizer is None:
            yield seen | {"text": "\n".join(f"{m['role']}: {m['content']}" for m in row["messages"])}
            continue
        from stages.model.render import encode, render

        text = render(tokenizer, row["messages"], row["format"])
        ids = encode(tokenizer, text, row["format"])
        said = str(tokenizer.decode(ids, skip_special_tokens=row["format"] == "text"))
        yield seen | {"text": text, "tokens": len(ids), "read_as": None if said.strip() == text.strip() else said}
