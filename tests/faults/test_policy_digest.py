"""A policy has one digest, whether its files are read or its maker's manifest; an adapter's names its base too."""

import json
import shutil
from pathlib import Path

from flows.runs.history import History
from flows.runs.promotion import promote, promotion, proved_promoted
from stages.contract.digest import file_digest
from stages.contract.paths import RunPaths
from stages.contract.policy import adapter_digest, take_policy
from stages.contract.workspace import Workspace

KEPT = Path(__file__).parents[1] / "data" / "runs" / "version2"


def with_adapter(folder: Path) -> RunPaths:
    """A copy of the kept run whose policy 1 is an adapter on policy 0."""
    shutil.copytree(KEPT, folder / "artifacts" / "old")
    paths = RunPaths.named(folder / "artifacts", "old")
    update, policy = paths.stage(1, "update"), paths.policy(1)
    shutil.rmtree(policy)
    policy.mkdir()
    (policy / "adapter_config.json").write_text('{"base_model_name_or_path": "../../../0000/update/policy"}')
    (policy / "adapter_model.safetensors").write_bytes(b"adapter")
    manifest = json.loads((update / "manifest.json").read_text())
    others = {name: record for name, record in manifest["outputs"].items() if not name.startswith("policy/")}
    files = {
        f"policy/{path.name}": {"digest": file_digest(path), "size": path.stat().st_size} for path in policy.iterdir()
    }
    (update / "manifest.json").write_text(json.dumps(manifest | {"outputs": others | files}))
    return paths


def test_manifests_give_the_digest_that_stages_take(tmp_path: Path) -> None:
    paths = with_adapter(tmp_path)
    desk = Workspace(paths, paths.partial(3, "sample"))
    taken = [take_policy(desk, paths.policy(k)) for k in (0, 1, 2)]
    assert [History(paths).policy_digest(k) for k in (0, 1, 2)] == taken
    shutil.rmtree(paths.policy(1))
    assert History(paths).policy_digest(1) == taken[1]


def test_a_promotion_that_names_an_adapter_without_its_base_still_holds(tmp_path: Path) -> None:
    paths = with_adapter(tmp_path)
    made = promote(paths, 1, "by hand")
    assert proved_promoted(paths) == 1
    manifest = History(paths).manifest(1, "update")
    assert manifest is not None
    older = made.model_copy(update={"policy": adapter_digest(manifest.outputs)})
    assert older != promotion(paths)
    paths.promoted.write_text(older.model_dump_json())
    assert proved_promoted(paths) == 1
