"""Many marks, one reward. Pure."""

from collections.abc import Mapping, Sequence

from stages.score.verdict import Mark


def weighted(marks: Mapping[str, Sequence[Mark]], weights: Mapping[str, float]) -> list[float | None]:
    """The weighted sum of each row's rewards.

    A reward of status `null` does not take part; a row of which a reward with a weight has no value, since it failed
    (`timeout`, `error`), or of which none took part, has no reward: it is never silently 0.
    """
    rows = zip(*(marks[name] for name in weights), strict=True)
    return [_row(row, list(weights.values())) for row in rows]


def _row(row: Sequence[Mark], weights: Sequence[float]) -> float | None:
    counted = [
        (mark, weight) for mark, weight in zip(row, weights, strict=True) if weight != 0 and mark.status != "null"
    ]
    if not counted or any(mark.value is None for mark, _ in counted):
        return None
    return sum(weight * mark.value for mark, weight in counted if mark.value is not None)


def failures(marks: Mapping[str, Sequence[Mark]]) -> list[str | None]:
    """For each row what failed, named by reward; None where nothing did."""
    rows = zip(*marks.values(), strict=True)
    return [
        "; ".join(f"{name}: {mark.message}" for name, mark in zip(marks, row, strict=True) if mark.message) or None
        for row in rows
    ]
