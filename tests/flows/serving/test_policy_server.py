"""`grpo serve-policy`: vLLM's own server answers as the policy would, and nothing of it is left behind."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from stages.contract.errors import JudgeError
from stages.model.load import load_model, load_tokenizer
from stages.score.reward_config import JudgeReward
from stages.score.rewards import judge
from stages.score.verdict import Item
from tests.flows.conftest import GRPO, environment, run_grpo


def group_members(group):
    """Processes of a process group that are no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def eventually(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


@pytest.fixture(scope="module")
def server(small_folder, tmp_path_factory):
    """The command, the process group of vLLM, and the port; killed by SIGKILL at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    template = log.with_name("chat.jinja")
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    command = [str(GRPO), "serve-policy", "small", "--iteration", "2", "--port", str(port), "--max-num-seqs", "8"]
    command += ["--chat-template", str(template)]
    command += [
        "--structured-outputs-config",
        '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ]  # a random model would go on with it
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=small_folder, env=environment(), stdout=out, stderr=out)

    def answers():
        assert process.poll() is None, log.read_text()
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
        except OSError:
            return False

    try:
        assert eventually(answers, 300), log.read_text()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        [group] = {os.getpgid(int(child)) for child in children} - {os.getpgid(process.pid)}
        yield process, group, port
    finally:
        process.kill()
        process.wait()


def post(port, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def test_it_answers_as_the_policy_does(server, small_folder):
    _, _, port = server
    folder = small_folder / "artifacts/small/iterations/0002/update/policy"
    model, tokenizer = load_model(folder, "cpu"), load_tokenizer(folder)
    for prompt in ("3 + 4 =", "9 - 2 =", "1 + 8 ="):
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        said = post(port, {"model": "small", "prompt": ids[0].tolist(), "max_tokens": 6, "temperature": 0})
        text = tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
        assert said["choices"][0]["text"] == text


def test_it_is_a_judge_whose_answers_have_the_form_that_was_asked_for(server):
    _, _, port = server
    settings = {"type": "judge", "model": "small", "rubric": "Is it right?", "key": None, "scale": 7, "max_tokens": 16}
    settings |= {"url": f"http://127.0.0.1:{port}/v1", "template": "{completion} = 5?", "reasons": False}
    asked = [
        Item(text, 1, "sums", None, {}, ({"role": "user", "content": "x"},)) for text in ("2 + 3", "1 + 1", "9" * 40)
    ]
    marks = judge(JudgeReward.model_validate(settings), asked)
    for mark in marks[:2]:
        note = json.loads(mark.note or "")
        score = json.loads(note["said"])["score"]
        assert (mark.status, mark.value) == ("ok", score / 7)
        assert 0 <= score <= 7
        assert note["completion_tokens"] == len(note["said"]) + 1  # a token a character, and the end
    assert marks[2].status == "error"
    assert "the judge answered 400: This model's maximum context length is 32 tokens" in (marks[2].message or "")
    with pytest.raises(JudgeError, match="there is no such model or address"):
        judge(JudgeReward.model_validate(settings | {"model": "nobody"}), asked)


def test_killing_the_command_ends_all_processes_of_the_server(server):
    process, group, port = server
    assert len(group_members(group)) >= 2  # vLLM's server and its engine
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert eventually(lambda: not group_members(group), 30)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)


def test_a_policy_that_is_not_there(small_folder):
    done = run_grpo(small_folder, "serve-policy", "small", "--iteration", "9")
    assert done.returncode == 2
    assert "no policy of iteration 9" in done.stderr
