"""`grpo retain` and `grpo space`: what a run takes on the disk, and what of it may go."""

from contextlib import nullcontext
from typing import Annotated

import typer
from rich.table import Table

from flows.commands.options import Artifacts, Json, Run, Set, console, say, size, write_json
from flows.runs.access import ARTIFACTS
from stages.contract.errors import ConfigError

app = typer.Typer()


@app.command()
def retain(
    run: Run,
    set_: Set = None,
    yes: Annotated[bool, typer.Option("--yes", help="Removes it; without this it is only shown.")] = False,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Shows what the retention rule removes of a run's weights and optimizer states, and removes it with --yes.

    The rule is the run's `keep`, or what --set says, e.g. --set keep.last=2 --set keep.every=10.
    """
    from flows.config.loading import parse_overrides, with_settings
    from flows.runs.access import held, open_run
    from flows.runs.history import History
    from flows.runs.retention import plan, remove
    from flows.runs.staleness import examine

    paths, config = open_run(artifacts, run)
    overrides = parse_overrides(set_ or [])
    if foreign := [name for name in overrides if name.split(".")[0] != "keep"]:
        raise ConfigError(f"--set {foreign[0]}: only settings that begin with `keep.` decide what stays")
    keep = with_settings(config, overrides, "--set").keep
    if keep is None:
        raise ConfigError(f"{run} has no rule `keep`; give one, e.g. --set keep.last=2 --set keep.every=10")
    with held(paths, say) if yes else nullcontext():
        history = History(paths)
        last = history.last()
        states = examine(history, config, last)
        unfinished = next((state.iteration for state in states if state.status != "current"), last + 1)
        removals = plan(paths, config, keep, unfinished)
        if yes:
            remove(removals)
    for removal in removals:
        names = sorted({name.split("/")[0].removesuffix(".safetensors") for name in removal.files}) or ["all"]
        say(f"{removal.folder}: {', '.join(names)}, {size(removal.size)}")
    total = size(sum(removal.size for removal in removals))
    say(f"{total} {'freed' if yes else 'would be freed; --yes does it' if removals else 'to free: nothing to remove'}")


@app.command()
def space(run: Run, as_json: Json = False, artifacts: Artifacts = ARTIFACTS) -> None:
    """Shows what a run takes on the disk, by iteration and kind."""
    from flows.inspection.disk_usage import KINDS
    from flows.inspection.disk_usage import space as measure
    from flows.runs.access import open_run

    paths, _ = open_run(artifacts, run)
    rows = measure(paths)
    if as_json:
        return write_json({"run": run, "space": rows})
    columns = (*KINDS, "all", "shared")
    table = Table(
        title=f"{run}, {paths.root}", caption="shared: has a name in another run too", box=None, pad_edge=False
    )
    for column in ("k", *columns):
        table.add_column(column, justify="right", no_wrap=True)
    totals = {"of": "all"} | {column: sum(int(row[column]) for row in rows) for column in columns}
    for row in (*rows, totals):
        table.add_row(str(row["of"]), *(size(int(row[column])) for column in columns))
    console.print(table)
    return None
