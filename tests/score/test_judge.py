"""The reward `judge`, asked over HTTP: what it is asked, what becomes of its answers, and of each way to fail."""

import json
import re
import socket

import pytest
from pydantic import ValidationError

from flows.config.loading import make_config, read_yaml
from flows.config.preflight import check_outside
from stages.contract.config import deciding
from stages.contract.errors import ConfigError, JudgeError
from stages.score.config import ScoreConfig
from stages.score.notes import note_metrics
from stages.score.reward_config import JudgeReward
from stages.score.rewards import judge
from stages.score.verdict import Item
from tests.flows.conftest import SMALL
from tests.score.judge_server import judging

KEY = "sk-do-not-tell"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with judging() as server:
        yield server


def item(completion, *messages):
    asked = messages or ({"role": "user", "content": "Write a haiku."},)
    return Item(completion, 1, "writing", "the answer", {}, asked)


def reward_of(**settings):
    plain = {"type": "judge", "model": "strict", "rubric": "Is it {short}?", "key": "JUDGE_KEY", "retries": 1}
    return JudgeReward.model_validate(plain | {"timeout": 20} | settings)


def marks_of(server, *completions, **settings):
    return judge(reward_of(url=server.url, **settings), [item(completion) for completion in completions])


def test_its_number_is_the_reward_and_its_words_are_kept(server):
    told = []
    reward = reward_of(url=server.url, price={"prompt": 2.0, "completion": 10.0})
    asked = [item("four"), item("much longer than ten {braces}")]
    marks = judge(reward, asked, progress=lambda *figures: told.append(figures))
    assert [(mark.value, mark.status) for mark in marks] == [(0.4, "ok"), (1.0, "ok")]
    note = json.loads(marks[0].note)
    assert json.loads(note.pop("said")) == {"reasons": "By its length.", "score": 4}
    assert note == {"model": "strict-1", "retries": 0, "prompt_tokens": 100, "completion_tokens": 7}
    assert told[-1] == (2, 2)
    assert note_metrics(reward, [mark.note for mark in marks]) == {
        "judge_prompt_tokens": 200,
        "judge_completion_tokens": 14,
        "judge_retries": 0,
        "judge_cost": (200 * 2 + 14 * 10) / 1e6,
    }
    body = next(body for body in server.asked if "four" in body["messages"][0]["content"])
    assert "<task>\nWrite a haiku.\n</task>\n<answer>\nfour\n</answer>" in body["messages"][0]["content"]
    assert "Is it {short}?" in body["messages"][0]["content"]
    assert (body["model"], body["temperature"], body["max_completion_tokens"]) == ("strict", 0, 512)
    form = body["response_format"]["json_schema"]
    assert form["strict"] is True
    assert form["schema"]["required"] == ["reasons", "score"]
    assert form["schema"]["properties"]["score"] == {"type": "integer", "enum": list(range(11))}
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_what_is_asked_is_the_users_to_say(server):
    template = "{answer}|{prompt}|{scale}\n<answer>\n{completion}\n</answer>"
    reward = reward_of(url=server.url, template=template, scale=5, reasons=False, temperature=None, max_tokens=9)
    system = {"role": "system", "content": "Be brief."}
    [mark] = judge(reward, [item("one", system, {"role": "user", "content": "Say one."})])
    assert mark.value == pytest.approx(3 / 5)
    [body] = server.asked
    text = "the answer|system: Be brief.\nuser: Say one.|5\n<answer>\none\n</answer>"
    assert body["messages"] == [{"role": "user", "content": text}]
    assert list(body["response_format"]["json_schema"]["schema"]["properties"]) == ["score"]
    assert ("temperature" in body, body["max_completion_tokens"]) == (False, 9)


def test_what_fails_for_a_while_is_asked_again(server):
    marks = marks_of(server, "500 once", "429 once", "fine")
    assert [mark.value for mark in marks] == [0.8, 0.8, 0.4]
    assert [json.loads(mark.note)["retries"] for mark in marks] == [1, 1, 0]
    assert server.attempts == {"500 once": 2, "429 once": 2, "fine": 1}


def test_each_failure_is_a_status_with_a_message_and_never_a_reward(server):
    expected = {
        "500 always": "the judge answered 500: .*out of order",
        "400": "the judge answered 400: .*no Bearer …",
        "hangs up": "the judge gave no answer: Connection error",
        "HTML": "the judge's answer is no chat completion: '<html>welcome</html>'",
        "broken": "the judge's answer cannot be read",
        "empty": "the judge's answer is no chat completion",
        "garbage": "the judge's answer is not the JSON that was asked for: 'I would give it a seven.'",
        "cut": r"the judge's answer was cut at max_tokens \(512\)",
        "refusal": "the judge refuses: I do not judge this.",
        "beyond": "the judge gave 11, which is no whole number from 0 to 10",
        "a text": "the judge gave '7', which is no whole number from 0 to 10",
        "lone \ud800 half": "surrogates",
    }
    marks = marks_of(server, *expected, "fine", retries=0)
    for mark, (word, told) in zip(marks, expected.items(), strict=False):
        assert (mark.value, mark.status) == (None, "error"), word
        assert re.search(told, mark.message), (word, mark.message)
    assert marks[-1].value == 0.4
    assert KEY not in repr(marks)
    assert json.loads(marks[7].note)["completion_tokens"] == 7  # what was cut was paid for


def test_one_that_never_answers_is_a_timeout(server):
    marks = marks_of(server, "nothing", "fine", timeout=0.4, retries=1)
    assert [(mark.status, mark.message) for mark in marks] == [("timeout", "no verdict in 0.8 s"), ("ok", None)]


def test_so_many_at_a_time_and_no_more(server):
    marks = marks_of(server, *(f"together {i}" for i in range(9)), concurrency=3)
    assert {mark.status for mark in marks} == {"ok"}
    assert server.most == 3  # the server answers only three at once: fewer would never have come to an end


def test_an_endpoint_that_is_out_of_order_is_left_alone_after_a_while(server):
    marks = marks_of(server, "fine", *["500 always"] * 9, concurrency=1, retries=0)
    assert server.attempts["500 always"] == 2
    assert [mark.status for mark in marks] == ["ok"] + ["error"] * 9
    assert sum("not asked, after 2 requests in a row had no answer" in (mark.message or "") for mark in marks) == 7


def test_rows_that_the_endpoint_cannot_judge_are_answers_of_one_that_is_there(server):
    long = [f"400 {i}" for i in range(5)]
    marks = marks_of(server, *long, "fine", "403 by its policy", "fine again", concurrency=1, retries=0)
    assert [mark.status for mark in marks] == ["error"] * 5 + ["ok", "error", "ok"]
    assert "not asked" not in repr(marks)
    [mark] = marks_of(server, "400", retries=0)  # nor does it end the stage where it is alone
    assert (mark.status, mark.message[:22]) == ("error", "the judge answered 400")


def test_what_was_judged_before_a_refusal_is_kept(server):
    marks = marks_of(server, "fine", *["401"] * 3, "fine", concurrency=1, retries=0)
    assert [mark.status for mark in marks] == ["ok"] + ["error"] * 4
    assert server.attempts == {"fine": 1, "401": 2}


@pytest.mark.parametrize(
    ("code", "told"),
    [("401", "the key is not accepted"), ("403", "the key does not"), ("404", "there is no such model or address")],
)
def test_a_refusal_of_all_ends_the_stage(server, code, told):
    with pytest.raises(JudgeError, match=f"answered none of 4 requests: the judge answered {code}: {told}"):
        marks_of(server, *[code] * 4, concurrency=1)
    assert server.attempts[code] == 2


@pytest.mark.parametrize("usage", ["{}", "null", '"twelve"', '{"prompt_tokens":null,"completion_tokens":"12"}'])
def test_a_server_that_does_not_count_costs_nothing(server, usage):
    [mark] = marks = marks_of(server, f"usage {usage}")
    assert mark.value == 0.5
    figures = note_metrics(reward_of(price={"prompt": 2.0, "completion": 10.0}), [mark.note for mark in marks])
    assert figures == {
        "judge_prompt_tokens": 0,
        "judge_completion_tokens": 0,
        "judge_retries": 0,
        "judge_cost": 0,
    }


def test_nobody_there():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    reward = reward_of(url=f"http://127.0.0.1:{port}/v1", key=None, retries=0)
    with pytest.raises(JudgeError, match="the judge strict answered none of 2 requests: the judge gave no answer"):
        judge(reward, [item("a"), item("b")])
    assert judge(reward, []) == []


def test_a_key_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="wants its key in the environment variable JUDGE_KEY, which is not set"):
        judge(reward_of(), [item("a")])


def test_a_key_that_is_missing_is_told_before_a_run_begins(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    judges = {"type": "judge", "model": "m", "rubric": "r", "key": "JUDGE_KEY"}

    def config(**more):
        return make_config(read_yaml(SMALL) | {"score": {"rewards": [judges | more], "reference": "start"}}, "here")

    with pytest.raises(ConfigError, match="wants its key in the environment variable JUDGE_KEY"):
        check_outside(config())
    check_outside(config(key=None))
    check_outside(config(key_block="judge-key"))  # in which it may lie


@pytest.mark.parametrize(
    "settings",
    [
        {"key": "sk-123abc"},
        {"url": "http://me:sk-123abc@example.org/v1"},
        {"url": "ftp://sk-123abc"},
        {"url": "https://example.org/v1?api_key=sk-123abc"},
        {"url": "https://example.org/v1#sk-123abc"},
    ],
)
def test_a_secret_in_the_configuration_is_refused_and_not_told(settings):
    data = read_yaml(SMALL)
    judges = {"type": "judge", "model": "m", "rubric": "r"} | settings
    with pytest.raises(ConfigError, match=r"score\.rewards\.0\.(key|url): .* is wanted") as refused:
        make_config(data | {"score": {"rewards": [judges]}}, "here")
    assert "123abc" not in str(refused.value)


@pytest.mark.parametrize(
    ("template", "told"),
    [("{rubric}", "does not hold {completion}"), ("{completion} {x}", "'x' in braces"), ("{completion", "for braces")],
)
def test_a_template_that_cannot_be_used(template, told):
    with pytest.raises(ValidationError, match=told):
        reward_of(template=template)


def test_a_key_from_a_block_goes_to_its_judge_alone(server, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    one = reward_of(url=server.url).with_secret("from the block")
    assert judge(one, [item("four")])[0].value == 0.4
    assert server.keys == ["Bearer from the block"]
    assert "from the block" not in repr(one) + one.model_dump_json() + json.dumps(deciding(one))
    with pytest.raises(ConfigError, match="JUDGE_KEY, which is not set"):
        judge(reward_of(url=server.url), [item("four")])


def test_two_blocks_for_one_variable_are_refused():
    plain = {"type": "judge", "model": "m", "rubric": "r", "key_block": "a"}
    other = plain | {"name": "other", "key_block": "b"}
    with pytest.raises(ValidationError, match="take the key OPENAI_API_KEY from the blocks 'a' and 'b': give each"):
        ScoreConfig.model_validate({"rewards": [plain, other]})
    ScoreConfig.model_validate({"rewards": [plain, other | {"key": "OTHER_KEY"}]})


def test_how_it_is_reached_makes_nothing_stale():
    other = {"url": "http://b/v1", "key": None, "concurrency": 1, "retries": 0, "timeout": 1, "price": None}
    rewards = [{"type": "judge", "model": "m", "rubric": "r"}]
    one, two = (ScoreConfig.model_validate({"rewards": [rewards[0] | more]}) for more in ({}, other))
    assert deciding(one) == deciding(two)
