"""Names the stages: their order, the folders they write, and what their progress counts."""

from typing import Literal

StageName = Literal["prompts", "warmstart", "reward_model", "sample", "score", "advantage", "update", "evaluate"]
START = ("prompts", "warmstart")
REWARD_MODEL = "reward_model"
"""The stage of iteration 0 that a run has which trains a reward model of its own."""
TAKEN_IN = (*START, REWARD_MODEL)
"""Stages whose outputs hold what they read from outside, once and for all: no change of it makes them stale."""
ITERATION = ("sample", "score", "advantage", "update")
UNITS = {
    "warmstart": "optimizer steps",
    "reward_model": "optimizer steps",
    "sample": "completions",
    "score": "judgements",
    "advantage": "rows",
    "update": "optimizer steps",
    "evaluate": "completions",
}
"""What the progress of a stage counts."""


def place_of(stage: str) -> str:
    """The folder that a stage writes, inside its iteration."""
    return "update" if stage == "warmstart" else stage
