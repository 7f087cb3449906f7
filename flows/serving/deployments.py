"""What can be started from the Prefect UI: flows with their defaults, registered on a work pool."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import Flow
from prefect.types.entrypoint import EntrypointType

from flows.config.forms import shaped
from flows.evaluate import evaluate
from flows.fork import fork
from flows.nightly import nightly
from flows.orchestration.prefect_ui import key_of
from flows.rescore import rescore
from flows.reward_model import reward_model
from flows.serving.automations import apply, crash_rules
from flows.serving.settings import NightSchedule
from flows.stage import stage
from flows.train import train
from stages.contract.errors import ConfigError

LOGGING = {"PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "WARNING"}
"""What flow runs log: a stage has a line of its own, which says more than that its task run has ended."""
FIRST = "quickstart"
"""The configuration that the form begins with, where it is offered."""
HIDDEN = ("artifacts",)
"""Parameters that whoever serves decides, by the environment of the flow's process."""


@dataclass(frozen=True)
class Offer:
    """A flow as it is offered in the UI."""

    flow: Flow[..., Any]
    description: str
    parameters: dict[str, Any] = field(default_factory=dict)
    """What the form holds before it is filled in, where that is not the flow's own default."""


def offers() -> list[Offer]:
    """All that is offered, in the order of a run's life."""
    return [
        Offer(train, "Trains a run from a configuration, or goes on with it from the last stage in place."),
        Offer(reward_model, "Trains the reward model of a run from preferences; train goes on from there."),
        Offer(stage, "Runs one stage of one iteration again, as configured or with changed settings."),
        Offer(rescore, "Scores stored completions with other rewards, without sampling; nothing in the run changes."),
        Offer(evaluate, "Measures policies of a run on its held-out prompts, as configured or with changed settings."),
        Offer(nightly, "Goes on with a run for a night, and promotes its policy if it is better beyond noise."),
        Offer(fork, "Makes a run that shares another one's earlier iterations, and goes on from there."),
    ]


def register(
    pool: str, configs: Sequence[str], job_variables: dict[str, Any], nights: Sequence[NightSchedule] = ()
) -> dict[str, UUID]:
    """Registers all deployments; what is registered already is brought up to date.

    Args:
        pool: the work pool that runs them.
        configs: what the parameter `config` is chosen from.
        job_variables: what the pool's worker is told beside its own defaults.
        nights: when nights begin; what is scheduled already is left as it is.

    Returns:
        The deployments' ids by the flows' names.
    """
    made = {}
    for offer in offers():
        deployment = _deployment(offer, pool, job_variables)
        _shape_form(deployment, configs)
        identity = deployment.apply()
        assert isinstance(identity, UUID)  # not a coroutine: this is no event loop's thread
        made[offer.flow.name] = identity
    _add(made[nightly.name], [schedule_of(night) for night in nights])
    return made


def schedule_of(night: NightSchedule) -> DeploymentScheduleCreate:
    """The schedule of a run's nights, known by its slug."""
    return DeploymentScheduleCreate(
        schedule=CronSchedule(cron=night.cron, timezone=night.timezone),
        parameters={"run": night.run, "timezone": night.timezone},
        slug=key_of(night.run, "night"),
    )


def _add(deployment: UUID, wanted: Sequence[DeploymentScheduleCreate]) -> None:
    """Adds the schedules that are not there; one that is stays as it was left in the UI, paused or at another time."""
    with get_client(sync_client=True) as client:
        there = {found.slug for found in client.read_deployment_schedules(deployment)}
        missing = {schedule.slug: schedule for schedule in wanted if schedule.slug not in there}
        if missing:
            client.create_deployment_schedules(deployment, list(missing.values()))


def process_variables(folder: Path, artifacts: Path, variables: dict[str, str]) -> dict[str, Any]:
    """What a worker of type `process` is told.

    Args:
        folder: where the flows run: paths of configurations are relative to it.
        artifacts: the folder of all runs.
        variables: what else the process's environment holds.
    """
    return {
        "command": shlex.join([sys.executable, "-P", "-m", "flows.serving.flow_process"]),
        "working_dir": str(folder.resolve()),
        "env": {"GRPO_ARTIFACTS": str(artifacts.resolve()), **LOGGING} | variables,
    }


def _deployment(offer: Offer, pool: str, job_variables: dict[str, Any]) -> RunnerDeployment:
    made = offer.flow.to_deployment(
        name=offer.flow.name,
        description=offer.description,
        parameters=offer.parameters,
        work_pool_name=pool,
        job_variables=job_variables,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(made, RunnerDeployment)  # no coroutine either
    made.model_fields_set.discard("schedules")  # sent, an empty list would remove those that are there
    return made


def _shape_form(deployment: RunnerDeployment, configs: Sequence[str]) -> None:
    """Offers the configurations as a choice, and leaves out what is not for the user to say."""
    schema = deployment._parameter_openapi_schema
    for name in HIDDEN:
        schema.properties.pop(name, None)
    schema.properties = shaped(schema.properties)
    schema.required = [name for name in schema.required if name not in HIDDEN]
    if (config := schema.properties.get("config")) is not None:
        config["enum"] = list(configs)
        config.setdefault("default", next((name for name in configs if Path(name).stem == FIRST), configs[0]))


def deploy(pool: str, configs: Sequence[str], artifacts: Path, image: str | None) -> dict[str, UUID]:
    """Registers all deployments on a work pool that is there, with the two rules of crashes; their ids.

    Args:
        pool: its name.
        configs: what the parameter `config` is chosen from.
        artifacts: the folder of all runs, as the flows' processes see it.
        image: the container image that the flows run in; None for a pool of processes.

    Raises:
        ConfigError: there is no such pool, or an image is missing or too much.
    """
    kind = _kind_of(pool)
    if (kind == "process") != (image is None):
        wanted = "runs processes; leave out --image" if image else "runs containers; name their image with --image"
        raise ConfigError(f"the work pool {pool} (type {kind}) {wanted}")
    if image is None:
        variables = process_variables(Path.cwd(), artifacts, {})
    else:
        variables = {"image": image, "env": {"GRPO_ARTIFACTS": str(artifacts)} | LOGGING}
    made = register(pool, configs, variables)
    apply(crash_rules(made.values(), whole_server=False), keep=True)
    return made


def _kind_of(pool: str) -> str:
    with get_client(sync_client=True) as client:
        there = {found.name: found.type for found in client.read_work_pools()}
    if pool not in there:
        raise ConfigError(
            f"the server has no work pool {pool!r}; there are: {', '.join(sorted(there)) or 'none'}. "
            f"Make it with `prefect work-pool create {pool} --type process`"
        )
    return there[pool]
