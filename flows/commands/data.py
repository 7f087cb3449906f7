"""`grpo data`: what a configuration's prompts are."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.options import Artifacts, Json, Set, console, say, write_json
from flows.runs.access import ARTIFACTS

app = typer.Typer()

BARS = " ▁▂▃▄▅▆▇█"


@app.command()
def data(
    config: Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/quickstart.yaml.")],
    set_: Set = None,
    samples: Annotated[int, typer.Option(min=0, help="Prompts to show as the model will see them.")] = 3,
    as_json: Json = False,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Shows a configuration's prompts: counts, lengths, duplicates and leaks, what will be drawn; starts no run."""
    from flows.config.loading import parse_overrides, read_config
    from flows.inspection.prompts import look_at

    resolved = read_config(config, parse_overrides(set_ or []))
    found = look_at(resolved, samples, artifacts)
    if as_json:
        return write_json(found)
    prompts = found["prompts"]
    console.print(
        f"[bold]{escape(str(config))}[/bold]: {prompts['read']:,} prompts read, {prompts['train']:,} to train on, "
        f"{prompts['heldout']:,} held out",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_groups(found))
    for line in (*_left_out(found), *_judged(found)):
        say(line)
    for warning in found["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False, soft_wrap=True)
    _print_lengths(found["tokens"])
    _print_drawing(found)
    for sample in found["samples"]:
        _print_sample(sample)
    return None


def _groups(found: dict[str, Any]) -> Table:
    """A row for each source, task and level; a column that says nothing anywhere is left out."""
    rows = found["groups"]
    table = Table(box=None, pad_edge=False)
    optional = [name for name in ("source", "level") if any(row[name] is not None for row in rows)]
    for name in ("source", "task", "level"):
        if name == "task" or name in optional:
            table.add_column(name, overflow="fold", justify="right" if name == "level" else "left")
    for name in ("read", "train", "held out"):
        table.add_column(name, justify="right", no_wrap=True)
    unanswered = any(row["answered"] < row["train"] + row["heldout"] for row in rows)
    measured = any(row.get("most") is not None for row in rows)
    if unanswered:
        table.add_column("answers", justify="right")
    if measured:
        for name in ("median", "95 %", "most"):
            table.add_column(f"tokens\n{name}" if name == "median" else f"\n{name}", justify="right", no_wrap=True)
        table.add_column("too\nlong", justify="right")
    for row in rows:
        cells = [] if "source" not in optional else [escape(row["source"] or "–")]
        cells.append(escape(row["task"] or "–"))
        cells += [] if "level" not in optional else ["–" if row["level"] is None else str(row["level"])]
        cells += [f"{row[name]:,}" if row[name] is not None else "–" for name in ("read", "train", "heldout")]
        cells += [f"{row['answered']:,}"] if unanswered else []
        if measured:
            cells += ["–" if row[name] is None else f"{row[name]:,}" for name in ("median", "p95", "most")]
            cells.append(f"[red]{row['too_long']}[/red]" if row["too_long"] else "")
        table.add_row(*cells)
    return table


def _left_out(found: dict[str, Any]) -> list[str]:
    parts = [f"{count:,} {reason}" for reason, count in found["dropped"].items()]
    return [f"left out: {', '.join(parts)}"] if parts else []


def _judged(found: dict[str, Any]) -> list[str]:
    """The tasks that each reward judges."""
    tasks: dict[str, dict[str, None]] = {}
    for row in found["groups"]:
        for name in row["rewards"]:
            tasks.setdefault(name, {})[row["task"]] = None
    return [f"reward {name}: judges {', '.join(judged)}" for name, judged in tasks.items()]


def _print_lengths(tokens: dict[str, Any]) -> None:
    if not tokens["measured"]:
        return
    highest = max(tokens["histogram"])
    bars = "".join(BARS[-(-count * (len(BARS) - 1) // highest)] for count in tokens["histogram"])
    spread = f"{tokens['least']} [cyan]{bars}[/cyan] {tokens['most']}"
    told = spread if tokens["most"] > tokens["least"] else f"{tokens['most']} each"
    console.print(
        f"\n[bold]tokens[/bold]  {told}; of {tokens['measured']:,} prompts; longer than {tokens['limit']} is not drawn",
        highlight=False,
        soft_wrap=True,
    )


def _print_drawing(found: dict[str, Any]) -> None:
    """What the iterations draw, part by part, and when levels are opened."""
    say(
        f"\neach of {found['iterations']} iterations draws {found['an_iteration']} prompts, "
        f"{found['group_size']} completions of each"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("source", "weight", "share", "prompts", "an iteration", "passes"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for row in found["drawing"]["sources"]:
        passes = "–" if row["passes"] is None else f"{row['passes']:.2f}"
        figures = (f"{row['weight']:g}", f"{row['share']:.1%}", f"{row['prompts']:,}", f"{row['an_iteration']:.1f}")
        table.add_row(escape(row["source"]) or "all", *figures, passes)
    console.print(table)
    curriculum = found["curriculum"]
    if curriculum and curriculum["type"] == "success":
        say(
            f"curriculum: drawn by weights from {curriculum['floor']:g} (all right, or none) to 1 (half right, or not "
            f"drawn in the last {curriculum['window']} iterations)"
        )
    for row in found["drawing"]["levels"]:
        opened = f"from iteration {row['from']} on"
        if row["from"] is None:
            opened = f"once {curriculum['success']:.0%} of the level below succeed"
        say(f"level {row['level']}: {row['prompts']:,} prompts, {opened}")


def _print_sample(sample: dict[str, Any]) -> None:
    from flows.inspection.report import visible

    level = None if sample["level"] is None else f"level {sample['level']}"
    parts = [part for part in (sample["source"], sample["task"], level) if part is not None]
    tokens = f" · {sample['tokens']} tokens" if "tokens" in sample else ""
    console.print()
    console.rule(f"{sample['prompt_id']} · {escape(' · '.join(parts))}{tokens}", align="left")
    console.print(f"[cyan]{escape(visible(sample['text']))}[/cyan]", highlight=False)
    if sample.get("read_as") is not None:
        console.print(f"[yellow]its tokens say:[/yellow] {escape(visible(sample['read_as']))}", highlight=False)
    if sample["answer"] is not None:
        console.print(f"[dim]answer {escape(visible(sample['answer']))}[/dim]", highlight=False)
