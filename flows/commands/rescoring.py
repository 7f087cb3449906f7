"""`grpo rescore`: what other rewards would have said."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.options import Artifacts, Json, Run, Set, console, figure, say, write_json
from flows.runs.access import ARTIFACTS

EXAMPLES = 3
"""Completions of each kind that are shown."""
SHOWN = 60
"""Characters of a prompt or completion that are shown."""

app = typer.Typer()


@app.command()
def rescore(
    run: Run,
    rewards: Annotated[
        Path | None, typer.Option(help="A YAML file with a list `rewards`, or a configuration; without it the run's.")
    ] = None,
    set_: Set = None,
    iterations: Annotated[str | None, typer.Option(help="E.g. 1:40, 7 or 30:; without it all.")] = None,
    to: Annotated[
        Path | None, typer.Option(help="The folder to make; without it `.rescored/RUN/NAME` in the artifacts.")
    ] = None,
    as_json: Json = False,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Scores stored completions with other rewards, without sampling, and compares; nothing in the run changes."""
    from flows.config.loading import parse_overrides
    from flows.execution.rescoring import iterations_of, other_rewards, place_for
    from flows.execution.rescoring import rescore as compare
    from flows.execution.secrets import asks_for_block
    from flows.inspection.terminal import Display
    from flows.runs import observers
    from flows.runs.access import open_run
    from flows.serving.prefect_server import prefect_server

    paths, config = open_run(artifacts, run)
    score = other_rewards(config, rewards, parse_overrides(set_ or []))
    ks = iterations_of(paths, iterations)
    place = to or place_for(paths, rewards.stem if rewards else "changed")
    # A judge's key may lie in a block of Prefect's server; nothing else here needs one.
    blocks = any(map(asks_for_block, score.rewards))
    server = prefect_server(artifacts) if blocks else nullcontext(lambda: None)
    with server as wait_for_server, Display(console, ks[-1]) as display, observers.watching(display):
        wait_for_server()
        compared = compare(paths, config, score, ks, place)
    if as_json:
        figures, moves = compared.rewards.to_dicts(), compared.iterations.to_dicts()
        return write_json({"run": run, "folder": str(place), "rewards": figures, "iterations": moves})
    _show_rewards(compared.rewards.to_dicts())
    _show_iterations(compared.rewards.to_dicts(), compared.iterations.to_dicts())
    _show_suspects(compared.iterations.to_dicts())
    for title, rows in compared.examples(paths, EXAMPLES).items():
        _show_examples(title, rows)
    say(f"{place}: completions.parquet, rewards.parquet, iterations.parquet")
    return None


def _show_rewards(figures: list[dict[str, Any]]) -> None:
    """Each reward over all iterations."""
    for heldout in (False, True):
        rows = [row for row in figures if row["heldout"] == heldout and row["iteration"] is None]
        if not rows:
            continue
        title = "held-out completions" if heldout else "completions"
        table = Table(title=f"{rows[0]['rows']} {title}", box=None, pad_edge=False, title_justify="left")
        table.add_column("reward", no_wrap=True)
        for column in ("mean", "spread", "correlation", "of ranks", "constant groups", "missing"):
            table.add_column(column, justify="right")
        for row in rows:
            name = row["reward"] if row["reward"] in ("old", "new") else f"  {row['reward']}"
            cells = [figure(row[column]) for column in ("mean", "std", "correlation", "rank_correlation")]
            groups = f"{row['constant_groups']} of {row['groups']}" if row["groups"] else "–"
            table.add_row(escape(name), *cells, groups, str(row["missing"] or ""))
        console.print(table)


def _show_iterations(figures: list[dict[str, Any]], moves: list[dict[str, Any]]) -> None:
    """What the other rewards would have changed in training, iteration by iteration."""
    means = {(row["iteration"], row["reward"]): row["mean"] for row in figures if not row["heldout"]}
    table = Table(
        title="what would have changed in training",
        caption="advantages: correlation of the old with the new; - → +: discouraged, would be encouraged",
        box=None,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    for column in ("k", "old", "new", "advantages", "- → +", "+ → -", "0 → ±", "± → 0"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in (row for row in moves if not row["heldout"]):
        k = row["iteration"]
        cells = [*(figure(means[k, name]) for name in ("old", "new")), figure(row["advantage_correlation"])]
        sides = (str(row[name]) for name in ("up", "down", "gained", "lost"))
        table.add_row("all" if k is None else str(k), *cells, *sides)
    console.print(table)


def _show_suspects(moves: list[dict[str, Any]]) -> None:
    """How many completions have a high reward, by the old and by the new ones, and something odd about them."""
    table = Table(title="suspects: a high reward, and", box=None, pad_edge=False, title_justify="left")
    for column in ("", "wrong answer", "odd length", "repetition"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in (row for row in moves if row["iteration"] is None):
        for side in ("old", "new"):
            counts = (str(row[f"{side}_{kind}"]) for kind in ("wrong", "length", "repetition"))
            table.add_row(f"{side}{', held-out' if row['heldout'] else ''}", *counts)
    console.print(table)


def _show_examples(title: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    console.print(f"[bold]{title}[/bold]")
    for row in rows:
        where = f"{row['iteration']}{' h' if row['heldout'] else ''} {row['prompt_id'][:8]} #{row['sample']}"
        told = f"{where} · old {figure(row['old'])} · new {figure(row['new'])}"
        extra = f" · {row['new_suspect']}" if row["new_suspect"] else f" · {row['sides']}"
        console.print(f"[dim]{escape(told + extra)}[/dim]", highlight=False)
        console.print(
            f"  [cyan]{escape(_short(row['prompt']))}[/cyan] {escape(_short(row['completion']))}", highlight=False
        )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
