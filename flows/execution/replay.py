"""A stage done again in a scratch place, to see whether its bytes come out the same. Nothing in the run changes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from flows.config.schema import RunConfig
from flows.config.stages import place_of
from flows.execution.run_stage import perform
from flows.runs.forking import clear_left, link
from flows.runs.history import History, circumstances
from flows.runs.snapshot import steady
from flows.runs.staleness import stages_of, state_of
from stages.contract.background import await_all
from stages.contract.difference import table_difference, tensors_difference
from stages.contract.errors import ArtifactError, ConfigError, RunInUseError
from stages.contract.lock import folder_lock
from stages.contract.manifest import Manifest, read_manifest
from stages.contract.paths import MANIFEST, RunPaths
from stages.contract.pruned import PRUNED


def replay(
    paths: RunPaths, config: RunConfig, k: int, stage: str | None, hardware: dict[str, Any]
) -> list[dict[str, Any]]:
    """Does the stages of iteration `k` again, each from the inputs that it had, and compares what comes out.

    Args:
        paths: the run.
        config: its configuration.
        k: the iteration.
        stage: one stage; None replays all that were done.
        hardware: device and threads where they are not to be those that the manifest names.

    Raises:
        ConfigError: a stage that was not done or is stale.
        ArtifactError: an input is damaged, or the retention rule removed it.
        RunInUseError: the stage, or what it was made from, was made again meanwhile.
    """
    clear_left(paths.root.parent)
    history = History(paths)
    known = stages_of(history, config, k)
    if stage is not None and stage not in known:
        raise ConfigError(f"{stage} is not a stage of iteration {k}; its stages are {', '.join(known)}")
    manifests = [_replayable(history, config, k, name) for name in ([stage] if stage else known)]
    return [_replayed(paths, manifest, hardware) for manifest in manifests]


def _replayable(history: History, config: RunConfig, k: int, stage: str) -> Manifest:
    state = state_of(history, config, k, stage)
    if state.status != "current" or state.manifest is None:
        raise ConfigError(f"{stage} of iteration {k} cannot be replayed: it is {state.status} ({state.reason})")
    return state.manifest


def _replayed(paths: RunPaths, old: Manifest, hardware: dict[str, Any]) -> dict[str, Any]:
    k, place = old.iteration, place_of(old.stage)
    await_all(paths.stage(k, place))
    with _scratch(paths, old) as scratch:
        try:
            perform(
                scratch.root, old.stage, k, old.overrides, _hardware(old) | hardware, _former(old), paths.root.parent
            )
        except ArtifactError as error:
            why = str(error).replace(str(scratch.root), str(paths.root))
            raise ArtifactError(f"{old.stage} of iteration {k} cannot be replayed: {why}") from error
        new = read_manifest(scratch.stage(k, place))
        assert new is not None, "the stage was done"
        _check_outside(old, new)
        folders = paths.stage(k, place), scratch.stage(k, place)
        with steady(paths, k):
            if read_manifest(folders[0]) != old:
                raise _made_again(paths, k, place)
            names = sorted(old.outputs.keys() | new.outputs.keys())
            outputs = {name: _compared(name, old, new, *folders) for name in names}
    return {
        "stage": old.stage,
        "iteration": k,
        "equal": all(output["equal"] for output in outputs.values()),
        "outputs": outputs,
        "circumstances": circumstances(old, new),
        "varying": varying(old, outputs),
    }


def _former(manifest: Manifest) -> str | None:
    """The table of scores of which only what had failed was judged again; None where all was judged."""
    return next((name for name in manifest.inputs if name.startswith("superseded/")), None)


def _check_outside(old: Manifest, new: Manifest) -> None:
    """Refuses a comparison where a file from outside the run, another run's policy, say, is another one by now."""
    outside = {name: record.digest for name, record in new.inputs.items() if Path(name).is_absolute()}
    before = {name: record.digest for name, record in old.inputs.items()}
    if changed := [name for name, digest in outside.items() if before.get(name) != digest]:
        told = f"{changed[0]} has changed since it was read"
        raise ArtifactError(f"{old.stage} of iteration {old.iteration} cannot be replayed: {told}")


def varying(manifest: Manifest, outputs: dict[str, Any]) -> list[str]:
    """What may explain a difference though no manifest can note it, in words.

    Args:
        manifest: the stage's, as it was.
        outputs: what was compared, file by file.
    """
    section = manifest.config if manifest.stage == "score" else manifest.config.get("score", {})
    rewards = section.get("rewards", ())
    does = {"judge": "asks a judge", "python": "calls a function of your own"}
    told = [f"the reward {r.get('name') or r['type']} {does[r['type']]}" for r in rewards if r["type"] in does]
    differing = {name for output in outputs.values() for name in output.get("columns", {})}
    if any(name.startswith("status_") for name in differing):
        told.append("a reward failed on other rows: limits of time depend on the machine's load")
    return told


def _hardware(old: Manifest) -> dict[str, Any]:
    """The machine as the manifest names it; without a GPU here, the one there is."""
    import torch

    usable = old.device == "cpu" or torch.cuda.is_available()
    held = old.deterministic is not False
    return {"device": old.device if usable else "auto", "threads": old.threads, "deterministic": held}


@contextmanager
def _scratch(paths: RunPaths, manifest: Manifest) -> Iterator[RunPaths]:
    """A run of the same name that holds only what the manifest says was read, by a second name of the same files."""
    with tempfile.TemporaryDirectory(prefix=".replay-", dir=paths.root.parent) as folder, folder_lock(Path(folder)):
        scratch = RunPaths(Path(folder) / paths.root.name)
        inside = [name for name in manifest.inputs if not Path(name).is_absolute()]
        makers = {"/".join(name.split("/")[:3]) for name in inside if len(name.split("/")) > 3}
        notes = [f"{maker}/{note}" for maker in makers for note in (MANIFEST, PRUNED)]
        configs = [path.name for path in paths.root.glob("run*.yaml")]
        for maker in makers:
            await_all(paths.root / maker)
        with steady(paths, manifest.iteration):
            for name in (*inside, *notes, *configs):
                if (paths.root / name).is_file():
                    link(paths.root / name, scratch.root / name)
        for maker in makers:
            home, k, place = maker.split("/")
            made = read_manifest(scratch.root / maker)
            outputs = {f"{maker}/{name}": record.digest for name, record in (made.outputs if made else {}).items()}
            read = {name: record.digest for name, record in manifest.inputs.items() if name.startswith(f"{maker}/")}
            if not read.items() <= outputs.items() and home == "superseded":
                told = f"{maker}, whose verdicts it kept, is gone"
                raise ArtifactError(f"{manifest.stage} of iteration {manifest.iteration} cannot be replayed: {told}")
            if not read.items() <= outputs.items():
                raise _made_again(paths, int(k), place)
        yield scratch


def _made_again(paths: RunPaths, k: int, place: str) -> RunInUseError:
    return RunInUseError(
        f"{paths.relative(paths.stage(k, place))} of {paths.root} was made again meanwhile: give the same command again"
    )


def _compared(name: str, old: Manifest, new: Manifest, there: Path, here: Path) -> dict[str, Any]:
    """Whether one output is the same, and where not, how far the two are apart."""
    before, after = old.outputs.get(name), new.outputs.get(name)
    if before is None or after is None:
        return {"equal": False, "told": "is new" if before is None else "did not come out"}
    if before.digest == after.digest:
        return {"equal": True}
    if not (there / name).is_file():
        return {"equal": False, "told": "the original was removed by the retention rule"}
    try:
        return {"equal": False} | _distance(there / name, here / name)
    except (ArtifactError, pl.exceptions.PolarsError) as error:
        return {"equal": False, "told": f"cannot be compared ({error})"}


def _distance(old: Path, new: Path) -> dict[str, Any]:
    match old.suffix:
        case ".parquet":
            return table_difference(pl.read_parquet(old), pl.read_parquet(new))
        case ".safetensors":
            return tensors_difference(old, new)
        case _:
            return {"told": "other bytes"}
