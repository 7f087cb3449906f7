"""What of a run is current, stale or missing, decided by manifests alone."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flows.config.loading import with_settings
from flows.config.schema import RunConfig
from flows.config.stages import ITERATION, REWARD_MODEL, START, TAKEN_IN, place_of
from flows.runs.history import History
from stages.contract.errors import ConfigError
from stages.contract.manifest import Manifest


@dataclass(frozen=True)
class StageState:
    """One stage of one iteration."""

    iteration: int
    stage: str
    status: Literal["current", "stale", "missing"]
    reason: str
    """Why it is not current; for one that is, how it departs from the run's configuration."""
    manifest: Manifest | None


def stages_of(history: History, config: RunConfig, k: int) -> tuple[str, ...]:
    """The stages of iteration `k`, in order.

    `evaluate` where its turn has come, or where it was done once by hand; `prompts` also where an iteration added some.
    """
    config = history.config(k, config)
    turn = config.evaluate is not None and k % config.evaluate.every == 0
    evaluated = turn or (config.evaluate is not None and history.manifest(k, "evaluate") is not None)
    added = k > 0 and history.manifest(k, "prompts") is not None
    if k == 0:
        made: tuple[str, ...] = START if config.reward_model is None else (*START, REWARD_MODEL)
    else:
        made = ("prompts", *ITERATION) if added else ITERATION
    return made + (("evaluate",) if evaluated else ())


def after(history: History, config: RunConfig, k: int, stage: str, last: int) -> Iterator[tuple[int, str]]:
    """The stages that come after `stage` of iteration `k`, up to the end of iteration `last`, in order."""
    here = stages_of(history, config, k)
    yield from ((k, name) for name in (here[here.index(stage) + 1 :] if stage in here else ()))
    yield from ((j, name) for j in range(k + 1, last + 1) for name in stages_of(history, config, j))


def state_of(history: History, config: RunConfig, k: int, stage: str) -> StageState:
    """A stage's state by its manifest and those of the stages it read from; whether these are stale is not asked."""
    manifest = history.manifest(k, place_of(stage))
    if manifest is None:
        return StageState(k, stage, "missing", "not done yet", None)
    reason = _stale_reason(history, history.config(k, config), manifest, place_of(stage))
    if reason is not None:
        return StageState(k, stage, "stale", reason, manifest)
    departs = ", ".join(f"{name}={value}" for name, value in manifest.overrides.items())
    return StageState(k, stage, "current", departs and f"with {departs}", manifest)


def examine(history: History, config: RunConfig, iterations: int) -> Iterator[StageState]:
    """The state of each stage up to `iterations`, in order; one that read from a stale stage is stale."""
    behind: dict[tuple[int, str], str] = {}
    for k in range(iterations + 1):
        for stage in stages_of(history, config, k):
            state = state_of(history, config, k, stage)
            if state.status == "current" and state.manifest is not None:
                upstream = [made for name in state.manifest.inputs if (made := made_by(name)) in behind]
                if upstream:
                    reason = f"{behind[upstream[0]]} is not current"
                    state = StageState(k, stage, "stale", reason, state.manifest)
            if state.status != "current":
                behind[k, place_of(stage)] = f"{stage} of iteration {k}"
            yield state


def made_by(name: str) -> tuple[int, str] | None:
    """The (iteration, folder) that an input of a manifest lies in; None for a file from outside the run."""
    parts = name.split("/")
    return (int(parts[1]), parts[2]) if parts[0] == "iterations" else None


def departing(history: History, config: RunConfig, k: int, overrides: Mapping[str, Any]) -> RunConfig:
    """The configuration of iteration `k` with the settings of one stage's rerun.

    Settings of several sections have to fit: the others are taken as the iteration's stages were last made with.

    Raises:
        ConfigError: a setting that cannot be used, or does not fit the others.
    """
    if not overrides:
        return config
    sections = {name.split(".")[0] for name in overrides}
    made = [history.manifest(k, place) for place in ("prompts", *ITERATION, "evaluate")]
    recorded = {name: value for manifest in made if manifest for name, value in manifest.overrides.items()}
    around = {name: value for name, value in recorded.items() if name.split(".")[0] not in sections}
    whole = with_settings(config, {**around, **overrides}, "--set")
    return config.model_copy(update={section: getattr(whole, section) for section in sections})


def _stale_reason(history: History, config: RunConfig, manifest: Manifest, place: str) -> str | None:
    try:
        wanted = departing(history, config, manifest.iteration, manifest.overrides)
    except ConfigError:
        return "its own settings no longer fit those of its iteration"
    if manifest.seed != config.seed or not wanted.made_alike(manifest.stage, manifest.config):
        return "made with another configuration"
    if damaged := history.damaged(manifest.iteration, place):
        return f"{damaged[0]} is damaged or missing"
    for name, there in other_inputs(history, manifest):
        return f"{name} {'has changed' if there else 'is missing'}"
    return None


def other_inputs(history: History, manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """Inputs that are no longer what their makers say they wrote, and whether there is still one of that name.

    Of those from outside the run, the ones that have changed; one that is not there has not.
    """
    for name, record in manifest.inputs.items():
        if (made := made_by(name)) is None:
            looked_at = Path(name).is_absolute() and manifest.stage not in TAKEN_IN
            if looked_at and history.outside(name, manifest.started) not in (record.digest, None):
                yield name, True
            continue
        source = history.manifest(*made)
        output = source.outputs.get(name.split("/", 3)[3]) if source else None
        if output is None or output.digest != record.digest:
            yield name, output is not None


def stale(states: Iterable[StageState]) -> list[str]:
    """A line for each stage that is stale, with the reason."""
    return [
        f"{state.stage} of iteration {state.iteration}: {state.reason}" for state in states if state.status == "stale"
    ]
