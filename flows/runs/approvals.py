"""What was asked and decided at a run's gates, a file for each gate of each iteration."""

import getpass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from flows.config.loading import with_settings
from flows.config.schema import Gate, RunConfig
from flows.runs.history import History
from flows.runs.records import Record, now, read_record, write_record
from stages.contract.digest import names_digest
from stages.contract.errors import ConfigError
from stages.contract.paths import RunPaths


class Decision(BaseModel):
    """What someone decided."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    decision: Literal["approved", "rejected", "refused"]
    """`refused` is an answer that could not be used, after which the question is asked again."""
    note: str
    changes: dict[str, Any]
    """Dotted names and values for the stage behind the gate, of this iteration alone."""
    who: str
    when: str
    """UTC, ISO 8601."""
    seen: str
    """Digest of what it was decided about; when that is made anew, the question is open again."""


class Question(Record):
    """One gate of one iteration: since when it waits, and all decisions about it, the last one last."""

    gate: Gate
    iteration: int
    since: str | None = None
    """UTC; None where nobody is asked."""
    flow_run: str | None = None
    """The suspended flow run that asks."""
    decisions: tuple[Decision, ...] = ()

    def standing(self, seen: str) -> Decision | None:
        """The last decision, if it was about what is there now."""
        last = self.decisions[-1] if self.decisions else None
        return last if last is not None and last.seen == seen and last.decision != "refused" else None


def decide(
    paths: RunPaths,
    config: RunConfig,
    decision: Literal["approved", "rejected"],
    note: str,
    changes: dict[str, Any],
    who: str | None = None,
) -> Question:
    """Decides about the gate that waits, or that was rejected last. The caller holds the run's lock.

    Raises:
        ConfigError: no gate waits, or the changes cannot be used.
    """
    question = asked(paths, config, changes)
    return keep(paths, question, decision, note, changes, who or getpass.getuser())


def asked(paths: RunPaths, config: RunConfig, changes: dict[str, Any]) -> Question:
    """The gate that waits, or that was rejected last.

    Raises:
        ConfigError: there is none, or it cannot be opened with these changes.
    """
    question = open_question(paths)
    if question is None:
        raise ConfigError(f"no gate of {paths.root.name} waits for a decision")
    check_changes(config, question.gate, changes)
    return question


def open_question(paths: RunPaths) -> Question | None:
    """The gate of the last iteration asked about that waits, else the one that was rejected; None where none is."""
    numbers = (path.stem.partition("-")[0] for path in paths.gates.glob("*.json"))
    asked_about = [int(number) for number in numbers if number.isdecimal()]
    if not asked_about:
        return None
    k, shut = max(asked_about), []
    for gate in get_args(Gate):
        if not file_of(paths, gate, k).exists():
            continue
        question = read_question(paths, gate, k)
        standing = question.standing(digest_of(paths, gate, k))
        if standing is None or standing.decision == "rejected":
            shut.append(question)
    return max(shut, key=lambda question: question.since or "", default=None)


def read_question(paths: RunPaths, gate: Gate, k: int) -> Question:
    """What is known of a gate of an iteration.

    Raises:
        ArtifactError: the file is damaged.
    """
    return read_gate(file_of(paths, gate, k)) or Question(gate=gate, iteration=k)


def read_gate(file: Path) -> Question | None:
    """What a gate's file says; None where there is none.

    Raises:
        ArtifactError: the file is damaged.
    """
    return read_record(file, Question, "remove it, and the gate asks again")


def digest_of(paths: RunPaths, gate: Gate, k: int) -> str:
    """Digest of what is decided about: the iteration's advantages, or its policy and evaluation."""
    history, places = History(paths), ("advantage",) if gate == "before_update" else ("update", "evaluate")
    return names_digest(
        {
            f"{place}/{name}": record.digest
            for place in places
            if (manifest := history.manifest(k, place)) is not None
            for name, record in manifest.outputs.items()
        }
    )


def check_changes(config: RunConfig, gate: Gate, changes: dict[str, Any]) -> None:
    """Checks changed parameters before anything runs.

    Raises:
        ConfigError: fields of another stage, unknown ones, or values that cannot be used.
    """
    if gate == "before_promote" and changes:
        raise ConfigError("a promotion has no parameters to change: approve or reject it")
    if foreign := [name for name in changes if name.split(".")[0] not in ("update", "critic")]:
        raise ConfigError(f"{foreign[0]}: the update takes settings that begin with `update.`")
    if changes:
        with_settings(config, changes, "the changed parameters")


def keep(
    paths: RunPaths,
    question: Question,
    decision: Literal["approved", "rejected", "refused"],
    note: str,
    changes: dict[str, Any],
    who: str,
) -> Question:
    """Adds a decision about what is there now to a gate's file."""
    made = Decision(
        decision=decision,
        note=note,
        changes=changes,
        who=who,
        when=now(),
        seen=digest_of(paths, question.gate, question.iteration),
    )
    kept = question.model_copy(update={"since": None, "decisions": (*question.decisions, made)})
    write(paths, kept)
    return kept


def place(paths: RunPaths, question: Question) -> str:
    """What the gate stands before, for people."""
    what = "update" if question.gate == "before_update" else "promotion"
    return f"{paths.root.name}: the {what} of iteration {question.iteration}"


def name_of(gate: Gate) -> str:
    """The gate's name in files and keys."""
    return gate.replace("_", "-")


def file_of(paths: RunPaths, gate: Gate, k: int) -> Path:
    """Where what is known of a gate is kept."""
    return paths.gates / f"{k:04d}-{name_of(gate)}.json"


def write(paths: RunPaths, question: Question) -> None:
    """Keeps what is known of a gate."""
    write_record(file_of(paths, question.gate, question.iteration), question)
