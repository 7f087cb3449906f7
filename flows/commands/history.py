"""`grpo fork`: what is done with a run's history."""

from typing import Annotated

import typer
from rich.markup import escape

from flows.commands.options import Artifacts, Run, Set, console
from flows.runs import ARTIFACTS

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
    from flows.branch import fork as make
    from flows.config import parse_overrides

    new = make(artifacts, run, at, name, parse_overrides(set_ or []), _say)
    where = "" if artifacts == ARTIFACTS else f" --artifacts {artifacts}"
    _say(f"{new.root}: shares iterations 0 to {at} of {run}; `grpo resume {name}{where}` goes on")


def _say(text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)
