"""Which policy of a run is the promoted one, and when another takes its place. Kept in `promoted.json`."""

from dataclasses import asdict
from typing import Any

from pydantic import Field

from flows.config.schema import RunConfig
from flows.runs.forking import read_fork
from flows.runs.history import History
from flows.runs.records import Record, now, read_record, write_record
from flows.runs.staleness import state_of
from stages.contract import tables
from stages.contract.columns import EVALUATION
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.paths import RunPaths
from stages.contract.seeds import derive
from stages.evaluate.compare import Comparison, compare


class Promotion(Record):
    """The promoted policy, and why it is."""

    iteration: int
    policy: str
    """Digest of the policy's files."""
    when: str
    """UTC, ISO 8601."""
    why: str
    figures: dict[str, Any] = Field(default_factory=dict)
    """The comparison that it won; empty where there was none."""


def promotion(paths: RunPaths) -> Promotion | None:
    """What is promoted; None where nothing has been yet.

    Raises:
        ArtifactError: the file that says so is damaged.
    """
    remedy = f"remove it and `grpo promote {paths.root.name} --iteration …` again"
    return read_record(paths.promoted, Promotion, remedy)


def promoted(paths: RunPaths) -> int | None:
    """The iteration whose policy is promoted; None where nothing has been yet."""
    found = promotion(paths)
    return None if found is None else found.iteration


def baseline(paths: RunPaths) -> int:
    """The iteration whose policy is to be beaten: the promoted one, else the one that the run began with."""
    if (k := promoted(paths)) is not None:
        return k
    parted = read_fork(paths)
    return 0 if parted is None else parted.iteration


def proved_promoted(paths: RunPaths) -> int:
    """The iteration whose policy is promoted, and is still the one that was.

    Raises:
        ConfigError: nothing has been promoted.
        ArtifactError: the policy was made again since, with other bytes.
    """
    name = paths.root.name
    if (found := promotion(paths)) is None:
        raise ConfigError(f"nothing of {name} has been promoted; a night does, or `grpo promote {name}`")
    _prove(paths, found)
    return found.iteration


def _prove(paths: RunPaths, found: Promotion) -> None:
    if not History(paths).has_policy(found.iteration, found.policy):
        raise ArtifactError(
            f"the policy of iteration {found.iteration} was made again after it was promoted, and is another one now; "
            f"look at it, then `grpo promote {paths.root.name} --iteration {found.iteration} --force`"
        )


def promote(paths: RunPaths, k: int, why: str, comparison: Comparison | None = None) -> Promotion:
    """Makes the policy of iteration `k` the promoted one. The caller holds the run's lock."""
    figures = {} if comparison is None else asdict(comparison)
    digest = History(paths).policy_digest(k)
    if digest is None:
        raise ConfigError(f"{paths.root}: there is no policy of iteration {k}")
    made = Promotion(iteration=k, policy=digest, when=now(), why=why, figures=figures)
    write_record(paths.promoted, made)
    return made


def against_promoted(paths: RunPaths, config: RunConfig, k: int) -> Comparison:
    """The policy of iteration `k` against the promoted one, or the one that the run began with where none is.

    Raises:
        ArtifactError: one of them has no current evaluation, they were measured differently, or the promoted one was
            made again since.
    """
    history, old = History(paths), baseline(paths)
    if (found := promotion(paths)) is not None:
        _prove(paths, found)
    for iteration in (old, k):
        state = state_of(history, config, iteration, "evaluate")
        if state.status != "current":
            raise ArtifactError(
                f"the evaluation of iteration {iteration} is {state.status} ({state.reason}): "
                f"`grpo stage evaluate {paths.root.name} --iteration {iteration}`"
            )
    one, other = (history.manifest(iteration, "evaluate") for iteration in (old, k))
    assert one is not None and other is not None, "both are current"
    if one.config_digest != other.config_digest:
        raise ArtifactError(
            f"the policies of iterations {old} and {k} were evaluated with different settings; evaluate both with "
            f"`grpo stage evaluate {paths.root.name} --iteration …`"
        )
    before, after = (
        tables.read(paths.stage(iteration, "evaluate") / "evaluation.parquet", EVALUATION) for iteration in (old, k)
    )
    return compare(before, after, config.promotion, derive(config.seed, "promotion", old, k))


def verdict(comparison: Comparison, config: RunConfig) -> str:
    """What came of a comparison, in a sentence."""
    rule = config.promotion
    figures = (
        f"{rule.measure} {comparison.new:.4f} against {comparison.old:.4f} on {comparison.prompts} held-out prompts, "
        f"a difference of {comparison.difference:+.4f} with a {100 * rule.confidence:g} % interval from "
        f"{comparison.low:+.4f} to {comparison.high:+.4f}"
    )
    if comparison.better:
        return f"better than the promoted policy beyond noise: {figures}"
    if comparison.high < 0:
        return f"worse than the promoted policy beyond noise: {figures}"
    wanted = f"above {rule.margin:g}" if rule.margin else "above 0"
    return f"not better than the promoted policy beyond noise (the lower end is to be {wanted}): {figures}"
