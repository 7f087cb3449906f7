"""The table of `python -m tests.benchmarks`: rows, what is kept of them between commands, and the page."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks import circumstances, markdown

HEADER = ["what", "ours", "beside it", "ratio", "bar", "met"]


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    ours: str
    other: str = ""
    """TRL's, or what else it is held against."""
    ratio: float | None = None
    bar: str = ""
    """What is wanted, in words."""
    met: bool | None = None
    """None where nothing is wanted."""

    def cells(self) -> list[str]:
        """As text."""
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        met = "" if self.met is None else "yes" if self.met else "**no**"
        return [self.what, self.ours, self.other, ratio, self.bar, met]


def at_most(what: str, ours: float, other: float, bar: float, unit: str) -> Row:
    """A row whose ratio of ours to the other's is to be at most `bar`."""
    ratio = ours / other
    form = ".0f" if unit == "MiB" else ".2f" if ours < 10 else ".1f"
    return Row(what, f"{ours:{form}} {unit}", f"{other:{form}} {unit}", ratio, f"≤ {bar:g}", ratio <= bar)


def limit(what: str, seconds: float, bar: float) -> Row:
    """A row whose seconds are to be at most `bar`."""
    return Row(what, f"{seconds:.2f} s", "", None, f"≤ {bar:g} s", seconds <= bar)


@dataclass(frozen=True)
class Part:
    """What one part of the benchmark found."""

    rows: list[Row]
    told: str
    """How it was measured, and what is not in the table."""
    when: str = ""
    """Circumstances."""


def keep(results: Path, key: str, part: Part, order: list[str]) -> dict[str, Part]:
    """Puts a part, a name or `NAME, so many threads`, beside those that are kept; all of them, in order of names."""
    path = results / "fast.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept[key] = asdict(part) | {"when": circumstances()}
    kept = {key: kept[key] for key in sorted(kept, key=lambda key: place(key, order))}
    results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return read(results)


def place(key: str, order: list[str]) -> tuple[int, str]:
    """Where a part stands: by its name, which comes first in its key, then by what follows."""
    name, _, rest = key.partition(", ")
    return order.index(name), rest


def read(results: Path) -> dict[str, Part]:
    """The parts that are kept."""
    kept = json.loads((results / "fast.json").read_text(encoding="utf-8"))
    return {name: Part([Row(**row) for row in part["rows"]], part["told"], part["when"]) for name, part in kept.items()}


def table(parts: dict[str, Part], bars: bool = False) -> str:
    """The rows of all parts; with `bars` only those of which something is wanted."""
    rows = [row for part in parts.values() for row in part.rows]
    return markdown(HEADER, [row.cells() for row in rows if row.met is not None or not bars])


def put_into(readme: Path, table: str) -> None:
    """Puts the table in place of the one that a page has."""
    first = "| " + " | ".join(HEADER) + " |"
    before, found, after = readme.read_text(encoding="utf-8").partition(first)
    assert found, f"{readme} has no such table"
    readme.write_text(before + table + "\n\n" + after.partition("\n\n")[2], encoding="utf-8")


def page(parts: dict[str, Part], pictures: list[Path]) -> str:
    """The page."""
    notes = "\n".join(f"- **{name}**: {part.told} {part.when}" for name, part in parts.items())
    shown = "\n".join(f"![{path.stem}]({path.name})" for path in pictures)
    return f"# How fast\n\n{table(parts)}\n\n{notes}\n\n{shown}\n"
