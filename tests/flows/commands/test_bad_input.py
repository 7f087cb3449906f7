"""Every mistake gets one clear message, exit code 2, no traceback, and nothing half-written."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from flows.serving.prefect_server import prefect_server
from stages.contract.errors import GrpoError
from tests.flows.conftest import SMALL, run_grpo

CONFIGURATION = {
    "an unknown key": ("sample.group_siz=4", ["sample.group_siz: unknown key", "did you mean 'group_size'"]),
    "a wrong type": ("update.epochs=many", ["update.epochs", "'many'", "integer"]),
    "a group of one": ("sample.group_size=1", ["sample.group_size is 1", "type grpo compares", "use 2 or more"]),
    "an unknown reward": ("score.rewards=[{type: vibes}]", ["score.rewards.0", "'vibes'", "'math'"]),
    "an unknown family": ("prompts.source.dataset=chain_sun", ["'chain_sun'"]),
    "a family whose verifier rewards anything": (
        "prompts.source.dataset=game_of_life_halting",
        ["'game_of_life_halting' is refused", "rewards any text", "trust"],
    ),
    "a missing file": ("prompts.source={type: file, path: no.jsonl}", ["prompts.source.path", "no.jsonl"]),
    "a missing model": ("warmstart.model={type: folder, path: nowhere}", ["warmstart.model.path", "nowhere"]),
    "KL without a reference": ("score.reference=null", ["update.kl.coefficient", "score.reference: start"]),
    "a setting without a value": ("update.epochs", ["--set update.epochs", "NAME=VALUE"]),
    "more prompts than there are": ("sample.prompts=1000", ["sample.prompts: ", "to take 1000 prompts", "among"]),
    "no room for a prompt": ("sample.sampling.max_tokens=32", ["sample.sampling.max_tokens: 32", "context of 32"]),
    "a template of unknown columns": ("prompts.template='{riddle}'", ["prompts.template", "'riddle'", "expression"]),
    "a run name that leaves the folder": ("run=../escape", ["run name '../escape'"]),
}


def refused(done, *texts):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    for text in texts:
        assert text in done.stderr


def no_policy(folder):
    return list(folder.rglob("*.safetensors")) == [] and list(folder.rglob("*.partial")) == []


@pytest.mark.parametrize("name", [name for name in CONFIGURATION if "than" not in name and "room" not in name])
def test_a_configuration_that_cannot_be_used_leaves_no_run(tmp_path, name):
    setting, texts = CONFIGURATION[name]
    done = run_grpo(tmp_path, "train", SMALL, "--set", setting)
    refused(done, *texts)
    assert not (tmp_path / "artifacts" / "small").exists()
    assert no_policy(tmp_path)


@pytest.mark.parametrize("name", ["more prompts than there are", "no room for a prompt"])
def test_what_only_sampling_can_know_leaves_the_stages_before_it_whole(tmp_path, name):
    setting, texts = CONFIGURATION[name]
    done = run_grpo(tmp_path, "train", SMALL, "--set", setting)
    refused(done, *texts)
    assert (tmp_path / "artifacts/small/iterations/0000/update/manifest.json").is_file()
    assert list(tmp_path.rglob("*.partial")) == []
    assert not (tmp_path / "artifacts/small/iterations/0001").exists()
    if name == "more prompts than there are":  # what was not done yet can be put right in the same run
        again = run_grpo(tmp_path, "train", SMALL, "--set", "sample.prompts=8", "--iterations", "1")
        assert again.returncode == 0, again.stdout + again.stderr
        assert not (tmp_path / "artifacts/small/superseded").exists()


def test_a_configuration_file_that_is_missing_or_no_yaml(tmp_path):
    refused(run_grpo(tmp_path, "train", "none.yaml"), "none.yaml: cannot be read")
    (tmp_path / "odd.yaml").write_text("run: [")
    refused(run_grpo(tmp_path, "train", "odd.yaml"), "odd.yaml: not YAML")
    (tmp_path / "list.yaml").write_text("- run")
    refused(run_grpo(tmp_path, "train", "list.yaml"), "a mapping is wanted, this is list")


DATASETS = {
    "an empty dataset": ("", ["gives no prompt"]),
    "a broken dataset": ('{"prompt": "1 + 1 =", "answer": "2"}\n{"prompt": ', ["line 2: not JSON"]),
    "a prompt without answer": ('{"prompt": "1 + 1 =", "answer": "2"}\n{"prompt": "2 + 2 ="}', ["line 2: no answer"]),
    "a row without prompt": ('{"question": "1 + 1 =", "answer": "2"}', ["line 1: no column 'prompt'"]),
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_that_cannot_be_used_leaves_no_run(tmp_path, name):
    text, texts = DATASETS[name]
    (tmp_path / "data.jsonl").write_text(text)
    config = yaml.safe_load(SMALL.read_text())
    config["prompts"] |= {"source": {"type": "file", "path": "data.jsonl"}, "template": "{prompt}"}
    config["score"]["rewards"] = [{"type": "math"}]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = run_grpo(tmp_path, "train", "config.yaml")
    refused(done, *texts)
    assert not (tmp_path / "artifacts" / "small").exists()


def spoil_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def spoil_shapes(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))


@pytest.mark.parametrize(
    ("spoil", "text"), [(spoil_tokenizer, "no tokenizer.json"), (spoil_shapes, "cannot be loaded")]
)
def test_a_model_folder_that_cannot_be_used_is_named(tmp_path, tiny_policy, spoil, text):
    shutil.copytree(tiny_policy, tmp_path / "model")
    spoil(tmp_path / "model")
    settings = ["--set", "warmstart.model={type: folder, path: model}", "--set", "warmstart.tuning=null"]
    refused(run_grpo(tmp_path, "train", SMALL, *settings), f"model: {text}")
    assert list(tmp_path.glob("artifacts/**/*.safetensors")) == []


def test_a_run_made_from_another_configuration_is_left_as_it_is(small_folder):
    before = (small_folder / "artifacts/small/run.yaml").read_bytes()
    done = run_grpo(small_folder, "train", SMALL, "--set", "advantage.eps=0.5", "--set", "seed=4")
    refused(done, "advantage.eps: 0.0001 there, 0.5 here", "seed: 3 there, 4 here", "--run")
    assert (small_folder / "artifacts/small/run.yaml").read_bytes() == before


def test_a_configured_server_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.serving.prefect_server.CONFIGURED_LIMIT", 1)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with (
        prefect_server(tmp_path) as wait,
        pytest.raises(GrpoError, match=r"127\.0\.0\.1:9/api has not answered for 1 s"),
    ):
        wait()


def test_the_address_of_a_page_is_no_server(tmp_path, monkeypatch):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<!doctype html>")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as page:
        threading.Thread(target=page.handle_request, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{page.server_port}")
        monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
        with prefect_server(tmp_path) as wait, pytest.raises(GrpoError, match="it has to look like http"):
            wait()


def test_stages_and_runs_that_do_not_exist(small_folder):
    refused(run_grpo(small_folder, "status", "smal"), "no run 'smal'", "there are: small")
    refused(run_grpo(small_folder, "stage", "scoring", "small", "--iteration", "1"), "no stage 'scoring'", "advantage")
    refused(run_grpo(small_folder, "show", "small", "--iteration", "9"), "no scores of iteration 9; there are 1–3")
    refused(run_grpo(small_folder, "show", "small", "--best", "1", "--worst", "1"), "choose one")
    refused(run_grpo(small_folder, "sql", "small", "select x from scores"), "unable to find column", "rollouts")
    refused(run_grpo(small_folder, "stage", "score", "small", "--iteration", "0"), "not a stage of iteration 0")
    refused(run_grpo(small_folder, "stage", "score", "small", "--iteration", "7"), "iterations/0007/sample", "missing")
    refused(
        run_grpo(small_folder, "stage", "score", "small", "--iteration", "1", "--set", "update.epochs=3"),
        "the stage score takes settings that begin with `score.`",
    )
    assert sorted(path.name for path in (small_folder / "artifacts/small/iterations").iterdir()) == [
        f"{k:04d}" for k in range(4)
    ]
    assert list(small_folder.rglob("*.partial")) == []


def test_a_folder_that_is_no_run_is_never_written_to_nor_removed(tmp_path):
    (tmp_path / "artifacts" / "small").mkdir(parents=True)
    (tmp_path / "artifacts" / "small" / "thesis.tex").write_text("irreplaceable")
    refused(run_grpo(tmp_path, "train", SMALL), "a folder that is no run is in the way")
    assert [path.name for path in (tmp_path / "artifacts" / "small").iterdir()] == ["thesis.tex"]
