"""Equations in a text and whether they hold: exact fractions, the four operations, nothing that can run long. Pure."""

import re
from collections.abc import Iterator
from fractions import Fraction

CALCULATION = re.compile(r"[\d\s.()+\-−*×·/÷=]+")
"""Numbers, operations, brackets and signs of equality, as many as stand together."""
START = re.compile(r"[\d(+\-−]")
END = re.compile(r"\d\)*")
TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?)|([-+*/()]))")
SPELLED = str.maketrans({"−": "-", "×": "*", "·": "*", "÷": "/"})
LONGEST = 300
"""Characters of an equation that is looked at; a longer one is none."""


def holds(line: str) -> bool | None:
    """Whether all sides of the line's last equation are equal; None where it states none that can be read."""
    found = [equation for equation in equations(line) if len(equation) <= LONGEST]
    if not found:
        return None
    sides = [value(side) for side in found[-1].split("=")]
    if None in sides:
        return None
    return len(set(sides)) == 1


def equations(line: str) -> Iterator[str]:
    """Calculations with at least one sign of equality, from a first number, bracket or sign to a last number.

    Each letter is looked at a few times only, however long the line is.
    """
    for match in CALCULATION.finditer(line):
        start, ends = START.search(match[0]), [end.end() for end in END.finditer(match[0])]
        if start and ends and "=" in (equation := match[0][start.start() : ends[-1]]):
            yield equation


def value(text: str) -> Fraction | None:
    """The exact value of an expression of the four operations; None where it is none, or divides by 0."""
    try:
        tokens = _tokens(text.translate(SPELLED))
        result, rest = _sum(tokens, 0)
    except (ValueError, ZeroDivisionError, RecursionError):
        return None
    return result if rest == len(tokens) - 1 else None


def _tokens(text: str) -> list[str]:
    tokens, at, text = [], 0, text.strip()
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise ValueError(text)
        tokens.append(match[1] or match[2])
        at = match.end()
    return [*tokens, ""]


def _sum(tokens: list[str], at: int) -> tuple[Fraction, int]:
    total, at = _product(tokens, at)
    while tokens[at] in {"+", "-"}:
        sign = 1 if tokens[at] == "+" else -1
        term, at = _product(tokens, at + 1)
        total += sign * term
    return total, at


def _product(tokens: list[str], at: int) -> tuple[Fraction, int]:
    result, at = _factor(tokens, at)
    while tokens[at] in {"*", "/"}:
        by, after = _factor(tokens, at + 1)
        result, at = (result * by if tokens[at] == "*" else result / by), after
    return result, at


def _factor(tokens: list[str], at: int) -> tuple[Fraction, int]:
    token = tokens[at]
    if token in {"+", "-"}:
        inner, at = _factor(tokens, at + 1)
        return (inner if token == "+" else -inner), at
    if token == "(":
        inner, at = _sum(tokens, at + 1)
        if tokens[at] != ")":
            raise ValueError("a bracket that is not closed")
        return inner, at + 1
    if token in {"", "*", "/", ")"}:
        raise ValueError("a number is missing")
    return Fraction(token), at + 1


def lines(text: str, separator: str) -> Iterator[tuple[int, str]]:
    """The parts of a text between separators, each with the place in the text where it ends."""
    end = 0
    for part in text.split(separator):
        end += len(part)
        yield end, part
        end += len(separator)
