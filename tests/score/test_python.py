"""The reward `python`: functions written for TRL, open-r1 and verl as they are, and all that can go wrong in them."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from stages.contract.errors import ConfigError
from stages.score.failures import kept
from stages.score.reward_config import PythonReward
from stages.score.rewards import judge
from stages.score.verdict import Item
from stages.score.workers.function_lookup import located

FILE = Path(__file__).with_name("reward_functions.py")
GOOD = "<think>\nStep 1.\n</think>\n<answer>\n$\\boxed{42}$\n</answer>"


def item(completion, prompt_id="p0", answer="42", chat=True, tokens=(1, 2, 3), **metadata):
    asked = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 6 · 7?"})
    return Item(completion, len(tokens), "sums", answer, metadata, asked, chat, tokens, prompt_id)


def marks_of(items, function, **settings):
    where = function if "." in function or function == "json" else f"{FILE}:{function}"
    reward = PythonReward.model_validate({"type": "python", "function": where, **settings})
    return judge(reward, items, iteration=settings.get("iteration", 2))


def values(marks):
    assert {mark.status for mark in marks} <= {"ok", "null"}, marks
    return [mark.value for mark in marks]


THIRDS = [
    item(rf"My answer is $\boxed{{\frac{{1}}{{{n}}}}}$", answer=r"$\frac{1}{3}$", tokens=(1,) * 50) for n in (3, 2)
]
THOUGHT = [
    item(r"<think> So </think> It is $\boxed{42}$"),
    item(r"<think> So </think> It is $\boxed{41}$"),
    item(r"<think> It is $\boxed{42}$"),
]
TOKENS = [item("", tokens=(1, 2, 3, 4)), item("", tokens=(5,) * 5), item("", tokens=(7,) * 90)]


@pytest.mark.parametrize(
    ("function", "arguments", "items", "expected"),
    [
        ("accuracy_reward", None, THIRDS, [1, 0]),
        ("reasoning_accuracy_reward", None, THOUGHT, [1, 0, 0]),
        ("think_format_reward", None, THOUGHT, [1, 1, 0]),
        ("get_cosine_scaled_reward", {"max_len": 100}, THIRDS, [0.75, -0.75]),
        ("get_repetition_penalty_reward", {"ngram_size": 2}, TOKENS, [0, -0.75, -88 / 89]),
        ("get_soft_overlong_punishment", {"max_completion_len": 100, "soft_punish_cache": 20}, TOKENS, [0, 0, -0.5]),
    ],
)
def test_the_functions_that_trl_publishes_run_unchanged(function, arguments, items, expected):
    settings = {} if arguments is None else {"arguments": arguments, "make": True}
    assert values(marks_of(items, f"trl.rewards.{function}", **settings)) == pytest.approx(expected)


def test_functions_written_for_open_r1_run_unchanged():
    items = [item(GOOD), item("It is $\\boxed{42}$"), item("It is 42", "p1"), item("$\\boxed{x}$", "p1", answer="x")]
    assert values(marks_of(items, "format_reward")) == [1, 0, 0, 0]
    assert values(marks_of(items[1:], "accuracy_reward")) == [1, 0, None]
    penalty = {"make": True, "arguments": {"ngram_size": 1, "max_penalty": -1.0}}
    repeated = [item("no No no yes"), item("")]
    assert values(marks_of(repeated, "get_repetition_penalty_reward", **penalty)) == [-0.5, 0]


def test_a_call_is_given_the_completions_of_a_prompt_unless_told_otherwise():
    texts = [("42..", "p0"), ("42........", "p0"), ("4.....", "p1"), ("42....", "p1")]  # 4, 10, 6 and 6 characters
    items = [item(text, prompt_id) for text, prompt_id in texts]
    assert values(marks_of(items, "len_reward")) == [0.5, -0.5, 0, 0]
    assert values(marks_of(items, "len_reward", at_once="all")) == pytest.approx([1 / 2, -1 / 2, 0, 1 / 6])
    assert values(marks_of(items, "len_reward", at_once="row")) == [0, 0, 0, 0]


def test_an_async_object_gets_tokens_and_iteration_and_logs():
    marks = marks_of([item("", tokens=(1,) * 4), item("", tokens=(1,) * 6)], "longer")
    assert values(marks) == [204, 206]
    assert [mark.note for mark in marks] == [json.dumps({"metrics": {"tokens": 5.0}}), None]


def test_a_function_is_given_the_columns_of_the_prompts_under_their_own_names():
    items = [item("x", level=3, answer="7"), item("y", unit="cm", answer="8", chat=False, solution="its own")]
    marks = marks_of(items, "seen", answer_names=["answer", "solution"])
    assert values(marks) == [7, 8]
    first, second = (json.loads(mark.note or "") for mark in marks)
    assert (first["level"], first["unit"], second["level"], second["unit"]) == (3, None, None, "cm")
    assert second["prompt"] == "Be brief.\nWhat is 6 · 7?"
    assert first["others"] == "['log_metric', 'solution', 'task', 'trainer_state']"
    [text] = marks_of(items[:1], "seen", conversational=False, answer_names=["answer", "unit", "level"])
    assert json.loads(text.note or "")["prompt"] == second["prompt"]


def test_functions_written_for_verl_run_unchanged():
    rows = [
        item(
            "It is 42", data_source="gsm8k", reward_model={"ground_truth": "42"}, extra_info={"index": 5}, answer=None
        ),
        item("It is 41", index=6),
    ]
    marks = marks_of(rows, "compute_score", signature="verl", arguments={"bonus": 0.25})
    assert values(marks) == [1.25, 0.25]
    notes = [json.loads(mark.note or "") for mark in marks]
    assert notes[0] == {"acc": True, "source": "gsm8k", "index": 5}
    assert (notes[1]["source"], notes[1]["index"]) == ("sums", 6)


def test_whatever_a_function_does_costs_the_rows_of_its_call_alone(capfd):
    wrong = ["raises", "exits", "dies", "hangs", "too few", "no list", "text", "a text", "nan", "an object", "asks"]
    items = [item(word, f"p{i}", chat=False) for i, word in enumerate([*wrong, "does not apply", "fine", "fine"])]
    marks = marks_of(items, "misbehaving", timeout=1.5)
    assert [mark.status for mark in marks] == ["error"] * 3 + ["timeout"] + ["error"] * 7 + ["null", "ok", "ok"]
    expected = [
        r"reward_functions\.py, line \d+: ValueError: no .* such answer",
        r"reward_functions\.py, line \d+: SystemExit: 3",
        "process ended with exit code 9",
        "no verdict in 1.5 s",
        "gave 0 rewards for 1 completions",
        r"gave 0\.5; a list of 1 rewards is wanted",
        "gave '1'; a list of 1 rewards is wanted",
        r"gave '1\.0', which is no number",
        "gave nan",
        "gave <object object at .*, which is no number",
        "EOFError",
    ]
    for mark, told in zip(marks, expected, strict=False):
        assert re.search(told, mark.message or ""), mark
    assert [mark.value for mark in marks[-2:]] == [1, 2]  # one process until something ends it
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("this is no part") == len(items)
    assert not running("sleep 300.25")


def running(command):
    found = [path.read_bytes().replace(b"\0", b" ").decode() for path in Path("/proc").glob("[0-9]*/cmdline")]
    return [line for line in found if line.strip() == command]


def test_a_function_that_only_hangs_is_given_up():
    items = [item("hangs", f"p{i}", chat=False) for i in range(7)]
    marks = marks_of(items, "misbehaving", timeout=0.2)
    assert [mark.status for mark in marks] == ["timeout"] * 5 + ["error"] * 2
    told = "not called, after all calls of 5 prompts in a row failed, the last one: no verdict in 0.2 s"
    assert marks[-1].message == told


@pytest.mark.parametrize(
    "prompts",
    [
        ["p0"] * 5 + ["p0"] * 3,  # a group whose first completions hang
        ["p1", "p2", "p3", "p4", "p5"] + ["p0"] * 3,  # as many as were answered before
    ],
)
def test_a_function_that_some_completions_hang_is_not_given_up(prompts):
    before = ["fine"] * 5 if prompts[0] == "p1" else []
    items = [item("fine", f"q{i}", chat=False) for i in range(len(before))]
    items += [item(text, name, chat=False) for text, name in zip(["hangs"] * 5 + ["fine"] * 3, prompts, strict=True)]
    marks = marks_of(items, "misbehaving", timeout=0.2, at_once="row")
    assert [mark.status for mark in marks] == ["ok"] * len(before) + ["timeout"] * 5 + ["ok"] * 3


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("nowhere.py:f", r"no file nowhere\.py; a relative path counts from the working directory"),
        ("nowhere.f", "no module 'nowhere' is there"),
        ("sys.exit", "FILE.py:NAME or package.module.NAME is wanted"),
        ("json", "FILE.py:NAME or package.module.NAME is wanted"),
        ("trl.rewards.nothing", "cannot be had: AttributeError: module trl.rewards has no attribute nothing"),
        (f"{FILE}:CALLS", "cannot be had: TypeError: CALLS is a list, which cannot be called"),
        (f"{__file__}:nothing", "cannot be had: AttributeError"),
    ],
)
def test_a_function_that_is_not_there(function, told):
    with pytest.raises(ConfigError, match=told):
        marks_of([item("x")], function)


def test_a_function_that_cannot_be_made():
    with pytest.raises(ConfigError, match="ValueError: max_penalty 1 should not be positive"):
        marks_of([item("x")], "get_repetition_penalty_reward", make=True, arguments={"ngram_size": 1, "max_penalty": 1})


def test_nothing_is_started_where_no_row_is_to_be_judged():
    assert marks_of([], "nowhere.f") == []


def test_the_file_of_a_function_is_found_without_running_anything(tmp_path, monkeypatch):
    (tmp_path / "mine" / "rewards").mkdir(parents=True)
    for name in ("mine/__init__.py", "mine/rewards/__init__.py", "mine/rewards/sums.py", "alone.py"):
        (tmp_path / name).write_text("raise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    place = located("mine.rewards.sums.Right.score")
    assert (place.file, place.module, place.name) == (
        tmp_path / "mine/rewards/sums.py",
        "mine.rewards.sums",
        "Right.score",
    )
    assert located("alone.f").file == located("alone.py:f").file == tmp_path / "alone.py"


def test_the_working_directory_comes_last_for_the_digest_and_for_the_call_alike(tmp_path, monkeypatch):
    """Files there have the names of an installed package, of one in the standard library, and of none."""
    (tmp_path / "yaml.py").write_text("def dump(completions, **columns):\n    return [0.77] * len(completions)\n")
    (tmp_path / "inspect.py").write_text("raise SystemExit\n")
    (tmp_path / "mine.py").write_text("import inspect\ndef f(completions, **columns):\n    return [0.5]\n")
    monkeypatch.chdir(tmp_path)
    for first in ("", str(tmp_path)):  # as `python -m` puts it
        monkeypatch.syspath_prepend(first)
        assert "site-packages" in str(located("yaml.dump").file)
        [mark] = marks_of([item("x")], "yaml.dump")
        assert (mark.value, mark.status) == (None, "error")
        assert values(marks_of([item("x")], "mine.f")) == [0.5]


def test_the_order_of_a_set_is_the_same_in_every_process(tmp_path):
    (tmp_path / "mine.py").write_text("def f(completions, **columns):\n    return [hash('a') % 1e6]\n")
    seen = {marks_of([item("x")], f"{tmp_path}/mine.py:f")[0].value for _ in range(2)}
    assert len(seen) == 1


@pytest.mark.parametrize(("at_once", "again"), [("row", [1]), ("group", [0, 1]), ("all", [0, 1, 2, 3])])
def test_what_a_call_compares_is_judged_again_as_a_whole(at_once, again):
    reward = PythonReward.model_validate({"type": "python", "function": "a.py:f", "at_once": at_once})
    former = pl.DataFrame(
        {
            "prompt_id": ["p0", "p0", "p1", "p1"],
            "status_python": ["ok", "error", "ok", "null"],
            "reward_python": [0.5, None, 1.0, None],
        }
    )
    verdicts = kept(reward, former)
    assert [i for i, mark in enumerate(verdicts) if mark is None] == again
    assert [(mark.value, mark.status) for mark in verdicts[2:] if mark] == [(1.0, "ok"), (None, "null")][
        : 4 - len(again)
    ]
