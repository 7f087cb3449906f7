"""Prefect automations that belong to what is served: a run whose process is gone is noticed, and goes on by itself."""

from collections.abc import Collection, Sequence
from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

PREFIX = "grpo: "
"""What the names of our automations begin with; the others on the server are left alone."""
SILENCE = timedelta(seconds=90)
"""Time without a heartbeat (one every 30 s) after which a run counts as crashed."""
RESTARTS = 5
"""How often a flow run is started at most, the first time included; one that always crashes is then left alone."""


def crash_rules(deployments: Collection[UUID], whole_server: bool) -> list[AutomationCore]:
    """The two rules of crashes: silence is one; what crashed is scheduled again, and manifests say where it goes on.

    Args:
        deployments: what is served.
        whole_server: whether every flow run of the server is ours, those that a command runs in a terminal included.
    """
    served = _specification({"prefect.resource.id": [f"prefect.deployment.{identity}" for identity in deployments]})
    flow_runs = {"prefect.resource.id": ["prefect.flow-run.*"]}
    silence = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},
        match=_specification(flow_runs),
        match_related=_specification({}) if whole_server else served,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=SILENCE,
    )
    crash = EventTrigger(
        expect={"prefect.flow-run.Crashed"},
        match=_specification(flow_runs | {"prefect.run-count": [str(count) for count in range(1, RESTARTS)]}),
        match_related=served,
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    crashed = ChangeFlowRunState(
        name="Crashed",
        state=StateType.CRASHED,
        message=f"its process has given no sign of life for {SILENCE.seconds} s",
    )
    again = ChangeFlowRunState(
        name="AwaitingRetry", state=StateType.SCHEDULED, message="it crashed; it goes on from the last stage in place"
    )
    return [
        automation("a run that is silent has crashed", "No heartbeat and no end within 90 s.", silence, [crashed]),
        automation("a crashed run goes on", f"At most {RESTARTS} starts of one flow run.", crash, [again]),
    ]


def automation(name: str, description: str, trigger: EventTrigger, actions: list[ActionTypes]) -> AutomationCore:
    """An automation of ours."""
    return AutomationCore(name=PREFIX + name, description=description, trigger=trigger, actions=actions)


def apply(wanted: Sequence[AutomationCore]) -> None:
    """Makes the server's automations of ours those that are wanted; one that was switched off in the UI stays so."""
    with get_client(sync_client=True) as client:
        there = {found.name: found for found in client.read_automations() if found.name.startswith(PREFIX)}
        for one in wanted:
            if (found := there.pop(one.name, None)) is None:
                client.create_automation(one)
            else:
                client.update_automation(found.id, one.model_copy(update={"enabled": found.enabled}))
        for left in there.values():
            client.delete_automation(left.id)


def _specification(labels: dict[str, list[str]]) -> ResourceSpecification:
    return ResourceSpecification.model_validate(labels)
