"""`grpo promote`, `approve` and `reject`: what people decide about a run."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from flows.commands.options import Artifacts, Run, Set, console
from flows.runs import ARTIFACTS
from stages.contract.errors import ArtifactError, ConfigError

app = typer.Typer()

Note = Annotated[str, typer.Option(help="Why; kept with the decision.")]


@app.command()
def promote(
    run: Run,
    iteration: Annotated[int | None, typer.Option(min=0, help="Iteration; without it the last one trained.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Promote it also where it is not better.")] = False,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Promotes a policy by hand, if it is better than the promoted one on held-out prompts beyond noise."""
    from flows.promotion import against_promoted, promoted, verdict
    from flows.promotion import promote as put
    from flows.runs import chosen, open_run
    from stages.contract.lock import run_lock

    paths, config = open_run(artifacts, run)
    k = chosen(paths, "*/update/manifest.json", iteration, "policy")
    with run_lock(paths.lock, lambda text: console.print(escape(text), highlight=False)):
        before, comparison = promoted(paths), None
        if k == before and not force:
            raise ConfigError(f"iteration {k} is the promoted one already")
        if k == 0 and before is None:
            why = "by hand: the starting policy, which has nothing to beat"
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
    console.print(f"promoted: {run}, iteration {k}, {escape(why)}", highlight=False, soft_wrap=True)


@app.command()
def approve(run: Run, set_: Set = None, note: Note = "", artifacts: Artifacts = ARTIFACTS) -> None:
    """Opens the gate at which a run waits; `--set` holds for the update behind it, of that iteration alone."""
    from flows.config import parse_overrides

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
    from flows.decisions import decide, place
    from flows.runs import open_run
    from stages.contract.lock import run_lock

    paths, config = open_run(artifacts, run)
    with run_lock(paths.lock, lambda text: console.print(escape(text), highlight=False)):
        question = decide(paths, config, decision, note, changes)
    console.print(f"{decision}: {escape(place(paths, question))}", highlight=False, soft_wrap=True)
