"""`grpo train` and `grpo stage`: what trains."""

from pathlib import Path
from typing import Annotated, cast

import typer

from flows.commands.options import Artifacts, Run, Set, console, list_stale, say
from flows.runs.access import ARTIFACTS
from stages.contract.errors import ConfigError
from stages.contract.paths import RunPaths

app = typer.Typer()


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/quickstart.yaml.")],
    run: Annotated[str | None, typer.Option(help="Name of the run; without it the configuration's.")] = None,
    set_: Set = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Iterations to train up to.")] = None,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Trains a run, or goes on with it from the last stage in place."""
    from flows.config.loading import parse_overrides, read_config
    from flows.config.preflight import check_outside
    from flows.runs.access import check_same
    from flows.runs.history import History
    from flows.runs.phases import check_phase
    from flows.runs.staleness import examine
    from flows.serving.prefect_server import prefect_server

    overrides = parse_overrides(set_ or [])
    resolved = read_config(config, overrides | ({"run": run} if run else {}))
    last = iterations or resolved.iterations
    paths = RunPaths.named(artifacts, resolved.run)
    if not check_same(paths, resolved):
        check_outside(resolved)
        check_phase(artifacts, resolved)
    elif all(state.status == "current" for state in examine(History(paths), resolved, last)):
        console.print(f"run {resolved.run} is complete: {last} iterations, all current. Nothing to do.")
        return _farewell(paths, artifacts, last)
    with prefect_server(artifacts) as wait_for_server:
        import stages.sample.transformers_engine  # noqa: F401 - torch and transformers load while the server starts
        from flows.inspection.terminal import Display
        from flows.runs import observers
        from flows.train import train as flow

        with Display(console, last) as display, observers.watching(display):
            wait_for_server()
            flow(str(config), run, iterations, overrides, str(artifacts))
        console.print(f"done in {display.elapsed():.0f} s")
    return _farewell(paths, artifacts, last)


@app.command()
def reward_model(
    config: Annotated[Path, typer.Argument(help="A YAML file with a section reward_model, e.g. configs/rlhf.yaml.")],
    run: Annotated[str | None, typer.Option(help="Name of the run; without it the configuration's.")] = None,
    set_: Set = None,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Trains the reward model of a run from preferences; `grpo train` does too, and goes on from there."""
    from flows.config.loading import parse_overrides, read_config
    from flows.config.preflight import check_outside
    from flows.config.stages import REWARD_MODEL
    from flows.runs.access import check_same
    from flows.runs.history import History
    from flows.runs.phases import check_phase
    from flows.serving.prefect_server import prefect_server

    overrides = parse_overrides(set_ or [])
    resolved = read_config(config, overrides | ({"run": run} if run else {}))
    if resolved.reward_model is None:
        raise ConfigError(f"{config}: has no section `reward_model`: say there which pairs it is trained from")
    paths = RunPaths.named(artifacts, resolved.run)
    if not check_same(paths, resolved):
        check_outside(resolved)
        check_phase(artifacts, resolved)
    with prefect_server(artifacts) as wait_for_server:
        from flows.inspection.terminal import Display
        from flows.reward_model import reward_model as flow
        from flows.reward_model import told
        from flows.runs import observers

        with Display(console, resolved.iterations) as display, observers.watching(display):
            wait_for_server()
            flow(str(config), run, overrides, str(artifacts))
    done = History(paths).manifest(0, REWARD_MODEL)
    assert done is not None, "the stage was done"
    say(told(paths, done))


@app.command()
def resume(
    run: Run,
    iterations: Annotated[int | None, typer.Option(min=1, help="Iterations to train up to.")] = None,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Goes on with a run as its own configuration, run.yaml, says."""
    from flows.runs.access import open_run

    paths, _ = open_run(artifacts, run)
    train(paths.config, iterations=iterations, artifacts=artifacts)


@app.command()
def stage(
    name: Annotated[
        str, typer.Argument(help="prompts, warmstart, reward_model, sample, score, advantage, update or evaluate.")
    ],
    run: Run,
    iteration: Annotated[int, typer.Option(min=0, help="Iteration; 0 for prompts and warmstart.")],
    set_: Set = None,
    cascade: Annotated[bool, typer.Option("--cascade", help="Also makes what follows in that iteration.")] = False,
    through: Annotated[int | None, typer.Option(help="Also makes what follows, up to this iteration.")] = None,
    only_failed: Annotated[
        bool, typer.Option("--only-failed", help="Of score: judges again only what failed, keeps the other verdicts.")
    ] = False,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Runs one stage of one iteration again, and says what that made stale."""
    from flows.config.loading import parse_overrides
    from flows.config.stages import ITERATION, REWARD_MODEL, START
    from flows.runs.access import open_run
    from flows.serving.prefect_server import prefect_server

    known = (*START, REWARD_MODEL, *ITERATION, "evaluate")
    if name not in known:
        raise ConfigError(f"no stage {name!r}; the stages are {', '.join(known)}")
    overrides = parse_overrides(set_ or [])
    paths, config = open_run(artifacts, run)
    with prefect_server(artifacts) as wait_for_server:
        from flows.config.stages import StageName
        from flows.inspection.terminal import Display
        from flows.runs import observers
        from flows.stage import stage as flow

        with Display(console, config.iterations) as display, observers.watching(display):
            wait_for_server()
            to = iteration if cascade and through is None else through
            flow(cast(StageName, name), run, iteration, True, overrides, to, str(artifacts), only_failed)
    from flows.inspection.queries import status as read
    from flows.runs.history import History
    from flows.runs.requirements import removed_for_stale

    entries = read(paths, config)
    done = entries[iteration]["stages"][name]
    console.print(f"{name} of iteration {iteration}: {done['status']}, {done['rows']} rows, {done['seconds']} s")
    if only_failed and (made := History(paths).manifest(iteration, name)):
        again, left = sum(made.notes["judged_again"].values()), made.metrics["failed"]
        console.print(f"{again} verdicts were asked for again, {left:.0f} rows have no reward")
    if not list_stale(entries):
        console.print("nothing is stale")
    elif gone := removed_for_stale(paths, config):
        console.print(f"it cannot be made again: the retention rule removed {gone}; the same rerun as before undoes it")


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
        say(line)
