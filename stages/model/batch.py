"""Micro-batches by a budget of padded tokens. Pure."""

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows in micro-batches of similar lengths, each of at most `budget` padded tokens; a longer row is alone.

    Args:
        lengths: tokens of prompt and completion of each row.
        budget: rows of a micro-batch times its longest row.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
