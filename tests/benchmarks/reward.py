"""The reward of work B, for both sides alike: a function as TRL's trainer takes it."""

from typing import Any


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A number that differs within a group, so that no group is constant."""
    return [sum(id % 97 for id in ids) / (97 * len(ids)) for ids in completion_ids]
