"""`grpo fork`, `compare`, `replay` and `lineage`: what is done with a run's history."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from flows.commands.options import Artifacts, Json, Run, Set, console, figure, say, write_json
from flows.runs.access import ARTIFACTS
from stages.contract.errors import ConfigError

app = typer.Typer()


@app.command()
def fork(
    run: Run,
    at: Annotated[int, typer.Option(min=0, help="The last iteration that both runs have.")],
    name: Annotated[str, typer.Option(help="Name of the new run.")],
    set_: Set = None,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Makes a run that shares another one's earlier iterations, without a copy, and goes on from there."""
    from flows.config.loading import parse_overrides
    from flows.runs.forking import fork as make

    new = make(artifacts, run, at, name, parse_overrides(set_ or []), say)
    where = "" if artifacts == ARTIFACTS else f" --artifacts {artifacts}"
    say(f"{new.root}: shares iterations 0 to {at} of {run}; `grpo resume {name}{where}` goes on")


@app.command()
def compare(
    run: Run,
    other: Annotated[str, typer.Argument(help="Name of the other run.")],
    plot: Annotated[Path | None, typer.Option(help="A PNG file to draw the figures of both into.")] = None,
    as_json: Json = False,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Sets two runs side by side: where they part, what differs, and their figures by iteration."""
    from flows.inspection.compare import FIGURES
    from flows.inspection.compare import compare as side_by_side
    from flows.inspection.compare import plot as draw
    from flows.runs.access import open_run
    from flows.runs.history import History

    if plot is not None and (plot.suffix != ".png" or not plot.parent.is_dir()):
        raise ConfigError(f"--plot {plot}: a file that ends in .png, in a folder that is there, is wanted")
    (one, left), (two, right) = open_run(artifacts, run), open_run(artifacts, other)
    compared = side_by_side(History(one), left, History(two), right)
    if plot is not None and (picture := draw(compared)) is not None:
        plot.write_bytes(picture)
    if as_json:
        return write_json(compared)
    table = Table(title=f"1 = {run}, 2 = {other}", box=None, pad_edge=False)
    table.add_column("k", justify="right")
    for title in ("reward", "held-out", "KL", "length"):
        for i in (1, 2):
            table.add_column(f"{title}\n{i}", justify="right", no_wrap=True)
    for entry in compared["iterations"]:
        style = "bold" if entry["iteration"] == compared["policy"] else ""
        cells = [figure(value) for name in FIGURES for value in entry[name]]
        table.add_row(str(entry["iteration"]), *cells, style=style)
    console.print(table)
    for line in _parting(compared):
        say(line)
    return None


def _parting(compared: dict[str, Any]) -> list[str]:
    """Where two runs part and what differs there, in words."""
    one, other = compared["runs"]
    out = []
    for run, parent in zip(compared["runs"], compared["forked"], strict=True):
        out += [f"{run} was forked from {parent['run']} at iteration {parent['iteration']}"] if parent else []
    if (stage := compared["stage"]) is None:
        out.append("all that both have made is the same, byte for byte")
    else:
        policy = "" if compared["policy"] is None else f"; their policies from iteration {compared['policy']} on"
        out.append(f"they part at {stage['stage']} of iteration {stage['iteration']}{policy}")
    out += [f"  {name}: {mine} in {one}, {its} in {other}" for name, (mine, its) in compared["fields"].items()]
    if stage is not None and not compared["fields"]:
        out.append("  their configurations do not differ there")
        out += [
            f"  {name}: {mine} in {one}, {its} in {other}" for name, (mine, its) in compared["circumstances"].items()
        ]
    if not compared["heldout"]:
        out.append(
            "their held-out prompts or the settings of their evaluations differ: held-out success is not comparable"
        )
    return out


@app.command()
def replay(
    run: Run,
    iteration: Annotated[int, typer.Option(min=0, help="Iteration whose stages are done again.")],
    stage: Annotated[str | None, typer.Option(help="Only this stage.")] = None,
    set_: Set = None,
    as_json: Json = False,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Does stages again in a scratch place and says whether the bytes are equal; nothing in the run changes.

    The hardware's settings are those of the first time, or what --set hardware.threads=4 says. Exit code 1: not equal.
    """
    from flows.config.loading import parse_overrides, with_settings
    from flows.execution.replay import replay as again
    from flows.runs.access import open_run

    paths, config = open_run(artifacts, run)
    overrides = parse_overrides(set_ or [])
    if foreign := [name for name in overrides if not name.startswith("hardware.")]:
        raise ConfigError(
            f"--set {foreign[0]}: a replay changes nothing but the hardware; `grpo stage` reruns otherwise"
        )
    with_settings(config, overrides, "--set")  # refuses what no configuration takes
    hardware = {name.removeprefix("hardware."): value for name, value in overrides.items()}
    results = again(paths, config, iteration, stage, hardware)
    if as_json:
        write_json({"run": run, "stages": results})
    else:
        for result in results:
            _tell_replay(result)
    if not all(result["equal"] for result in results):
        raise typer.Exit(1)


def _tell_replay(result: dict[str, Any]) -> None:
    same = sum(output["equal"] for output in result["outputs"].values())
    equal = "equal" if result["equal"] else "not equal"
    say(f"{result['stage']} of iteration {result['iteration']}: {equal}, {same} of {len(result['outputs'])} files")
    for name, output in result["outputs"].items():
        if not output["equal"]:
            say(f"  {name}: {_apart(output)}")
            for column, far in output.get("columns", {}).items():
                say(f"    {column}: {_apart(far)}")
    if not result["equal"]:
        for name, (old, new) in result["circumstances"].items():
            say(f"  {name}: {'not noted' if old is None else old} then, {new} now")
        for reason in result["varying"]:
            say(f"  {reason}")
        if not result["circumstances"] and not result["varying"]:
            say(
                "  nothing that a manifest notes (code, packages, host, device, threads, deterministic, processor) is "
                "another than the first time: this is a fault of grpo-flows; please report it with the manifest"
            )


def _apart(far: dict[str, Any]) -> str:
    """One difference in words: of a file, or of a column."""
    parts = [far["told"]] if "told" in far else []
    if "tensors" in far:
        parts.append(f"{far['tensors']} of {far['of']} tensors differ, by up to {far['greatest']:.3g} in {far['in']}")
    elif "rows" in far:
        parts.append(f"{far['rows']}{' of ' + str(far['of']) if 'of' in far else ''} rows differ")
    if "greatest" in far and "tensors" not in far and far["greatest"] is not None:
        parts.append(f"by up to {far['greatest']:.3g}")
    if far.get("lengths"):
        parts.append(f"{far['lengths']} in length")
    parts += [
        f"{far[name]} rows only {told}" for name, told in (("only_old", "there"), ("only_new", "here")) if far.get(name)
    ]
    if far.get("types"):
        parts.append(f"not of one kind: {', '.join(far['types'])}")
    if far.get("first"):
        parts.append("first " + "; ".join(" ".join(map(str, row.values())) for row in far["first"]))
    return ", ".join(parts)


@app.command()
def lineage(
    path: Annotated[Path, typer.Argument(help="A file of a run, or a folder in a stage's folder.")],
    as_json: Json = False,
) -> None:
    """Shows what a file came from, stage by stage, back to the first policy and the prompts."""
    from flows.inspection.lineage import lineage as trace

    traced = trace(path)
    if as_json:
        return write_json(traced)
    tree = Tree(escape(f"{traced['run']}: {traced['file']} ({traced['told']})"), highlight=False)
    at, branch = None, tree
    for entry in traced["stages"]:
        if (entry["run"], entry["iteration"]) != at:
            at = entry["run"], entry["iteration"]
            branch = tree.add(escape(f"iteration {entry['iteration']}{_of(entry['run'], traced['run'])}"))
        leaf = branch.add(escape(_maker(entry)))
        for line in _inputs(entry):
            leaf.add(escape(line))
    console.print(tree)
    return None


def _of(run: str, own: str) -> str:
    """Names a run where it is another one."""
    return "" if run == own else f" of the run {run}"


def _maker(entry: dict[str, Any]) -> str:
    """A stage of a lineage in words."""
    parts = [entry["stage"]]
    if entry["superseded"]:
        parts.append(entry["folder"])
    if entry["shared_with"]:
        parts.append(f"shared with {entry['shared_with']}")
    parts += [f"with {name}={value}" for name, value in entry["overrides"].items()]
    if entry["source"] and not entry["inputs"]:
        parts.append("from " + ", ".join(f"{name} {_brief(value)}" for name, value in entry["source"].items()))
    return " · ".join(parts)


def _brief(value: Any) -> str:
    """A setting; of a list only how long it is."""
    return f"({len(value)})" if isinstance(value, list) else str(value)


def _inputs(entry: dict[str, Any]) -> list[str]:
    """What a stage read, a line for each maker; of a folder, how many files."""
    lines: dict[str, dict[str, list[str]]] = {}
    for part in entry["inputs"]:
        title = "made by what is not there any more" if part["lost"] else "from outside"
        if part["maker"] is not None:
            _, k, place = part["maker"].split("/")
            title = f"{place} of {int(k)}{_of(part['run'], entry['run'])}"
        top = part["name"] if part["maker"] is None else part["file"].split("/")[0]
        lines.setdefault(title, {}).setdefault(top, []).append(part["digest"][:8])
    return [
        f"{title}: {', '.join(f'{top} {_digests(digests)}' for top, digests in files.items())}"
        for title, files in lines.items()
    ]


def _digests(digests: list[str]) -> str:
    return digests[0] if len(digests) == 1 else f"({len(digests)} files)"
