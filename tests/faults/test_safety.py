"""Nothing leads out of the folder of all runs, nothing is loaded by pickle, no secret is written down."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from flows.config.loading import read_yaml
from flows.config.schema import RunConfig
from flows.runs.access import open_run
from stages.contract.columns import SUPERVISED_STEPS
from stages.contract.errors import ArtifactError, ConfigError, ModelError
from stages.contract.manifest import read_manifest
from stages.contract.paths import RunPaths
from stages.contract.weights import read_tensors
from stages.contract.workspace import Job, open_stage
from stages.model.adapter import load_adapter
from stages.model.load import load_model, load_tokenizer
from tests.contract.test_workspace import frame
from tests.flows.conftest import SMALL, run_grpo

NAMES = [
    "..",
    "../out",
    "/tmp/out",
    "a/b",
    "a/../../out",
    "a\0b",
    "a" * 300,
    "",
    ".hidden",
    "-n",
    "a\nb",
    "ä",
    "a b",
    "~",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_name_that_could_lead_out_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run name"):
        RunPaths.named(tmp_path, name)
    with pytest.raises(ConfigError, match="run name"):
        open_run(tmp_path, name)
    with pytest.raises(ValueError, match="run name"):
        RunConfig.model_validate(read_yaml(SMALL) | {"run": name})


def test_the_command_refuses_names_and_folders_that_lead_out(tmp_path: Path) -> None:
    for command in (["train", SMALL, "--run", "../out"], ["status", "../out"], ["verify", "/etc"]):
        done = run_grpo(tmp_path, *command)
        assert done.returncode == 2
        assert "run name" in done.stderr
    (tmp_path / "outside").mkdir()
    (tmp_path / "artifacts").mkdir(exist_ok=True)
    (tmp_path / "artifacts/small").symlink_to(tmp_path / "outside")
    done = run_grpo(tmp_path, "train", SMALL)
    assert done.returncode == 2
    assert "a symbolic link" in done.stderr
    assert list((tmp_path / "outside").iterdir()) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("link", ["iterations", "iterations/0003", "superseded"])
def test_nothing_is_written_through_a_symbolic_link(link: str, tmp_path: Path) -> None:
    paths, outside = RunPaths.named(tmp_path, "night"), tmp_path / "outside"
    outside.mkdir()
    (paths.root / link).parent.mkdir(parents=True, exist_ok=True)
    (paths.root / link).symlink_to(outside)
    with (
        pytest.raises(ArtifactError, match="a symbolic link"),
        open_stage(Job(paths, 3, 1), "score", "score", {}) as desk,
    ):
        desk.write("steps.parquet", frame(), SUPERVISED_STEPS)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["../steps.parquet", "/etc/passwd", "a/../../b", "a\0b", ""])
@pytest.mark.parametrize("side", ["outputs", "inputs"])
def test_a_manifest_cannot_name_files_outside_the_run(side: str, name: str, tmp_path: Path) -> None:
    paths = RunPaths.named(tmp_path, "night")
    with open_stage(Job(paths, 3, 1), "score", "score", {}) as desk:
        desk.write("steps.parquet", frame(), SUPERVISED_STEPS)
    path = paths.stage(3, "score") / "manifest.json"
    data = json.loads(path.read_text())
    record = data["outputs"]["steps.parquet"]
    path.write_text(json.dumps(data | {side: {name: record}}))
    if (side, name) == ("inputs", "/etc/passwd"):  # data of the user's own is named where it was
        assert read_manifest(path.parent) is not None
        return
    with pytest.raises(ArtifactError, match="leads out of the run"):
        read_manifest(path.parent)


@pytest.mark.parametrize("name", ["iterations/x/score/a", "iterations/0001", "iterations/../../a/b"])
def test_an_input_of_no_stage_is_refused(name: str, tmp_path: Path) -> None:
    paths = RunPaths.named(tmp_path, "night")
    with open_stage(Job(paths, 3, 1), "score", "score", {}):
        pass
    path = paths.stage(3, "score") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": {name: {"digest": "0", "size": 1}}}))
    with pytest.raises(ArtifactError, match="leads out of the run"):
        read_manifest(path.parent)


class Bomb:
    """Makes a file where it is loaded by pickle."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_the_bomb_goes_off_where_pickle_is_used(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def test_weights_are_never_loaded_by_pickle(tiny_policy: Path, tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "policy"
    shutil.copytree(tiny_policy, folder)
    whole = load_model(folder, "cpu").state_dict()
    bomb = pickle.dumps(Bomb(mark))
    for name in (
        "pytorch_model.bin",
        "adapter_model.bin",
        "optimizer.pt",
        "model.pt",
        "training_args.bin",
        "model.ckpt",
    ):
        (folder / name).write_bytes(bomb)
    assert all(torch.equal(value, whole[name]) for name, value in load_model(folder, "cpu").state_dict().items())
    load_tokenizer(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors; weights in other formats are not loaded"):
        load_model(folder, "cpu")
    (folder / "model.safetensors").write_bytes(bomb)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_model(folder, "cpu")
    with pytest.raises(ArtifactError, match="cannot be read as safetensors"):
        read_tensors(folder / "model.safetensors")
    with pytest.raises((ArtifactError, OSError)):
        load_adapter(torch.nn.Linear(1, 1), folder)
    assert not mark.exists()


def test_code_in_a_model_folder_is_never_run(tiny_policy: Path, tmp_path: Path) -> None:
    folder, mark = tmp_path / "policy", tmp_path / "mark"
    shutil.copytree(tiny_policy, folder)
    (folder / "modeling_own.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    with pytest.raises(ModelError):
        load_model(folder, "cpu")
    assert not mark.exists()


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for tag in (
        "!!python/object/apply:pathlib.Path.touch",
        "!!python/object/new:pathlib.Path",
        "!!python/name:os.system",
    ):
        path = tmp_path / "config.yaml"
        path.write_text(f"run: {tag} [{str(mark)!r}]\n")
        with pytest.raises(ConfigError, match="not YAML"):
            read_yaml(path)
    done = run_grpo(tmp_path, "train", SMALL, "--set", f"run=!!python/object/apply:os.mkdir [{str(mark)!r}]")
    assert done.returncode == 2
    assert not mark.exists()


def test_no_secret_of_the_environment_lands_in_an_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "DATABASE_PASSWORD", "MY_SECRET")
    for number, name in enumerate(names):
        monkeypatch.setenv(name, f"sesame-{number}-57a1c0ffee")
    done = run_grpo(tmp_path, "train", SMALL, "--iterations", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    files = [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]
    assert any(".prefect" in path.parts and path.suffix == ".db" for path in files)
    assert [path for path in files if b"57a1c0ffee" in path.read_bytes()] == []
    assert "57a1c0ffee" not in done.stdout + done.stderr
