"""How much of each source an iteration takes, and in which order a source's prompts come. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from heapq import merge

import numpy as np
import numpy.typing as npt

from stages.contract.seeds import derive

Rows = npt.NDArray[np.int64]
"""Rows of the table of prompts."""


def portions(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Prompts of each source among the first `total` of a run: always within one or so of its share.

    By Webster's divisors: source s has its i-th turn at time (i + 1/2) / w_s, and turns are taken in order of time, so
    that no source ever loses what it had where `total` grows.
    """
    whole = sum(weights.values())
    taken = {s: max(0, int(total * w / whole) - len(weights) // 2 - 1) for s, w in weights.items()}
    while sum(taken.values()) < total:
        following = min((s for s in weights if weights[s] > 0), key=lambda s: (taken[s] + 0.5) / weights[s])
        taken[following] += 1
    return taken


def in_passes(rows: Rows, taken: Sequence[int], seed: int, since: int, k: int, source: str) -> tuple[Rows, Rows]:
    """A source's rows for this iteration, and its others: pass after pass, each in a new order, none twice in one.

    What is left of a pass and does not fill an iteration's portion is left out of it. The others have an order of the
    iteration's own.

    Args:
        rows: of the source.
        taken: how many each iteration takes, from the one in which the passes begin up to this one.
        seed: of the run.
        since: the iteration that added the last prompts; 0 for none.
        k: this iteration.
        source: its name; "" where all prompts are one.
    """
    start, end, passed = 0, 0, 0
    for count in taken:
        start = end
        if start + count > rows.size:
            start, passed = 0, passed + 1
        end = start + count
    name = (source,) if source else ()
    names = (*name, passed) if since == 0 else (*name, since, passed)
    mine = np.random.default_rng(derive(seed, "prompts", *names)).permutation(rows.size)[start:end]
    others = np.random.default_rng(derive(seed, "dynamic", *name, k)).permutation(rows.size)
    return rows[mine], rows[others[~np.isin(others, mine)]]


def interleaved(left: Mapping[str, Sequence[int]], weights: Mapping[str, float]) -> Iterator[int]:
    """What is left of each source, taken in turns by weight."""
    turns = (
        [((i + 0.5) / weights[s], n, row) for i, row in enumerate(rows)] for n, (s, rows) in enumerate(left.items())
    )
    yield from (row for _, _, row in merge(*turns))
