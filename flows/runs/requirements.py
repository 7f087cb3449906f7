"""What of earlier iterations an iteration reads: pure, by the configuration and the manifests."""

from pathlib import Path

from flows.config.schema import RunConfig
from flows.runs.history import History
from flows.runs.staleness import examine
from stages.advantage.config import goes_on
from stages.contract.paths import RunPaths
from stages.contract.policy import ADAPTER_CONFIG
from stages.score.config import AverageReference, RefreshedReference


def needed_by(paths: RunPaths, config: RunConfig, k: int) -> list[Path]:
    """Files and folders of iterations before `k` that it reads, and so the ones after it cannot do without."""
    policies = {0, k - 1}
    reference = config.score.reference
    if isinstance(reference, RefreshedReference):
        policies.add((k - 1) // reference.every * reference.every)
    out = [paths.policy(j) for j in sorted(policies)]
    if k > 1:
        update = paths.stage(k - 1, "update")
        out.append(update / "optimizer.safetensors")
        if config.critic is not None:
            out += [paths.critic(k - 1), update / "critic_optimizer.safetensors"]
        if config.update.average is not None or isinstance(reference, AverageReference):
            out.append(paths.average(k - 1))
        if config.update.kl.adaptive is not None:
            out.append(update / "kl.safetensors")
    return out


def missing_for(history: History, config: RunConfig, k: int) -> list[str]:
    """What of that the retention rule removed, by its name in the run."""
    gone = []
    for path in needed_by(history.paths, config, k):
        folder = history.paths.stage_of(path)
        assert folder is not None
        inside = path.relative_to(folder).as_posix()
        removed = history.pruned(int(folder.parent.name), folder.name)
        if any(name == inside or name.startswith(f"{inside}/") for name in removed):
            gone.append(history.paths.relative(path))
    return gone


def never_made_for(history: History, config: RunConfig, k: int) -> list[str]:
    """What iteration `k`, so configured, would go on from and the ones before it were configured without."""
    paths, gone = history.paths, []
    needed = needed_by(paths, config, k)
    if k > 1 and goes_on(config.advantage):
        needed.append(paths.stage(k - 1, "advantage") / "state.parquet")
    if k > 1 and config.update.lora is not None:
        needed.append(paths.policy(k - 1) / ADAPTER_CONFIG)
    for path in needed:
        folder = paths.stage_of(path)
        assert folder is not None
        manifest = history.manifest(int(folder.parent.name), folder.name)
        inside = path.relative_to(folder).as_posix()
        if not any(name == inside or name.startswith(f"{inside}/") for name in (manifest.outputs if manifest else ())):
            gone.append(paths.relative(path))
    return gone


def removed_for_stale(paths: RunPaths, config: RunConfig) -> str | None:
    """What the first stale iteration reads and the retention rule removed; None where it can be made again."""
    history = History(paths)
    first = next((s.iteration for s in examine(history, config, history.last()) if s.status == "stale"), 0)
    gone = missing_for(history, history.config(first, config), first) if first else []
    return gone[0] if gone else None
