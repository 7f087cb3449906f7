"""Figures from what rewards noted beside their values. Pure."""

import json
from collections.abc import Iterable
from typing import Any

import polars as pl

from stages.score.reward_config import JudgeReward, Reward, reward_name

COUNTED = ("prompt_tokens", "completion_tokens", "retries")


def note_metrics(reward: Reward, notes: Iterable[str | None]) -> dict[str, float | None]:
    """What a judge used and cost, summed over the rows; what a function logged as metrics, in the mean of its calls."""
    name = reward_name(reward)
    found: list[dict[str, Any]] = [json.loads(note) for note in notes if note is not None]
    if isinstance(reward, JudgeReward):
        used = {figure: float(sum(note.get(figure, 0) for note in found)) for figure in COUNTED}
        price = reward.price
        cost = (
            {"cost": (used["prompt_tokens"] * price.prompt + used["completion_tokens"] * price.completion) / 1e6}
            if price
            else {}
        )
        return {f"{name}_{figure}": value for figure, value in (used | cost).items()}
    logged: dict[str, list[float]] = {}
    for note in found:
        metrics = note.get("metrics")
        for metric, value in metrics.items() if isinstance(metrics, dict) else ():
            if isinstance(value, int | float):
                logged.setdefault(metric, []).append(float(value))
    return {f"{name}_{metric}": sum(values) / len(values) for metric, values in logged.items()}


def notes_metrics(rewards: Iterable[Reward], table: pl.DataFrame) -> dict[str, float | None]:
    """The figures of all rewards' notes in a table's columns `note_<name>`."""
    columns = [(reward, f"note_{reward_name(reward)}") for reward in rewards]
    figures = [note_metrics(reward, table[column]) for reward, column in columns if column in table.columns]
    return {name: value for some in figures for name, value in some.items()}
