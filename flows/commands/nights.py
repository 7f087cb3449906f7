"""`grpo nightly`, `promote`, `approve` and `reject`: nights, and what people decide about a run."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flows.commands.options import Artifacts, Run, Set, console, say
from flows.runs.access import ARTIFACTS
from stages.contract.errors import ArtifactError, ConfigError, GrpoError

app = typer.Typer()

Note = Annotated[str, typer.Option(help="Why; kept with the decision.")]


@app.command()
def nightly(
    run: Run,
    iterations: Annotated[int | None, typer.Option(min=1, help="Iterations at most.")] = None,
    hours: Annotated[float | None, typer.Option(help="Hours at most.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Time zone of the night's date, e.g. Europe/Berlin.")] = None,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Spends a night on a run: goes on with it, evaluates, promotes or holds back, reports. Once a date."""
    from flows.runs.access import open_run
    from flows.runs.history import History
    from flows.runs.nights import zone
    from flows.serving.prefect_server import prefect_server

    paths, config = open_run(artifacts, run)
    last = History(paths).last() + (iterations or config.nights.iterations or 1)
    zone(timezone)
    if hours is not None and not hours > 0:
        raise ConfigError(f"--hours {hours:g}: more than 0 is wanted")
    with prefect_server(artifacts) as wait_for_server:
        from flows.inspection.terminal import Display
        from flows.nightly import nightly as flow
        from flows.runs import observers

        with Display(console, last) as display, observers.watching(display):
            wait_for_server()
            flow(run, iterations, hours, timezone, str(artifacts))


@app.command()
def promote(
    run: Run,
    iteration: Annotated[int | None, typer.Option(min=0, help="Iteration; without it the last one trained.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Promote it also where it is not better.")] = False,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Promotes a policy by hand, if it is better than the promoted one on held-out prompts beyond noise."""
    from flows.runs.access import held, open_run
    from flows.runs.history import chosen
    from flows.runs.promotion import against_promoted, baseline, promoted, verdict
    from flows.runs.promotion import promote as put

    paths, config = open_run(artifacts, run)
    k = chosen(paths, "update/manifest.json", iteration, "policy")
    with held(paths, say):
        before, comparison = promoted(paths), None
        if k == before and not force:
            raise ConfigError(f"iteration {k} is the promoted one already")
        if before is None and k == baseline(paths):
            why = "by hand: the policy that the run began with, which has nothing to beat"
        else:
            try:
                comparison = against_promoted(paths, config, k)
                why = f"by hand: {verdict(comparison, config)}"
            except ArtifactError as error:
                if not force:
                    raise
                why = f"by hand, without a comparison: {error}"
        if comparison is not None and not comparison.better and not force:
            raise ConfigError(f"iteration {k} is {verdict(comparison, config)}; --force promotes it all the same")
        put(paths, k, why, comparison)
    say(f"promoted: {run}, iteration {k}, {why}")


@app.command()
def approve(run: Run, set_: Set = None, note: Note = "", artifacts: Artifacts = ARTIFACTS) -> None:
    """Opens the gate at which a run waits; `--set` holds for the update behind it, of that iteration alone."""
    from flows.config.loading import parse_overrides

    _decide(artifacts, run, "approved", note, parse_overrides(set_ or []))


@app.command()
def reject(
    run: Run, note: Annotated[str, typer.Option(help="Why; kept with the decision.")], artifacts: Artifacts = ARTIFACTS
) -> None:
    """Keeps the gate at which a run waits shut."""
    _decide(artifacts, run, "rejected", note, {})


def _decide(
    artifacts: Path, run: str, decision: Literal["approved", "rejected"], note: str, changes: dict[str, Any]
) -> None:
    from flows.runs.access import held, open_run
    from flows.runs.approvals import asked, decide, place
    from flows.serving.prefect_server import running_server

    paths, config = open_run(artifacts, run)
    question = asked(paths, config, changes)
    left = ""
    if question.flow_run and question.since:
        try:
            with running_server(artifacts):
                from flows.orchestration.approval_gate import answer_form

                if answer_form(question, "approve" if decision == "approved" else "reject", note, changes):
                    say(f"{decision}: {place(paths, question)}; the flow run goes on")
                    return
        except GrpoError as error:
            left = (
                f"; its flow run was not told ({error}): if it is still suspended, resume it in the UI, and this holds"
            )
    with held(paths, say):
        question = decide(paths, config, decision, note, changes)
    say(f"{decision}: {place(paths, question)}{left}")
