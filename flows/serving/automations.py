"""Prefect automations that belong to what is served: crashed runs go on by themselves, and somebody is told."""

import os
from collections.abc import Collection, Sequence
from datetime import timedelta
from uuid import UUID

from prefect.blocks.core import Block
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from flows.serving.notifications import Address, Notifications, Occasion, ServerBlock
from stages.contract.errors import ConfigError

PREFIX = "grpo: "
"""What the names of our automations begin with; the others on the server are left alone."""
SILENCE = timedelta(seconds=90)
"""Time without a heartbeat (one every 30 s) after which a run counts as crashed."""
RESTARTS = 5
"""How often a flow run is started at most, the first time included; one that always crashes is then left alone."""


EVENTS: dict[Occasion, tuple[str, str]] = {
    "failed": (
        "prefect.flow-run.Failed",
        "event.resource.name ~ ' has failed: ' ~ event.resource['prefect.state-message']",
    ),
    "crashed": (
        "prefect.flow-run.Crashed",
        "event.resource.name ~ ' has crashed: ' ~ event.resource['prefect.state-message']",
    ),
    "held_back": ("grpo-flows.night.held-back", "event.payload.message"),
    "gate": ("grpo-flows.gate.waiting", "event.payload.message"),
}
"""The event of each occasion, and what is said of it: an expression of Jinja."""


def crash_rules(deployments: Collection[UUID], whole_server: bool) -> list[AutomationCore]:
    """The two rules of crashes: silence is one; what crashed is scheduled again, and manifests say where it goes on.

    Args:
        deployments: what is served.
        whole_server: whether every flow run of the server is ours, those that a command runs in a terminal included.
    """
    served = specification({"prefect.resource.id": [f"prefect.deployment.{identity}" for identity in deployments]})
    flow_runs = {"prefect.resource.id": ["prefect.flow-run.*"]}
    silence = EventTrigger(
        after={"prefect.flow-run.Running", "prefect.flow-run.heartbeat"},  # it may die before its first heartbeat
        expect={"prefect.flow-run.*"},
        match=specification(flow_runs),
        match_related=specification({}) if whole_server else served,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=SILENCE,
    )
    crash = EventTrigger(
        expect={"prefect.flow-run.Crashed"},
        match=specification(flow_runs | {"prefect.run-count": [str(count) for count in range(1, RESTARTS)]}),
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


def notification_rules(wanted: Notifications, deployments: Collection[UUID]) -> list[AutomationCore]:
    """An automation for each occasion of each that is told; saves the addresses in blocks of the server.

    Raises:
        ConfigError: a block that is named is not on the server.
    """
    served = {"prefect.resource.id": [f"prefect.deployment.{identity}" for identity in deployments]}
    rules = []
    for one in wanted.tell:
        whom = one.block if isinstance(one, ServerBlock) else f"{one.type} {one.address}"
        block = _existing(one.block) if isinstance(one, ServerBlock) else _saved(one)
        for occasion in one.of:
            event, _ = EVENTS[occasion]
            ours = event.startswith("grpo-flows.")
            trigger = EventTrigger(
                expect={event},
                match=specification({}),
                match_related=specification({} if ours else served),
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            )
            name = f"tell {whom}: {_title(occasion)}"
            rules.append(automation(name, f"On the event {event}.", trigger, [_action(one.type, block, occasion)]))
    return rules


def automation(name: str, description: str, trigger: EventTrigger, actions: list[ActionTypes]) -> AutomationCore:
    """An automation of ours."""
    return AutomationCore(name=PREFIX + name, description=description, trigger=trigger, actions=actions)


def apply(wanted: Sequence[AutomationCore], keep: bool = False) -> None:
    """Makes the server's automations of ours those that are wanted; one that was switched off in the UI stays so.

    Args:
        wanted: automations of ours.
        keep: whether others of ours that are on the server stay.
    """
    with get_client(sync_client=True) as client:
        there = {found.name: found for found in client.read_automations() if found.name.startswith(PREFIX)}
        for one in wanted:
            if (found := there.pop(one.name, None)) is None:
                client.create_automation(one)
            else:
                client.update_automation(found.id, one.model_copy(update={"enabled": found.enabled}))
        for left in () if keep else there.values():
            client.delete_automation(left.id)


def specification(labels: dict[str, list[str]]) -> ResourceSpecification:
    """Labels of resources, each with the patterns of which one has to fit."""
    return ResourceSpecification.model_validate(labels)


def _action(kind: str, block: UUID, occasion: Occasion) -> ActionTypes:
    _, text = EVENTS[occasion]
    if kind == "webhook":
        payload = f'{{"occasion": "{occasion}", "text": {{{{ ({text}) | tojson }}}}}}'
        return CallWebhook(block_document_id=block, payload=payload)
    return SendNotification(block_document_id=block, subject=_title(occasion), body=f"{{{{ {text} }}}}")


def _title(occasion: Occasion) -> str:
    return {"failed": "run failed", "crashed": "run crashed", "held_back": "night held back", "gate": "gate waits"}[
        occasion
    ]


def _saved(one: Address) -> UUID:
    """The address in a block of the server; mail goes by Slack's block too, which takes any address of Apprise."""
    url = SecretStr(os.environ[one.address])
    block: Block = Webhook(url=url) if one.type == "webhook" else SlackWebhook(url=url)
    identity = block.save(f"grpo-{one.type}-{one.address.lower().replace('_', '-')}", overwrite=True)
    assert isinstance(identity, UUID)  # not a coroutine: this is no event loop's thread
    return identity


def _existing(name: str) -> UUID:
    kind, _, own = name.partition("/")
    with get_client(sync_client=True) as client:
        try:
            return client.read_block_document_by_name(own, kind, include_secrets=False).id
        except ObjectNotFound:
            raise ConfigError(f"the server has no block {name}; make it there first, or name another") from None
