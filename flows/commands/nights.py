"""`grpo promote`: which policy is the one to use."""

from typing import Annotated

import typer
from rich.markup import escape

from flows.commands.options import Artifacts, Run, console
from flows.runs import ARTIFACTS
from stages.contract.errors import ArtifactError, ConfigError

app = typer.Typer()


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
