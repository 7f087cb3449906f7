"""`grpo serve` and `grpo deploy`: the Prefect UI."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import Artifacts, say
from flows.runs.access import ARTIFACTS
from stages.contract.errors import ConfigError

if TYPE_CHECKING:
    from flows.serving.settings import NightSchedule

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
    notifications: Annotated[
        Path | None, typer.Option(help="A YAML file that says who is told of failed runs, nights held back and gates.")
    ] = None,
    nights: Annotated[
        list[str] | None, typer.Option(help="A run that goes on every night; may be given for several runs.")
    ] = None,
    cron: Annotated[str, typer.Option(help="When its nights begin.")] = "0 2 * * *",
    timezone: Annotated[
        str | None, typer.Option(help="Time zone of that, e.g. Europe/Berlin; without it this machine's.")
    ] = None,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Serves the Prefect UI, and runs here what is started in it. Ctrl-C ends it with all it has started."""
    from flows.serving.gpu_slots import gpus
    from flows.serving.notifications import Notifications, read_notifications
    from flows.serving.serve import POOL
    from flows.serving.serve import serve as run
    from flows.serving.settings import Told

    told = Told(
        artifacts=artifacts.resolve(),
        configs=tuple(_configurations(configs)),
        slots=slots or max(1, len(gpus())),
        pool=POOL,
        own_server=True,
        notifications=read_notifications(notifications) if notifications else Notifications(),
        nights=_scheduled(artifacts, nights or [], cron, timezone),
    )
    run(told, host, port, _announce)


@app.command()
def deploy(
    pool: Annotated[str, typer.Option(help="A work pool that the server has: process, docker, kubernetes, …")],
    server: Annotated[
        str | None, typer.Option(help="Address of its API; without it PREFECT_API_URL, or a running `grpo serve`.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Container image with grpo-flows, for a pool of containers.")
    ] = None,
    configs: Configs = Path("configs"),
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Registers what `grpo serve` offers on an existing Prefect server and work pool."""
    from flows.serving.prefect_server import running_server

    if server:
        os.environ["PREFECT_API_URL"] = server.rstrip("/").removesuffix("/api") + "/api"
    names = _configurations(configs)
    with running_server(artifacts) as url:
        from flows.serving.deployments import deploy as register

        made = register(pool, names, artifacts, image)
    say(
        f"{', '.join(made)}: on the work pool {pool} of {url.removesuffix('/api')}; "
        f"a worker of it runs them: prefect worker start --pool {pool}"
    )


def _scheduled(artifacts: Path, runs: list[str], cron: str, timezone: str | None) -> "tuple[NightSchedule, ...]":
    from flows.runs.access import open_run
    from flows.runs.nights import zone
    from flows.serving.prefect_server import prefect_environment
    from flows.serving.settings import NightSchedule, check_cron

    if not runs:
        return ()
    named = zone(timezone).key
    prefect_environment(artifacts)
    check_cron(cron)
    return tuple(NightSchedule(run=open_run(artifacts, run)[0].root.name, cron=cron, timezone=named) for run in runs)


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
        say(line)
