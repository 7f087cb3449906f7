"""A run's policy, proved by its manifest: copied out of the run, or handed to whoever serves it."""

import shutil
from pathlib import Path

from flows.config.schema import RunConfig
from flows.runs.history import History, chosen
from flows.runs.staleness import examine
from stages.contract.commit import new_folder
from stages.contract.digest import file_digest
from stages.contract.errors import ArtifactError
from stages.contract.manifest import read_manifest
from stages.contract.paths import RunPaths
from stages.contract.policy import base_of
from stages.contract.pruned import pruned


def proved_policy(paths: RunPaths, iteration: int | None) -> tuple[int, list[Path]]:
    """An iteration and the files of its policy, each as its manifest says; those of an adapter's base are proved too.

    Args:
        paths: the run.
        iteration: None takes the last one that was trained.

    Raises:
        ConfigError: no policy of that iteration; says of which there are.
        ArtifactError: a file or the manifest is missing or damaged.
    """
    k = chosen(paths, "update/manifest.json", iteration, "policy")
    made_by = paths.stage(k, "update")
    manifest = read_manifest(made_by)
    assert manifest is not None, "it was listed"
    files = {made_by / name: record for name, record in manifest.outputs.items() if name.startswith("policy/")}
    for path, record in files.items():
        if not path.is_file():
            removed = path.relative_to(made_by).as_posix() in pruned(made_by)
            raise ArtifactError(f"{path}: {'the retention rule `keep` removed it' if removed else 'missing'}")
        if file_digest(path) != record.digest:
            raise ArtifactError(f"{path}: its content is not what its manifest says")
    if base_of(paths.policy(k)) is not None:
        proved_policy(paths, 0)
    return k, list(files)


def export(paths: RunPaths, to: Path, iteration: int | None) -> int:
    """Copies the policy of an iteration into a new folder, an adapter merged with its base; gives the iteration.

    Args:
        paths: the run.
        to: the folder; it must be empty or not there yet. A copy that fails leaves nothing.
        iteration: None takes the last one that was trained.

    Raises:
        ConfigError: no policy of that iteration.
        ArtifactError: a file or the manifest is missing or damaged, or something is at `to`.
    """
    k, files = proved_policy(paths, iteration)
    policy = paths.policy(k)
    with new_folder(to) as folder:
        if base_of(policy) is not None:
            _merge(policy, paths.policy(0), folder)
            return k
        for path in files:
            copy = folder / path.relative_to(policy)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return k


def stale_reason(paths: RunPaths, config: RunConfig, k: int) -> str | None:
    """Why the policy of iteration `k` is not what the run's configuration and tables give now; None where it is."""
    states = {(state.iteration, state.stage): state for state in examine(History(paths), config, k)}
    state = states[k, "update" if k else "warmstart"]
    return state.reason if state.status == "stale" else None


def _merge(policy: Path, base: Path, folder: Path) -> None:
    from stages.model.adapter import merge_adapter
    from stages.model.load import load_model, save_policy

    model = load_model(policy, "cpu")
    merge_adapter(model)
    save_policy(model, folder, base)
