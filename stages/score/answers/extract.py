r"""Cuts the answer out of a completion. Pure."""

import re
from typing import Literal

BRACE = re.compile(r"\\boxed\s*\{|\\?[{}]")
r"""What opens or closes; `\{` and `\}` are letters of the answer."""

NUMBER = re.compile(r"(?:(?<!\d)[-−])?\d+(?:,\d{3})*(?:\.\d+)?", re.ASCII)
"""An integer or decimal, thousands joined by commas or not; the sign stands directly before it."""

Place = Literal["text", "answer_tag", "boxed", "last_number"]


def extract(completion: str, where: Place) -> str | None:
    r"""The answer; None where the completion has none.

    Args:
        completion: the text.
        where: the whole `text`, the last `<answer>…</answer>`, the last `\boxed{…}` with its braces balanced,
            or the `last_number`.
    """
    match where:
        case "text":
            return completion.strip() or None
        case "answer_tag":
            return tagged(completion)
        case "boxed":
            return boxed(completion)
        case "last_number":
            numbers = NUMBER.findall(completion)
            return numbers[-1] if numbers else None


def tagged(text: str) -> str | None:
    """The content of the last `<answer>` that is closed before another opens."""
    closed = [part for part in text.split("<answer>")[1:] if "</answer>" in part]
    return (closed[-1].partition("</answer>")[0].strip() or None) if closed else None


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` whose braces balance."""
    opened: list[tuple[int, bool]] = []
    last = (-1, -1)
    for found in BRACE.finditer(text):
        if found[0].endswith("{") and found[0] != r"\{":
            opened.append((found.end(), len(found[0]) > 1))
        elif found[0] == "}" and opened:
            start, is_box = opened.pop()
            last = max(last, (start, found.start())) if is_box else last
    return text[slice(*last)].strip() or None if last[0] >= 0 else None
