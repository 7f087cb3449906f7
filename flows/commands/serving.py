"""`grpo serve` and `grpo deploy`: the Prefect UI."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows.commands.options import Artifacts, console
from flows.runs import ARTIFACTS
from stages.contract.errors import ConfigError

app = typer.Typer()

Configs = Annotated[Path, typer.Option(help="Folder of the configurations to choose from.")]


@app.command()
def serve(
    configs: Configs = Path("configs"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 4200,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Flow runs at a time, sharing the GPUs; without it one a GPU.")
    ] = None,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Serves the Prefect UI, and runs here what is started in it. Ctrl-C ends it with all it has started."""
    from flows.serve import serve as run
    from flows.slots import gpus

    run(artifacts, _configurations(configs), host, port, slots or max(1, len(gpus())), _announce)


def _configurations(folder: Path) -> list[str]:
    found = sorted(str(path) for path in folder.glob("*.yaml"))
    if not found:
        raise ConfigError(f"{folder}: no configuration (*.yaml) to choose from; name their folder with --configs")
    return found


def _announce(url: str) -> None:
    for line in (
        f"Prefect's UI   {url}",
        f"start a run    {url}/deployments: train → Run → Custom run",
        f"watch it       {url}/runs",
        "end it all     Ctrl-C; what was running goes on when `grpo serve` is started again",
    ):
        console.print(escape(line), highlight=False, soft_wrap=True)
