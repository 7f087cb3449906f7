"""What a reward is given and what it gives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Status = Literal["ok", "null", "timeout", "error"]
LONGEST = 300
"""Characters of an error's message."""


@dataclass(frozen=True)
class Item:
    """A completion to be judged."""

    completion: str
    tokens: int
    """Length of the completion in tokens."""
    task: str
    answer: str | None
    metadata: dict[str, Any]
    messages: tuple[dict[str, str], ...] = ()
    """What was asked, each with role and content."""
    conversational: bool = True
    """Whether the prompt was asked as a conversation, by the chat template; else as plain text."""
    token_ids: tuple[int, ...] = ()
    """The completion's tokens [T]."""
    prompt_id: str = ""
    sample: int = 0
    """Number of the completion among its prompt's."""


@dataclass(frozen=True)
class Mark:
    """A reward's word on one item: a value where the status is `ok`, a message where it failed."""

    value: float | None
    status: Status
    message: str | None = None
    steps: tuple[tuple[int, float], ...] | None = None
    """(place in the completion's text where a step ends, its reward); the value is the sum. None: judged as a whole."""
    note: str | None = None
    """What the reward said beside its value, as JSON: a judge's answer, what a function logged."""


def stepwise(steps: Sequence[tuple[int, float]]) -> Mark:
    """The rewards of a completion's steps; without any the value is 0."""
    total = ok(math.fsum(value for _, value in steps))
    return replace(total, steps=tuple(steps)) if total.status == "ok" else total


def ok(value: float) -> Mark:
    """A value; one that is not finite is an error of that row."""
    return Mark(float(value), "ok") if math.isfinite(value) else error(f"the reward is {value}")


def null() -> Mark:
    """The reward does not apply."""
    return Mark(None, "null")


def timeout(seconds: float) -> Mark:
    """The verifier ran out of time: neither right nor wrong."""
    return Mark(None, "timeout", f"no verdict in {seconds:g} s")


def error(message: str) -> Mark:
    """The verifier failed. The message is cut, and what no table can hold (half a surrogate pair) is replaced."""
    return Mark(None, "error", message[:LONGEST].encode("utf-8", "replace").decode())
