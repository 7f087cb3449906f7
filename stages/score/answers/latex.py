r"""Reads mathematical answers without a computer algebra system: one spelling, exact numbers, shapes. Pure."""

import re
from fractions import Fraction

from stages.score.answers.extract import boxed

Pair = tuple[str, str]
"""The right answer and the one that was found, both clean."""
LONGEST = 1000
"""Characters of an answer that is looked at; longer ones are wrong."""
NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?")
FRACTION = re.compile(r"([+-]?)(?:(\d+)(?: +|(?=\\)))?(?:\\[dtc]?frac *\{(\d+)\} *\{(\d+)\}|(\d+) */ *(\d+))")
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
REPLACED = {  # in this order
    r"^([\s$*(]*)~": r"\1\\sim ",  # elsewhere it is a space
    r"(?<=\d)\\[!,](?=\d{3})": "",
    r"(?<!\\)\\[!,:; ]|\\q?quad\b|\\displaystyle|\\\$|~": " ",
    r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])": "",
    r"\\text *\{ *(?:and|or) *\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|\{,\}": ",",
    r"\\(?:text|mathrm) *\{ *percent *\}|\bpercent\b|(?<!\\)%": r"\\%",
    "[−–]": "-",
    "π": r"\\pi ",
    "∞": r"\\infty ",
    "√": r"\\sqrt ",
    "[×⋅·]": r"\\cdot ",
    "≤|<=": r"\\le ",
    "≥|>=": r"\\ge ",
    "°": r"^\\circ ",
    r"\s+": " ",
}
SPACE = re.compile(r" +(?![\w ])|(?<!\w) +")
DELIMITERS = re.compile(r"^\\[(\[]|\\[)\]]$")
PROSE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}(?: +[a-zA-Z]{2,}){2}")
VARIABLE = re.compile(r"(?:^|(?<=[,;])) *(\\?[a-zA-Z]+(?:_\{?\w+\}?)?|[a-zA-Z]?\([a-z](?:, *[a-z])*\)) *=")
INEQUALITY = re.compile(r"[<>]|\\(?:[lg]eq?|[lg]t)(?![a-zA-Z])")
RELATION = re.compile(r"\\(?:approx|simeq|sim|cong|equiv|neq?|to|mapsto|propto)(?![a-zA-Z])|[≈≠≃≅≡→]")
"""What makes a number one side of a statement about it."""
BASE = re.compile(r"\d *_\{? *(\w*)")
"""The base of a number, of which math-verify knows nothing."""
WORDS = r"""[kcm]m|ft|feet|foot|in|inch(?:es)?|yards?|miles?|(?:kilo|centi|milli)?met(?:er|re)s?|kg|(?:kilo)?grams?|lbs?
    |pounds?|seconds?|minutes?|hours?|hrs?|days?|weeks?|months?|years?|degrees?|dollars?|cents?|euros?|units?|mph
    |lit(?:er|re)s?""".replace("\n    ", "")
UNIT = re.compile(
    rf"(?<=[\d}})]) *(?:\^ *\{{? *\\circ *\}}?|(?:\\(?:text|mathrm|mbox|rm) *\{{ *({WORDS}|[mgslh]) *\}}|({WORDS}))"
    r"(\^ *\{?[23]\}?)?)$"
)


def clean(text: str) -> str:
    r"""The bare expression: out of `\boxed{…}` and dollar signs, with one spelling for each sign, thousands joined."""
    text = boxed(text) or text
    if len(text) > LONGEST:
        return text
    for pattern, replacement in REPLACED.items():
        text = re.sub(pattern, replacement, text)
    text = DELIMITERS.sub("", text.lstrip(" $*").rstrip(" $*.")).strip()
    in_brackets = re.search(r"[(\[]|\\\{|^\{", text)
    return text if in_brackets else THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)


def tight(text: str) -> str:
    """The text without the spaces that part nothing: those beside a sign, but not between two numbers or words."""
    return SPACE.sub("", text)


def comparable(gold: str, answer: str) -> Pair | None:
    """The two as math-verify may see them; None where it would call equal what is not.

    A number is not the equation, set, percentage, list or sentence that holds it, and a set is no tuple.
    `x =` before the answer, and a unit behind it, count only where the right answer has them too.
    """
    if gold == answer:
        return gold, answer
    added = ("%" in answer and "%" not in gold) or any(
        p.search(answer) and not p.search(gold) for p in (PROSE, RELATION)
    )
    if added or len(answer) > LONGEST or "$" in answer or not {*BASE.findall(answer)} <= {*BASE.findall(gold)}:
        return None
    gold = gold.removeprefix(r"\sim ")
    if "=" in answer and "=" not in gold:
        names = set(VARIABLE.findall(answer))
        answer = VARIABLE.sub("", answer).strip()
        if len(names) > 1 or "=" in answer:
            return None
    if not _shaped_alike(gold, answer):
        return None
    units = [UNIT.search(text) for text in (gold, answer)]
    if None in units or len({"".join(unit.groups("")) for unit in units if unit}) == 1:
        return UNIT.sub("", gold), UNIT.sub("", answer)
    return gold, answer


def _shaped_alike(gold: str, answer: str) -> bool:
    shapes = {shape(gold), shape(answer)}
    if shapes == {"list"}:
        return r"\pm" in gold + answer or entries(gold) == entries(answer)
    return len(shapes) == 1 or shapes == {"set", "list"} or INEQUALITY.search(gold) is not None


def shape(text: str) -> str:
    """`set`, `list`, `one`, `broken` where brackets do not balance, or the brackets of a tuple or interval."""
    text = re.sub(r"\\(?=[{}])| ", "", text)
    depth, commas, zeros = 0, set(), 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        zeros += depth == 0
        if letter in ",;":
            commas.add(depth)
    enclosed = zeros == 1 and text[0] in "([{" and text[-1] in ")]}"
    if depth != 0:
        return "broken"
    if enclosed and text[0] == "{":
        return "set"
    if enclosed and 1 in commas:
        return text[0] + text[-1]
    return "list" if 0 in commas or r"\pm" in text else "one"


def entries(text: str) -> int:
    """Entries of a list that is in no brackets."""
    depth, count = 0, 1
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        count += depth == 0 and letter in ",;"
    return count


def number(text: str) -> Fraction | None:
    r"""The exact value of a plain integer, decimal, fraction or mixed number (`1/2`, `\frac{1}{2}`, `3 1/2`)."""
    if len(text) > LONGEST:
        return None
    if NUMBER.fullmatch(text):
        return Fraction(text)
    if found := FRACTION.fullmatch(text):
        above, below = (int(part) for part in found.groups()[2:] if part is not None)
        value = None if below == 0 else int(found[2] or 0) + Fraction(above, below)
        return -value if value is not None and found[1] == "-" else value
    return None
