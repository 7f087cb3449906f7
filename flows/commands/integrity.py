"""`grpo verify`: whether a run is whole."""

from dataclasses import asdict

import typer

from flows.commands.options import Artifacts, Json, Run, say, size, write_json
from flows.runs.access import ARTIFACTS

app = typer.Typer()


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
