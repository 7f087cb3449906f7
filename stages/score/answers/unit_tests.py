"""Tests of programs: how they are written, what a program is given, and whether what came back is right. Pure.

What a test expects stays here: a program is given its input alone, and what it gives back is compared as plain JSON.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.contract.errors import DataError

FENCE = "```"
WAYS = "{stdin, stdout} or {function, arguments, expected}"
CALL = """
def _call():
    import json, os, sys, types
    asked = json.loads(sys.stdin.read())
    channel = os.dup(1)
    os.dup2(2, 1)
    module = types.ModuleType("program")
    sys.modules["program"] = module
    exec(compile(asked["source"], "program.py", "exec"), module.__dict__)
    first, *names = asked["function"].split(".")
    found = getattr(module, first)
    if names and isinstance(found, type):
        found = found()
    for name in names:
        found = getattr(found, name)
    text = json.dumps(found(*asked["arguments"]))
    with open(channel, "w") as answer:
        answer.write(text)
_call()
"""
"""Calls a function of the program that its input holds, and prints what it gives; all else goes to the errors."""


@dataclass(frozen=True)
class Printing:
    """A test whose program reads `stdin` and prints `stdout`."""

    stdin: str
    stdout: str


@dataclass(frozen=True)
class Calling:
    """A test that calls a function of the program."""

    function: str
    """A name, or `Class.method`, of a class that is made without arguments."""
    arguments: tuple[Any, ...]
    expected: Any


Test = Printing | Calling


def read_tests(value: Any, where: str) -> list[Test]:
    """The tests of a prompt, at least one.

    Args:
        value: a list of `{stdin, stdout}` and `{function, arguments, expected}`; or `{inputs, outputs}`, two lists of
            texts; or the JSON text of either.
        where: of which prompt, for messages.

    Raises:
        DataError: anything else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: tests are wanted as JSON ({error})") from error
    if isinstance(value, Mapping) and value.get("fn_name") is None and {"inputs", "outputs"} <= value.keys():
        inputs, outputs = value["inputs"], value["outputs"]
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            raise DataError(f"{where}: `inputs` and `outputs` of its tests must be two lists of one length")
        value = [{"stdin": given, "stdout": wanted} for given, wanted in zip(inputs, outputs, strict=True)]
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: a list of tests is wanted, each {WAYS}; this is {value!r:.80}")
    return [_test(test, f"{where}, test {number}") for number, test in enumerate(value, 1)]


def _test(value: Any, where: str) -> Test:
    match value:
        case {"stdin": str(stdin), "stdout": str(stdout), **others} if not others:
            return Printing(stdin, stdout)
        case {"function": str(function), "arguments": list(arguments), "expected": expected, **others} if not others:
            if all(name.isidentifier() for name in function.split(".")):
                return Calling(function, tuple(arguments), expected)
    raise DataError(f"{where}: {WAYS} is wanted, this is {value!r:.80}")


def source(completion: str, language: str | None) -> str | None:
    """The program in a completion: its last closed code block of this language, or all of it where that is None."""
    if language is None:
        return completion if completion.strip() else None
    spelled = {language, "py", "python3"} if language == "python" else {language}
    last: str | None = None
    opened: str | None = None
    lines: list[str] = []
    for line in completion.split("\n"):
        mark = line.strip()
        if opened is None and mark.startswith(FENCE):
            opened, lines = mark.removeprefix(FENCE).strip().partition(" ")[0].lower(), []
        elif opened is not None and mark == FENCE:
            last, opened = ("\n".join(lines) if opened in spelled else last), None
        else:
            lines.append(line)
    return last if last and last.strip() else None


def asked(program: str, test: Test) -> tuple[str, bytes]:
    """What is run for a test, and its input."""
    match test:
        case Printing(stdin=stdin):
            return program, stdin.encode("utf-8", "replace")
        case Calling(function=function, arguments=arguments):
            call = {"source": program, "function": function, "arguments": arguments}
            return CALL, json.dumps(call).encode()


def passes(test: Test, printed: bytes, tolerance: float) -> bool:
    """Whether what a program printed is what the test expects.

    Text is compared line by line without white space at the ends; a number with a decimal point or an exponent, and
    JSON's floats, up to `tolerance` (relative, and absolute near 0); all else exactly.
    """
    text = printed.decode("utf-8", "replace")
    match test:
        case Printing(stdout=wanted):
            return _same_lines(wanted, text, tolerance)
        case Calling(expected=expected):
            try:
                return same(expected, json.loads(text), tolerance)
            except (ValueError, RecursionError):
                return False


def same(wanted: Any, got: Any, tolerance: float) -> bool:
    """Whether two values of plain JSON are equal; true and 1 are not."""
    match wanted, got:
        case (bool(), _) | (_, bool()):
            return wanted is got
        case (float(), int() | float()) | (int(), float()):
            return _near(wanted, got, tolerance)
        case list(), list():
            return len(wanted) == len(got) and all(same(a, b, tolerance) for a, b in zip(wanted, got, strict=True))
        case dict(), dict():
            return wanted.keys() == got.keys() and all(same(wanted[key], got[key], tolerance) for key in wanted)
    return type(wanted) is type(got) and bool(wanted == got)


def _near(wanted: float, got: float, tolerance: float) -> bool:
    try:
        return math.isclose(wanted, got, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an integer beyond all floats
        return False


def _same_lines(wanted: str, got: str, tolerance: float) -> bool:
    left, right = wanted.rstrip().split("\n"), got.rstrip().split("\n")
    return len(left) == len(right) and all(
        a.rstrip() == b.rstrip() or _same_words(a.split(), b.split(), tolerance)
        for a, b in zip(left, right, strict=True)
    )


def _same_words(wanted: list[str], got: list[str], tolerance: float) -> bool:
    return len(wanted) == len(got) and all(a == b or _close(a, b, tolerance) for a, b in zip(wanted, got, strict=True))


def _close(wanted: str, got: str, tolerance: float) -> bool:
    if not re.fullmatch(r"[+-]?(?=.*[.eE])\d*\.?\d*(?:[eE][+-]?\d+)?", wanted):
        return False
    try:
        return _near(float(wanted), float(got), tolerance)
    except ValueError:
        return False
