"""The gate: before an update or a promotion someone approves or rejects. What was decided is kept in the run's folder.

Under a deployment the flow run is suspended meanwhile and asks by a form; no process waits. When it goes on it begins
anew, and what lies on disk decides, the answer included.
"""

from typing import Any, Literal
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import SetStateStatus
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from pydantic import Field

from flows.config.schema import Gate, RunConfig
from flows.inspection.queries import completions
from flows.inspection.report import fenced, inline, markdown_table, row, visible
from flows.runs.approvals import (
    Decision,
    Question,
    check_changes,
    digest_of,
    keep,
    name_of,
    place,
    read_question,
    write,
)
from flows.runs.history import History
from flows.runs.records import now
from stages.contract.errors import ConfigError, GateError, GrpoError, RejectedError
from stages.contract.paths import RunPaths

WAITING = "grpo-flows.gate.waiting"
"""The event that tells that someone is asked."""
SHOWN = 3
"""Best, and worst completions in the form."""


class Answer(RunInput):
    """The form."""

    decision: Literal["approve", "reject"] = Field(
        default="approve", title="Decision", description="Whether the run goes on."
    )
    note: str = Field(default="", title="Note", description="Why; kept with the decision.")
    changes: dict[str, Any] = Field(
        default={},
        title="Changed parameters",
        description='For the update of this iteration alone, e.g. {"update.optimizer.learning_rate": 1e-5}.',
    )


def pass_gate(paths: RunPaths, config: RunConfig, gate: Gate, k: int) -> dict[str, Any]:
    """Goes through a gate that is open, or where there is none; gives the changes that it was opened with.

    Under a deployment the flow run is suspended until someone answers.

    Raises:
        RejectedError: someone said no.
        GateError: without a deployment, nobody has decided yet.
    """
    if config.gate != gate:
        return {}
    while True:
        question, seen = read_question(paths, gate, k), digest_of(paths, gate, k)
        standing = question.standing(seen)
        if standing is not None and standing.decision == "approved":
            return standing.changes
        if deployment.id is None:
            _stop(paths, question, standing)
        _ask(paths, config, question, seen)


def answer_form(question: Question, decision: Literal["approve", "reject"], note: str, changes: dict[str, Any]) -> bool:
    """Answers the form of the flow run that is suspended at a gate; False where none is.

    Args:
        question: what is asked.
        decision: the form's, as its other fields.
        note: why.
        changes: for the update behind the gate, checked already.

    Raises:
        GrpoError: the server did not take the answer.
    """
    if question.flow_run is None or question.since is None:
        return False
    given = {"decision": decision, "note": note, "changes": changes}
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(question.flow_run)).state
            if state is None or not state.is_paused():
                return False
            taken = client.resume_flow_run(UUID(question.flow_run), given)
    except ObjectNotFound:
        return False
    except HTTPError as error:
        raise GrpoError(f"Prefect's server did not take the answer: {str(error) or type(error).__name__}") from error
    if taken.status is not SetStateStatus.ACCEPT:
        raise GrpoError(f"Prefect's server did not take the answer ({taken.status.value.lower()})")
    return True


def _ask(paths: RunPaths, config: RunConfig, question: Question, seen: str) -> None:
    """Suspends the flow run with a form; when it goes on, keeps the answer."""
    # A flow run that is started anew, not resumed, asks anew: the server keeps the form of an earlier start.
    start = flow_run.run_count
    key = f"{name_of(question.gate)}-{question.iteration}-{len(question.decisions)}-{seen[:8]}-{start}"
    asking = str(flow_run.id)
    if question.flow_run != asking or question.since is None:
        question = question.model_copy(update={"since": now(), "flow_run": asking})
        write(paths, question)
        tell(paths, question)
    form = Answer.with_initial_data(description=describe(paths, config, question))
    answer = suspend_flow_run(wait_for_input=form, key=key)
    decision: Literal["approved", "rejected", "refused"] = "approved" if answer.decision == "approve" else "rejected"
    note = answer.note
    try:
        check_changes(config, question.gate, answer.changes)
    except ConfigError as error:
        decision, note = "refused", str(error)
    question = keep(paths, question, decision, note, answer.changes, "the form of the flow run")
    if decision == "rejected":
        raise RejectedError(_rejected(paths, question, question.decisions[-1]))


def _stop(paths: RunPaths, question: Question, standing: Decision | None) -> None:
    if standing is not None:
        raise RejectedError(_rejected(paths, question, standing))
    if question.since is None:
        question = question.model_copy(update={"since": now(), "flow_run": None})
        write(paths, question)
        tell(paths, question)
    name = paths.root.name
    setting = "" if question.gate == "before_promote" else " (with `--set update.…=…`, if need be)"
    raise GateError(
        f"{place(paths, question)} waits for a decision: `grpo approve {name}`{setting} lets it go on when it is "
        f"started again, `grpo reject {name} --note …` does not"
    )


def _rejected(paths: RunPaths, question: Question, decision: Decision) -> str:
    name = paths.root.name
    return (
        f"{place(paths, question)} was rejected by {decision.who}{f': {decision.note}' if decision.note else ''}; run "
        f"a stage of it again with other settings (`grpo stage …`) or `grpo approve {name}`, and start it again"
    )


def tell(paths: RunPaths, question: Question) -> None:
    """Emits the event that someone is asked, for notifications."""
    name = paths.root.name
    related = (
        [{"prefect.resource.id": f"prefect.flow-run.{question.flow_run}", "prefect.resource.role": "flow-run"}]
        if question.flow_run
        else []
    )
    emit_event(
        WAITING,
        resource={"prefect.resource.id": f"grpo-flows.run.{name}", "prefect.resource.name": name},
        related=related,
        payload={
            "run": name,
            "iteration": question.iteration,
            "gate": question.gate,
            "message": f"{place(paths, question)} waits for a decision",
        },
    )


def describe(paths: RunPaths, config: RunConfig, question: Question) -> str:
    """What the form says: the question, the last iterations' figures, the best and worst completions."""
    history, k = History(paths), question.iteration
    parts = [f"**{inline(place(paths, question))} waits for your decision.**"]
    if question.decisions and question.decisions[-1].decision == "refused":
        parts.append(f"The answer before could not be used: {inline(question.decisions[-1].note)}")
    figures = [row(history, config, i) for i in range(max(0, k - 4), k + 1)]
    parts.append(markdown_table(figures, timed=False))  # the form is narrow
    for title, best, worst in (("Best", SHOWN, None), ("Worst", None, SHOWN)):
        _, rows = completions(paths, k, None, best, worst)
        told = "\n".join(f"{r['reward']!s:>8.8}  {_line(r['prompt'])} → {_line(r['completion'])}" for r in rows)
        parts.append(f"{title} completions of iteration {k}:\n\n{fenced(told)}")
    return "\n\n".join(parts)


def _line(text: str) -> str:
    return " ".join(visible(text).split())
