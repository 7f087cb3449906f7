"""Micro-batches by a budget of padded tokens. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows in micro-batches of similar lengths, each of at most `budget` padded tokens; a longer row is alone.

    Args:
        lengths: tokens of each row.
        budget: rows of a micro-batch times its longest row.
    """
    return _filled([()] * len(lengths), lengths, _longest_first(lengths), budget)[0]


def shared_batches(prompts: Sequence[Sequence[int]], completions: Sequence[int], budget: int) -> list[list[int]]:
    """The same for completions of prompts that several rows may have: a micro-batch holds each of its prompts once.

    Of three orders the one that makes the fewest padded tokens: by prompt, by the length of the completion, and by that
    of the row.

    Args:
        prompts: tokens of each row's prompt.
        completions: number of tokens of each row's completion.
        budget: padded tokens of a micro-batch: its different prompts times the longest, and its rows times the longest
            completion; where all its prompts are different, its rows times the longest row.
    """
    keys = [tuple(prompt) for prompt in prompts]
    by_row = _longest_first([len(key) + count for key, count in zip(keys, completions, strict=True)])
    by_completion = _longest_first(completions)
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in by_completion:
        groups.setdefault(keys[row], []).append(row)
    by_prompt = [row for group in groups.values() for row in group]
    ways = [_filled(keys, completions, order, budget) for order in (by_prompt, by_completion, by_row)]
    return min(ways, key=lambda way: way[1])[0]


@dataclass(frozen=True)
class _Size:
    """How many rows and different prompts a micro-batch has, and its longest prompt, completion and row."""

    rows: int = 0
    prompts: int = 0
    prompt: int = 0
    completion: int = 0
    row: int = 0

    @property
    def tokens(self) -> int:
        if self.prompts == self.rows:
            return self.rows * self.row
        return self.prompts * self.prompt + self.rows * self.completion

    def grown(self, prompt: int, completion: int, known: bool) -> "_Size":
        return _Size(
            self.rows + 1,
            self.prompts + (not known),
            max(self.prompt, prompt),
            max(self.completion, completion),
            max(self.row, prompt + completion),
        )


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


def _filled(
    prompts: Sequence[tuple[int, ...]], completions: Sequence[int], order: Sequence[int], budget: int
) -> tuple[list[list[int]], int]:
    """The rows in this order, in micro-batches; and the padded tokens of them all."""
    batches: list[list[int]] = []
    sizes: list[_Size] = []
    held: set[tuple[int, ...]] = set()
    for row in order:
        prompt, completion = prompts[row], completions[row]
        grown = sizes[-1].grown(len(prompt), completion, prompt in held) if sizes else None
        if grown is not None and grown.tokens <= budget:
            batches[-1].append(row)
            sizes[-1] = grown
            held.add(prompt)
        else:
            batches.append([row])
            sizes.append(_Size().grown(len(prompt), completion, known=False))
            held = {prompt}
    return batches, sum(size.tokens for size in sizes)
