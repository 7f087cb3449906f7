"""`configs/reasoning.yaml`, then `configs/mixed.yaml`: two phases; rewards by task, a judge among them, in one."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import polars as pl
import pytest

from flows.config.loading import read_config
from flows.runs.access import open_run
from flows.runs.history import History
from flows.runs.phases import check_phase
from flows.runs.staleness import state_of
from stages.contract.errors import ConfigError
from stages.contract.weights import read_tensors
from tests.flows.conftest import ROOT, environment, run_grpo
from tests.score.judge_server import judging

SMALL_PHASE = (
    "prompts.source.size=200",
    "warmstart.model.layers=1",
    "warmstart.model.hidden_size=64",
    "warmstart.model.heads=2",
    "warmstart.tuning.steps=10",
)
SMALLER = ("sample.prompts=8", "sample.group_size=4", "evaluate.prompts=8", "hardware.threads=1")
LETTERS = '''
def letters(prompts, completions, log_metric, **columns):
    """The share of letters."""
    log_metric("longest", max(map(len, completions)))
    return [sum(map(str.isalpha, text)) / len(text) for text in completions]
'''


def settings(*names):
    return [part for name in names for part in ("--set", name)]


@pytest.fixture(scope="module")
def server():
    with judging() as server:
        yield server


@pytest.fixture(scope="module")
def folder(server, tmp_path_factory):
    """A folder in which both phases were run, one iteration and two; the second is refused without the first."""
    folder = tmp_path_factory.mktemp("phases")
    (folder / "letters.py").write_text(LETTERS)
    mixed = ["train", ROOT / "configs/mixed.yaml", "--iterations", "2", *settings(*SMALLER)]
    mixed += settings(
        "prompts.source.parts.0.source.size=200",
        f"score.rewards.3.url={server.url}",
        "score.rewards.4={type: python, function: 'letters.py:letters', tasks: [writing], weight: 0.5}",
    )
    early = run_grpo(folder, *mixed)
    assert (early.returncode, list(folder.glob("artifacts/mixed*"))) == (2, [])
    assert "no run 'reasoning' in artifacts; there are: none" in early.stderr
    first = ["train", ROOT / "configs/reasoning.yaml", "--iterations", "1", *settings(*SMALLER, *SMALL_PHASE)]
    for command in (first, mixed):
        done = run_grpo(folder, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def manifest(folder, place):
    return json.loads((folder / "artifacts" / place / "manifest.json").read_text())


def test_the_second_phase_starts_from_the_policy_of_the_first(folder):
    old, new = (
        folder / "artifacts" / place / "update/policy"
        for place in ("reasoning/iterations/0001", "mixed/iterations/0000")
    )
    one, other = (read_tensors(policy / "model.safetensors") for policy in (old, new))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    assert (old / "tokenizer.json").read_bytes() == (new / "tokenizer.json").read_bytes()
    made = manifest(folder, "mixed/iterations/0000/update")
    assert made["notes"]["phase"] == {"run": "reasoning", "iteration": 1}
    there = manifest(folder, "reasoning/iterations/0001/update")["outputs"]["policy/model.safetensors"]["digest"]
    assert made["inputs"][str(old / "model.safetensors")]["digest"] == there


def test_each_task_is_judged_by_its_own_rewards(folder, server):
    place = folder / "artifacts/mixed/iterations/0001"
    rollouts, scores = (pl.read_parquet(place / name) for name in ("sample/rollouts.parquet", "score/scores.parquet"))
    rows = rollouts.join(scores, on=["prompt_id", "sample"], validate="1:1")
    assert Counter(rows["task"]) == {"reasoning_gym/chain_sum": 16, "code": 8, "writing": 8}
    judges = {"reasoning_gym/chain_sum": {"reasoning_gym", "length"}, "code": {"code"}, "writing": {"judge", "python"}}
    for row in rows.iter_rows(named=True):
        said = row["completion"]
        statuses = {name.removeprefix("status_"): row[name] for name in row if name.startswith("status_")}
        assert {name for name, status in statuses.items() if status == "ok"} == judges[row["task"]]
        assert {status for name, status in statuses.items() if name not in judges[row["task"]]} == {"null"}
        match row["task"]:
            case "code":
                assert row["reward"] == row["reward_code"]
            case "writing":
                score = min(10, len(said)) / 10
                assert row["reward_judge"] == score
                assert json.loads(json.loads(row["note_judge"])["said"])["score"] == 10 * score
                assert row["reward"] == pytest.approx(score + 0.5 * sum(map(str.isalpha, said)) / len(said))
            case _:
                length = min(1, max(0, (12 - len(row["completion_tokens"])) / 8))
                assert row["reward"] == pytest.approx((said.strip() == row["answer"]) + 0.1 * length)
    metrics = manifest(folder, "mixed/iterations/0001/score")["metrics"]
    assert (metrics["judge_null"], metrics["judge_prompt_tokens"], metrics["judge_completion_tokens"]) == (24, 800, 56)
    writing = rows.filter(task="writing")["completion"].str.len_chars()
    assert metrics["python_longest"] == pytest.approx((max(writing[:4]) + max(writing[4:])) / 2)


def test_what_each_task_earned_is_shown(folder):
    shown = run_grpo(folder, "show", "mixed", "--iteration", "1", COLUMNS="200").stdout
    assert len(re.findall(r"reward \d\.\d{4} \(reasoning_gym \d\.0000, length \d\.\d{4}\)", shown)) == 16
    assert len(re.findall(r"reward \d\.\d{4} \(code \d\.\d{4}\)", shown)) == 8
    assert len(re.findall(r"reward \d\.\d{4} \(judge \d\.\d{4}, python \d\.\d{4}\)", shown)) == 8
    assert shown.count('judge: {"reasons": "By its length.", "score": ') == 8
    assert run_grpo(folder, "report", "mixed", "--to", "mixed.md").returncode == 0
    page = (folder / "mixed.md").read_text()
    heads = "| task | completions | no reward | reward | reasoning_gym | length | code | judge | python |"
    assert f"## Tasks of iteration 2\n\n{heads}" in page
    assert re.search(r"\| writing \| 8 \| 0 \| \d\.\d{4} \| – \| – \| – \| \d\.\d{4} \| \d\.\d{4} \|", page)


def test_changed_code_makes_what_it_judged_stale(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    paths, config = open_run(folder / "artifacts", "mixed")

    def state(stage):
        found = state_of(History(paths), config, 1, stage)
        return found.status, found.reason

    assert [state(stage)[0] for stage in ("sample", "score", "advantage")] == ["current"] * 3
    code = folder / "letters.py"
    code.write_text(LETTERS + "# changed\n")
    try:
        assert state("score") == ("stale", f"{code} has changed")
        assert state("sample")[0] == "current"
        code.rename(tmp_path / "elsewhere.py")
        assert state("score")[0] == "current"  # what is not there has not changed
    finally:
        code.write_text(LETTERS)


def test_a_key_comes_from_prefects_block_and_is_written_nowhere(folder, server, served, tmp_path):
    secret = "sk-from-the-block"
    shutil.copytree(folder, tmp_path / "copy")
    looking = LETTERS.replace("log_metric(", "assert 'JUDGE_KEY' not in __import__('os').environ\n    log_metric(")
    (tmp_path / "copy/letters.py").write_text(looking)
    code = (
        "from pathlib import Path; from prefect.blocks.system import Secret\n"
        "from flows.execution.run_stage import perform\n"
        f"Secret(value={secret!r}).save('judge-key')\n"
        "def score(block, stage='score', **more):\n"
        "    judges = {'score.rewards.3.key': 'JUDGE_KEY', 'score.rewards.3.key_block': block}\n"
        "    perform(Path('artifacts/mixed'), stage, 1, judges | more)\n"
        "score('judge-key')\n"
        "score('judge-key', 'evaluate', **{'score.rewards.3.tasks': None})\n"
        "score('nothing')\n"
    )
    before, variables = len(server.keys), environment() | {"PREFECT_API_URL": f"{served.url}/api"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "copy", env=variables, capture_output=True, text=True, check=False)
    assert "Prefect has no Secret block 'nothing'" in done.stderr
    assert set(server.keys[before:]) == {f"Bearer {secret}"}
    written = [
        path for path in (tmp_path / "copy").rglob("*") if path.is_file() and secret.encode() in path.read_bytes()
    ]
    assert written == []
    evaluated = manifest(tmp_path / "copy", "mixed/iterations/0001/evaluate")["metrics"]
    assert evaluated["judge_prompt_tokens"] == 800  # of 8 held-out completions
    scores = pl.read_parquet(tmp_path / "copy/artifacts/mixed/iterations/0001/score/scores.parquet")
    assert Counter(scores["status_python"]) == {"null": 24, "ok": 8}  # the function asserts that it has no key
    assert manifest(tmp_path / "copy", "mixed/iterations/0001/score")["overrides"]["score.rewards.3.key"] == "JUDGE_KEY"


def test_a_run_cannot_start_from_itself_or_from_a_policy_that_is_not_there(folder):
    def problem(**named):
        settings = {f"warmstart.model.{name}": value for name, value in named.items()}
        with pytest.raises(ConfigError) as refused:
            check_phase(folder / "artifacts", read_config(ROOT / "configs/mixed.yaml", settings))
        return str(refused.value)

    assert "mixed cannot start from itself" in problem(run="mixed")
    assert "no policy of iteration 9; there are 0–1" in problem(iteration=9)
    assert "nothing of reasoning has been promoted" in problem(iteration="promoted")
