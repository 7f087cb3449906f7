"""Rewards of steps, from places in a text to tokens. Pure but for the tokenizer that it is given.

Dimensions: T tokens of a completion.
"""

from collections.abc import Callable, Sequence

from stages.score.verdict import Mark

Decode = Callable[[Sequence[int]], str]
"""Token ids → text, as the completion's text was decoded."""


def token_at(tokens: Sequence[int], end: int, decode: Decode) -> int:
    """The first token with which the decoded text has `end` characters; the last one where it never has.

    Decodes beginnings of the tokens, for the text of a token may depend on those before it; a longer beginning never
    has a shorter text.
    """
    low, high = 0, len(tokens) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(decode(tokens[: middle + 1])) >= end else (middle + 1, high)
    return low


def placed(tokens: Sequence[int], marks: Sequence[tuple[float, Mark]], decode: Decode) -> tuple[list[float], list[int]]:
    """What each token [T] earns by the steps of a row's marks, and the tokens, ascending, at which a step ends.

    Args:
        tokens: the completion's.
        marks: each reward's weight, and its mark on this row; those without steps earn nothing here.
        decode: token ids → text.
    """
    earned = [0.0] * len(tokens)
    ends: set[int] = set()
    for weight, mark in marks:
        for end, value in mark.steps or () if tokens else ():
            at = token_at(tokens, end, decode)
            earned[at] += weight * value
            ends.add(at)
    return earned, sorted(ends)
