"""Checks a run's small records: frozen configurations, where it parted, what is promoted, nights and gates."""

from collections.abc import Callable, Iterator
from pathlib import Path

from flows.config.loading import read_config_file
from flows.runs.approvals import file_of, read_gate
from flows.runs.forking import read_fork
from flows.runs.history import History
from flows.runs.nights import read_night
from flows.runs.promotion import promotion
from stages.contract.digest import file_digest
from stages.contract.errors import ArtifactError, ConfigError, VersionError
from stages.contract.paths import MANIFEST, RunPaths


def records_problems(paths: RunPaths) -> Iterator[tuple[Path, str, str]]:
    """What is wrong with them: the file, the problem, and what to do.

    Raises:
        VersionError: newer code wrote one.
    """
    history = History(paths)
    checks: list[tuple[Check, list[Path]]] = [
        (_config, sorted(paths.root.glob("run*.yaml"))),
        (_fork, [paths.fork]),
        (_promoted, [paths.promoted]),
        (_night, sorted(paths.nights.glob("*.json"))),
        (_gate, sorted(paths.gates.glob("*.json"))),
    ]
    for check, files in checks:
        for file in files:
            yield from ((file, *told) for told in _told(check, history, file))


Wrong = Iterator[tuple[str, str]]
"""Problems of one record, and what to do."""
Check = Callable[[History, Path], Wrong]


def _told(check: Check, history: History, file: Path) -> Wrong:
    try:
        yield from check(history, file)
    except VersionError:
        raise
    except ConfigError as error:
        yield str(error).removeprefix(f"{file}: "), "put back what was there"
    except ArtifactError as error:
        problem, _, remedy = str(error).removeprefix(f"{file}: ").rpartition("; ")
        yield problem, remedy


def _config(history: History, file: Path) -> Wrong:
    paths, config = history.paths, read_config_file(file)
    if file == paths.config and config.run != paths.root.name:
        yield f"names the run {config.run}", f"give the folder that name, or the file `run: {paths.root.name}`"


def _fork(history: History, file: Path) -> Wrong:
    paths, name = history.paths, history.paths.root.name
    if (fork := read_fork(paths)) is None:
        return
    if not paths.former_config(fork.iteration).is_file():
        yield (
            f"{paths.former_config(fork.iteration).name}, the configuration of the shared iterations, is missing",
            f"take it from {fork.run}, or fork that anew",
        )
    gone = [manifest for manifest in fork.manifests if not (paths.root / manifest).is_file()]
    for manifest in gone:
        _, k, place, _ = manifest.split("/")
        stage = "warmstart" if (int(k), place) == (0, "update") else place
        yield f"{manifest} is shared, and not there", f"`grpo stage {stage} {name} --iteration {int(k)}`"
    update = paths.stage(fork.iteration, "update") / MANIFEST
    made_again = update.is_file() and fork.manifests.get(paths.relative(update)) != file_digest(update)
    if not gone and not made_again and not history.has_policy(fork.iteration, fork.policy):
        yield f"the policy of iteration {fork.iteration} is not the one that it names", f"fork {fork.run} anew"


def _promoted(history: History, file: Path) -> Wrong:
    found = promotion(history.paths)
    if found is not None and not history.has_policy(found.iteration, found.policy):
        yield (
            f"iteration {found.iteration} has no policy of the digest that was promoted",
            f"`grpo promote {history.paths.root.name} --iteration {found.iteration} --force`, or another iteration",
        )


def _night(history: History, file: Path) -> Wrong:
    night = read_night(history.paths, file.stem)
    if night is not None and night.date != file.stem:
        yield f"is the record of {night.date}", "give it its name back"
    elif night is not None and night.last > history.last():
        yield f"names iteration {night.last}, and the last one there is {history.last()}", f"{_train(history)} goes on"


def _gate(history: History, file: Path) -> Wrong:
    if (question := read_gate(file)) is None:
        return
    if file != file_of(history.paths, question.gate, question.iteration):
        yield f"is about {question.gate} of iteration {question.iteration}", "give it its name back"
        return
    place = "advantage" if question.gate == "before_update" else "update"
    if history.manifest(question.iteration, place) is None:
        yield f"{place} of iteration {question.iteration}, about which it asks, is not there", f"{_train(history)}"


def _train(history: History) -> str:
    return f"`grpo resume {history.paths.root.name}`"
