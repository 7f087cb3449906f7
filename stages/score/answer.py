r"""Cuts the answer out of a completion. Pure."""

import re
from typing import Literal

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def extract(completion: str, where: Literal["text", "answer_tag", "boxed"]) -> str | None:
    r"""The answer; None where the completion has none.

    Args:
        completion: the text.
        where: the whole `text`, the last `<answer>…</answer>`, or the last `\boxed{…}` with its braces balanced.
    """
    match where:
        case "text":
            return completion.strip() or None
        case "answer_tag":
            found = ANSWER.findall(completion)
            return (found[-1].strip() or None) if found else None
        case "boxed":
            return boxed(completion)


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` whose braces balance."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len(r"\boxed{")
    for at in range(begin - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin:at].strip() or None
    return None
