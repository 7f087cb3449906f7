"""`grpo status`, `show`, `sql`, `report`, `verify` and `fields`: what only reads."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.options import Artifacts, Json, Run, console, figure, list_stale, say, size, write_json
from flows.runs.access import ARTIFACTS
from stages.contract.errors import ConfigError

COLOURS = {"stale": "yellow", "missing": "dim"}

app = typer.Typer()


@app.command()
def status(run: Run, as_json: Json = False, artifacts: Artifacts = ARTIFACTS) -> None:
    """Shows which stages of a run are current, stale or missing, and its figures."""
    from flows.config.stages import ITERATION, REWARD_MODEL, START
    from flows.inspection.queries import status as read
    from flows.runs.access import open_run
    from flows.runs.forking import read_fork

    paths, config = open_run(artifacts, run)
    entries, parent = read(paths, config), read_fork(paths)
    if as_json:
        forked = {"forked": {"run": parent.run, "iteration": parent.iteration}} if parent else {}
        return write_json({"run": run, **forked, "iterations": entries})
    if parent:
        say(f"forked from {parent.run} at iteration {parent.iteration}")
    table = Table(
        title=f"{run}, {paths.root}", caption="a stage that is current shows seconds and rows", box=None, pad_edge=False
    )
    table.add_column("k", justify="right")
    for name in (*ITERATION, "evaluate"):
        table.add_column(name, no_wrap=True)
    for column in ("reward", "held-out", "KL"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in entries:
        cells = [_cell(entry["stages"].get(name)) for name in (*ITERATION, "evaluate")]
        figures = [figure(entry["metrics"][name]) for name in ("reward_mean", "heldout_success", "kl")]
        table.add_row(str(entry["iteration"]), *cells, *figures)
    for name in (*START, REWARD_MODEL):
        if name in entries[0]["stages"]:
            console.print(f"{name}: {_cell(entries[0]['stages'][name])}")
    console.print(table)
    _list_pruned(entries)
    list_stale(entries)
    return None


@app.command()
def show(
    run: Run,
    iteration: Annotated[int | None, typer.Option(help="Iteration; without it the last one that was scored.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Id of a prompt, or its beginning.")] = None,
    best: Annotated[int | None, typer.Option(min=1, help="Only so many, of the highest rewards.")] = None,
    worst: Annotated[int | None, typer.Option(min=1, help="Only so many, of the lowest rewards.")] = None,
    as_json: Json = False,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Shows completions with their rewards and advantages."""
    from flows.inspection.queries import completions
    from flows.runs.access import open_run

    if best is not None and worst is not None:
        raise ConfigError("--best and --worst: choose one")
    paths, _ = open_run(artifacts, run)
    k, rows = completions(paths, iteration, prompt, best, worst)
    if as_json:
        return write_json({"run": run, "iteration": k, "completions": rows})
    console.print(f"[bold]{run}, iteration {k}[/bold]: {len(rows)} completions")
    before = None
    for row in rows:
        if row["prompt_id"] != before:
            console.rule(f"prompt {row['prompt_id']} · {escape(row['task'])}", align="left")
            console.print(f"[cyan]{escape(row['prompt'])}[/cyan]", highlight=False)
            if row["answer"] is not None:
                console.print(f"[dim]answer {escape(row['answer'])}[/dim]", highlight=False)
            before = row["prompt_id"]
        console.print(f"[dim]{_marks(row)}[/dim]", highlight=False)
        console.print(f"  {escape(row['completion'])}", highlight=False)
        for note in _notes(row):
            console.print(f"  [dim]{escape(note)}[/dim]", highlight=False)
    return None


@app.command()
def sql(
    run: Run,
    query: Annotated[str, typer.Argument(help="E.g. 'select iteration, avg(reward) from scores group by iteration'.")],
    as_json: Json = False,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Asks the tables of all iterations by SQL.

    They are rollouts, scores, advantages, steps, evaluation, heldout_rollouts, heldout_scores, and of iteration 0
    prompts, heldout_prompts, demonstrations and supervised_steps. Each has a column `iteration`.
    """
    import polars as pl

    from flows.inspection.queries import sql as ask
    from flows.runs.access import open_run

    paths, _ = open_run(artifacts, run)
    frame = ask(paths, query)
    if as_json:
        return write_json(frame.to_dicts())
    with pl.Config(tbl_rows=100, tbl_cols=-1, fmt_str_lengths=80, tbl_hide_dataframe_shape=True, tbl_width_chars=200):
        print(frame)
    return None


@app.command()
def report(
    run: Run,
    to: Annotated[Path | None, typer.Option(help="A file ending in .html or .md; without it RUN.html.")] = None,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Writes a run as one page: figures, curves, best and worst completions, what is stale and why, warnings."""
    from flows.inspection.report import as_html
    from flows.inspection.report import report as page_of
    from flows.runs.access import open_run
    from flows.runs.history import History

    file = to or Path(f"{run}.html")
    if file.suffix not in (".html", ".md"):
        raise ConfigError(f"--to {file}: the name of a page ends in .html or .md")
    paths, config = open_run(artifacts, run)
    page = page_of(History(paths), config)
    file.write_text(page if file.suffix == ".md" else as_html(page, run), encoding="utf-8")
    say(f"{file}: {run} up to iteration {History(paths).last()}")


@app.command()
def verify(run: Run, as_json: Json = False, artifacts: Artifacts = ARTIFACTS) -> None:
    """Checks every file of every stage against its manifest, the manifests against each other, and the run's records.

    What is wrong is named with the stage to run again, or what else to do, and the exit code is 1.
    """
    from flows.inspection.verify import verify as check
    from flows.runs.access import open_run

    paths, _ = open_run(artifacts, run)
    verdict = check(paths)
    if as_json:
        write_json({"run": run, **asdict(verdict)})
    else:
        for problem in verdict.problems:
            remedy = problem.remedy if problem.stage is None else f"`{problem.remedy}`"
            say(f"{problem.file}: {problem.problem}; {remedy}")
        checked = f"{verdict.stages} stages, {verdict.files} files, {size(verdict.size)}"
        checked += f" ({verdict.pruned} more were removed by the retention rule)" if verdict.pruned else ""
        told = f"{len(verdict.problems)} problems" if verdict.problems else "all as their manifests say"
        say(f"{run}: {checked}: {told}")
    if verdict.problems:
        raise typer.Exit(1)


@app.command()
def fields() -> None:
    """Lists the configuration's fields with their defaults and meanings, as Markdown."""
    from flows.config.reference import markdown

    print(markdown())


def _list_pruned(entries: list[dict[str, Any]]) -> None:
    """Says of which iterations the retention rule removed what."""
    from flows.runs.history import ranges

    gone: dict[str, list[int]] = {}
    for entry in entries:
        names = entry["stages"].get("update", {}).get("pruned", [])
        for what in dict.fromkeys("policy" if name.startswith("policy/") else name.split("/")[0] for name in names):
            gone.setdefault(what.removesuffix(".safetensors"), []).append(entry["iteration"])
    if gone:
        told = "; ".join(f"{what} of {ranges(ks)}" for what, ks in gone.items())
        say(f"removed by the retention rule: {told}")


def _cell(state: dict[str, Any] | None) -> str:
    if state is None:
        return ""
    if state["status"] != "current":
        return f"[{COLOURS[state['status']]}]{state['status']}[/]"
    rows = "" if state["rows"] is None else f" {state['rows']}"
    return f"[green]{state['seconds']:.1f}s[/]{rows}"


def _earned(row: dict[str, Any]) -> str:
    """What each reward gave, where several judged the completion or could have."""
    judged = {name.removeprefix("status_"): row[name] for name in row if name.startswith("status_")}
    told = [
        f"{name} {figure(row[f'reward_{name}']) if status == 'ok' else status}"
        for name, status in judged.items()
        if status not in (None, "null")
    ]
    return f" ({', '.join(told)})" if len(judged) > 1 and told else ""


def _notes(row: dict[str, Any]) -> Iterator[str]:
    """What judges said of the completion."""
    for name in (name for name in row if name.startswith("note_") and row[name] is not None):
        said = json.loads(row[name]).get("said")
        if said is not None:
            yield f"{name.removeprefix('note_')}: {' '.join(str(said).split())}"


def _marks(row: dict[str, Any]) -> str:
    parts = [f"#{row['sample']}", f"reward {figure(row['reward'])}{_earned(row)}"]
    if row.get("advantage") is not None:
        parts.append(f"advantage {row['advantage']:+.3f}")
    if row.get("reason"):
        parts.append(f"not trained on: {row['reason']}")
    if row["error"]:
        parts.append(f"failed: {row['error']}")
    parts.append(f"ended by {row['finish_reason']}")
    return escape(" · ".join(parts))
