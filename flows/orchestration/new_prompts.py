"""New prompts in a run's folder `data`: the next iteration to draw takes them up, earlier ones stay as they are."""

from dataclasses import dataclass, field

from flows.config.schema import RunConfig
from flows.orchestration.tasks import run_stage
from flows.runs import observers
from flows.runs.history import History
from stages.contract.manifest import stage_folders
from stages.contract.paths import MANIFEST, RunPaths
from stages.prompts.added import new_files


@dataclass(frozen=True)
class TakenUp:
    """What came of it."""

    prompts: dict[str, int] = field(default_factory=dict)
    """New prompts, and those left out by reason."""
    problems: list[str] = field(default_factory=list)
    """Files that cannot be read. They stay where they are and are tried again the next time."""


def take_up(paths: RunPaths, config: RunConfig) -> TakenUp:
    """Has the stage `prompts` of the next iteration to draw read what is new. The caller holds the run's lock."""
    if not paths.data.is_dir() or not paths.stage(0, "prompts").is_dir():
        return TakenUp()
    found = new_files(paths, config.prompts)
    for problem in found.problems:
        observers.say(f"new prompts are left out: {problem}")
    if not found.tables:
        return TakenUp({}, found.problems)
    k = next_to_draw(paths)
    run_stage(str(paths.root), "prompts", k, return_state=True).result()
    manifest = History(paths).manifest(k, "prompts")
    assert manifest is not None, "it was done just now"
    fresh = int(manifest.metrics["train_prompts"] or 0)
    counted = {f"new prompts from iteration {k} on": fresh}
    counted |= {f"prompts left out: {reason}": count for reason, count in manifest.dropped.items()}
    observers.say("; ".join(f"{count} {what}" for what, count in counted.items()))
    return TakenUp(counted, found.problems)


def next_to_draw(paths: RunPaths) -> int:
    """The first iteration for which neither completions have been drawn nor prompts been added, after all that have."""
    folders = stage_folders(paths.iterations)
    drawn = [f for f in folders if f.name == "prompts" or (f.name == "sample" and (f / MANIFEST).is_file())]
    return 1 + max((int(folder.parent.name) for folder in drawn), default=0)
