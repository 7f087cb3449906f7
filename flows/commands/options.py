"""What several subcommands share: their options, the terminal, and how figures and JSON are written."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

console = Console()

Artifacts = Annotated[Path, typer.Option(help="Folder of all runs.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Sets a configuration field, e.g. update.epochs=2.")]
Json = Annotated[bool, typer.Option("--json", help="Writes JSON.")]
Run = Annotated[str, typer.Argument(help="Name of the run.")]


def figure(value: float | None) -> str:
    """A figure with four decimals."""
    return "–" if value is None else f"{value:.4f}"


def size(count: float) -> str:
    """Bytes, in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def say(text: str) -> None:
    """Writes a line as it is: no markup, no colours, not broken at the terminal's width."""
    console.print(escape(text), highlight=False, soft_wrap=True)


def write_json(data: Any) -> None:
    """Writes JSON to standard output."""
    print(json.dumps(data, ensure_ascii=False, default=str))


def list_stale(entries: list[dict[str, Any]]) -> int:
    """Writes what of a run's status is stale and why; returns how much it is."""
    stale = [
        f"{stage} of iteration {entry['iteration']}: {state['reason']}"
        for entry in entries
        for stage, state in entry["stages"].items()
        if state["status"] == "stale"
    ]
    if stale:
        more = [f"… and {len(stale) - 8} more"] if len(stale) > 8 else []
        console.print(
            "\n  ".join(["stale; `grpo train` makes it again:", *map(escape, stale[:8]), *more]), highlight=False
        )
    return len(stale)
