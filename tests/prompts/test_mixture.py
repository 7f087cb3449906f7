"""Sources of other layouts and several at once: verl, TRL, levels, mixtures, leaks between them."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from stages.contract import tables
from stages.contract.columns import PROMPTS
from stages.contract.errors import DataError
from stages.contract.manifest import read_manifest
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job
from stages.prompts import added
from stages.prompts.config import PromptsConfig
from stages.prompts.prepare import prepare
from stages.prompts.rows import RawPrompt
from stages.prompts.sources import load
from stages.prompts.split import Known, is_heldout
from stages.prompts.stage import run


def config(source: dict[str, Any], **fields: Any) -> PromptsConfig:
    return PromptsConfig.model_validate({"source": source, "heldout": 0.0} | fields)


def inline(*rows: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "inline", "rows": list(rows)} | fields


def mixture(**parts: dict[str, Any]) -> dict[str, Any]:
    """A mixture of sources by name; what begins with an underscore is of the part."""
    return {
        "type": "mixture",
        "parts": [
            {"name": name, "source": {k: v for k, v in part.items() if k[0] != "_"}}
            | {k[1:]: v for k, v in part.items() if k[0] == "_"}
            for name, part in parts.items()
        ],
    }


def contents(frame: pl.DataFrame) -> list[str]:
    return [" | ".join(m["content"] for m in messages) for messages in frame["messages"].to_list()]


# Layouts

VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"content": "Two and two?", "role": "user"}],
    "ability": "math",
    "reward_model": {"ground_truth": "4", "style": "rule"},
    "extra_info": {"index": 0, "split": "train", "answer": "2 + 2 = 4 #### 4"},
}


def test_a_file_made_for_verl_is_read_as_it_is(tmp_path: Path) -> None:
    pl.DataFrame([VERL, VERL | {"data_source": "math"}]).write_parquet(tmp_path / "train.parquet")
    source = {"type": "file", "path": str(tmp_path / "train.parquet")}
    first, second = load(config(source).source)
    assert (first.task, second.task, first.answer) == ("openai/gsm8k", "math", "4")
    assert first.prompt == [{"role": "user", "content": "Two and two?"}]
    assert first.metadata == {name: value for name, value in VERL.items() if name != "prompt"}  # as verl hands them on
    # what the configuration says itself goes first
    assert load(config(source | {"answer_field": None, "layout": "verl"}).source)[0].answer is None
    assert load(config(source | {"answer_field": "ability"}).source)[0] == RawPrompt(
        first.prompt, "math", "file", first.metadata
    )
    (own,) = load(config(inline(VERL | {"answer": "mine"})).source)
    assert (own.task, own.answer) == ("inline", "mine")
    with pytest.raises(DataError, match="row 1: no answer in column 'answer'"):
        load(config(source | {"layout": "columns"}).source)


def test_tests_of_a_program_are_an_answer_in_json() -> None:
    row = VERL | {"reward_model": {"style": "rule", "ground_truth": {"inputs": ["1\n"], "outputs": ["2\n"]}}}
    (prompt,) = load(config(inline(row)).source)
    assert json.loads(prompt.answer or "") == {"inputs": ["1\n"], "outputs": ["2\n"]}


def test_trls_conversational_prompts_keep_their_columns_for_the_reward_function(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": "1 + 1"}], "solution": r"$\boxed{2}$", "level": 4}]
    (tmp_path / "trl.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"type": "file", "path": str(tmp_path / "trl.jsonl"), "answer_field": "solution", "level_field": "level"}
    prompt = [{"role": "user", "content": "1 + 1"}]
    metadata = {"solution": r"$\boxed{2}$", "level": 4}
    assert load(config(source).source) == [RawPrompt(prompt, r"$\boxed{2}$", "file", metadata, level=4)]


def test_a_packed_file_gives_the_same(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "p.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"prompt": "ü", "answer": 1}\n')
    source = {"type": "file", "path": str(tmp_path / "p.jsonl.gz")}
    assert load(config(source).source) == [RawPrompt("ü", "1", "file", {})]
    whole = (tmp_path / "p.jsonl.gz").read_bytes()
    for broken in (whole[:-9], b"no gzip", whole[:-5] + b"12345"):
        (tmp_path / "p.jsonl.gz").write_bytes(broken)
        with pytest.raises(DataError, match=r"p\.jsonl\.gz: cannot be unpacked as gzip"):
            load(config(source).source)


def test_parquet_types_that_other_writers_choose(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "prompt": pa.array(["a", "b", "a"]).dictionary_encode(),
        "answer": pa.array(["1", "2", "3"], pa.large_string()),
        "level": pa.array([0, 1, 2], pa.uint8()),
        "nested": pa.array([{"tests": ["x"]}, None, {"tests": []}]),
    }
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    prompts = load(config({"type": "file", "path": str(tmp_path / "p.parquet"), "level_field": "level"}).source)
    assert [(p.prompt, p.answer, p.level) for p in prompts] == [("a", "1", 0), ("b", "2", 1), ("a", "3", 2)]
    assert [p.metadata["nested"] for p in prompts] == [{"tests": ["x"]}, None, {"tests": []}]


# Levels


def test_levels_of_reasoning_gym_are_those_of_the_familys_curriculum() -> None:
    source = {"type": "reasoning_gym", "dataset": "chain_sum", "size": 6, "levels": 3, "parameters": {"min_terms": 2}}
    prompts = load(config(source).source)
    assert [prompt.level for prompt in prompts] == [0] * 6 + [1] * 6 + [2] * 6
    for prompt in prompts:
        terms = re.findall(r"\d+", prompt.metadata["expression"])
        level = prompt.level or 0
        assert 2 <= len(terms) <= 2 + level  # 2, 3, 4 terms, but `min_terms` stays 2
        assert {len(term) for term in terms} == {1 + level}
        assert prompt.metadata["source_dataset"] == "chain_sum"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"levels": 12}, r"prompts\.source\.levels: the curriculum of 'chain_sum' has 11 levels, not 12"),
        ({"dataset": "gsm_symbolic", "levels": 2}, r"levels: reasoning-gym has no curriculum for 'gsm_symbolic'"),
        ({"dataset": "knight_swap", "levels": 2}, "refuses 'knight_swap' at level 0: min_nodes must be >= 6"),
    ],
)
def test_levels_that_there_are_not_are_told(change: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        load(config({"type": "reasoning_gym", "dataset": "chain_sum", "size": 1} | change).source)


# Mixtures


def test_each_part_of_a_mixture_has_its_own_wording_and_its_name() -> None:
    sums = inline({"prompt": "1 + 1", "answer": "#### 2"}, {"prompt": "1 + 2", "answer": "#### 3"}, task="sums")
    talk = inline({"prompt": [{"role": "user", "content": "Hallo"}]}, task="talk", answer_field=None)
    parts = mixture(
        sums=sums | {"_template": "{prompt} =", "_answer_pattern": "#### (.*)"}, talk=talk | {"_system": "Be kind."}
    )
    made = prepare(config(parts, system="Be brief."))
    assert contents(made.train) == ["Be brief. | 1 + 1 =", "Be brief. | 1 + 2 =", "Be kind. | Hallo"]
    assert made.train["source"].to_list() == ["sums", "sums", "talk"]
    assert made.train["task"].to_list() == ["sums", "sums", "talk"]
    assert made.train["answer"].to_list() == ["2", "3", None]
    assert made.warnings == []


def test_a_problem_of_a_part_is_named_by_its_place() -> None:
    parts = mixture(a=inline({"prompt": "a", "answer": 1}), b=inline({"prompt": "b"}))
    with pytest.raises(
        DataError, match=r"^prompts\.source\.parts\.1\.source\.rows, row 1: no answer .*1\.source\.answer_field"
    ):
        prepare(config(parts))
    with pytest.raises(ValidationError, match="two parts are named 'a'"):
        config({"type": "mixture", "parts": parts["parts"][:1] * 2})
    with pytest.raises(ValidationError, match="should match pattern"):
        config(mixture(**{"a.b": inline({"prompt": "a"})}))


def test_equal_prompts_of_two_parts_stay_with_the_first_and_a_part_without_its_own_is_told() -> None:
    rows = [{"prompt": text, "answer": "1"} for text in "abc"]
    made = prepare(config(mixture(one=inline(*rows[:2]), two=inline(*rows[1:]), three=inline(rows[0]))))
    assert list(zip(contents(made.train), made.train["source"], strict=True)) == [
        ("a", "one"),
        ("b", "one"),
        ("c", "two"),
    ]
    assert made.dropped == {"equal prompt": 2}
    assert made.warnings == ["the part 'three' has no training prompt that is not another part's too"]


def test_the_first_held_out_prompts_are_some_of_each_part() -> None:
    parts = {name: inline(*({"prompt": f"{name} {i}", "answer": "1"} for i in range(60))) for name in ("one", "two")}
    made = prepare(config(mixture(**parts), heldout=0.3))
    assert set(made.heldout["source"][:12]) == {"one", "two"}
    ids = prepare(config(mixture(**parts))).train["prompt_id"].to_list()
    assert sorted(made.heldout["prompt_id"]) == sorted(name for name in ids if is_heldout(name, 0.3))
    plain = prepare(config(parts["one"], heldout=0.3))  # one source keeps its order
    assert plain.heldout["prompt_id"].to_list() == [name for name in ids[:60] if is_heldout(name, 0.3)]


# Leaks


def test_a_prompt_that_is_held_out_but_for_case_and_white_space_is_told_or_dropped() -> None:
    source = inline(*({"prompt": text, "answer": "1"} for text in ("What is  1+1?", "what is 1+1?\n", "What is 1+2?")))
    heldout = inline({"prompt": "What is 1+1?", "answer": "1"})
    told = prepare(config(source, heldout_source=heldout))
    assert told.train.height == 3 and told.dropped == {"equal prompt": 0, "also held out": 0}
    assert len(told.warnings) == 1 and re.search("held out too but for case and white space: 2, e.g.", told.warnings[0])
    dropped = prepare(config(source, heldout_source=heldout, near_duplicates="drop"))
    assert contents(dropped.train) == ["What is 1+2?"] and dropped.warnings == []
    assert dropped.dropped["held out but for case and white space"] == 2


def test_the_same_question_in_another_wording_of_a_part_is_seen() -> None:
    row = {"prompt": "1 + 1", "answer": "2"}
    parts = mixture(
        bare=inline(row),
        asked=inline(row) | {"_template": "Solve {prompt}"},
        other=inline({"prompt": "c"}, answer_field=None),
    )
    heldout = mixture(bare=inline(row))
    made = prepare(config(parts, heldout_source=heldout, near_duplicates="drop"))
    assert contents(made.train) == ["c"]


def test_what_a_phase_before_was_trained_on_is_not_held_out_however_it_is_worded() -> None:
    source = inline(*({"prompt": f"What is {i}+{i}?", "answer": "1"} for i in range(200)))
    first = prepare(config(source, heldout=0.2))
    known = Known(first.train, first.heldout)

    def sides(**fields: Any) -> tuple[set[int], set[int]]:
        made = prepare(config(**({"source": source, "heldout": 0.2} | fields)), known)
        return set(made.train["near"]), set(made.heldout["near"])

    before = set(first.train["near"]), set(first.heldout["near"])
    assert sides(template="Solve: {prompt}") == sides(system="Be brief.") == sides(heldout=0.6) == before
    more = [*source["rows"], *({"prompt": f"What is {i}-{i}?", "answer": "1"} for i in range(200))]
    train, heldout = sides(source=inline(*more), template="{prompt}!")
    assert before[0] < train and before[1] < heldout and not train & heldout
    assert sides(heldout=0.0) == (before[0] | before[1], set())
    trained, unseen = first.train["messages"][0][-1]["content"], first.heldout["messages"][0][-1]["content"]
    told = prepare(
        config(source, heldout_source=inline(*({"prompt": text, "answer": "1"} for text in (trained.upper(), unseen)))),
        known,
    )
    assert contents(told.heldout) == [unseen] and told.dropped["trained on in a phase before"] == 1


def test_equal_prompts_with_other_answers_are_told() -> None:
    rows = [{"prompt": "a", "answer": answer} for answer in ("1", "2", "1")] + [{"prompt": "b", "answer": "1"}] * 2
    made = prepare(config(inline(*rows)))
    assert made.train["answer"].to_list() == ["1", "1"]
    (told,) = made.warnings
    assert re.search("another answer, of which the first counts: 1, e.g. [0-9a-f]{16} with '1', then '2'", told)


# What cannot be used


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "a\0b", "answer": "1"}, r"rows, row 2, column 'prompt': a NUL character at 1"),
        ({"prompt": "a", "answer": "1\0"}, r"rows, row 2, column 'answer': a NUL character at 1"),
        ({"prompt": "a\ud83d", "answer": "1"}, r"row 2, column 'prompt': half a surrogate pair at character 1"),
        ({"prompt": "x" * 10_000_000, "answer": "1"}, r"row 2, column 'prompt': 10000000 characters; 4000000 at most"),
        (
            {"prompt": [{"role": "user", "content": " "}], "answer": "1"},
            "row 2, .* none of its 1 messages says anything",
        ),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "1"}, "row 2, .*list of messages"),
        (
            {"prompt": [{"role": "user", "content": "x", "tool_calls": [1]}], "answer": "1"},
            "row 2, column 'prompt': a message with 'tool_calls', which no model would see; leave role and content",
        ),
        ({"prompt": b"a", "answer": "1"}, r"row 2, column 'prompt': a text or a list of messages .* this is b'a'"),
        ({"prompt": "a", "answer": float("nan")}, "row 2: no answer in column 'answer'"),
        (
            {"prompt": "a", "answer": "1", "task": None},
            "row 2: the name of a task is wanted in column 'task', this is None",
        ),
        (
            {"prompt": "a", "answer": "1", "task": "t", "level": "easy"},
            "row 2: a whole number .* 'level', this is 'easy'",
        ),
        ({"prompt": "a", "answer": "1", "task": "t", "level": True}, "row 2: a whole number .* 'level', this is True"),
        ({"prompt": "a", "answer": "1", "task": "t", "level": -1}, "row 2: a whole number from 0 .* this is -1"),
        ({"prompt": "a", "answer": "1", "task": "t"}, "row 2: a whole number .* 'level', this is missing"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: dict[str, Any], told: str) -> None:
    good = {"prompt": "good", "answer": "1", "task": "t", "level": 0}
    named = {"task_field": "task", "level_field": "level"}
    with pytest.raises(DataError, match=told) as caught:
        load(config(inline(good, {"task": "t", **({"level": 0} if "task" not in row else {})} | row, **named)).source)
    assert len(str(caught.value)) < 250


def test_names_inside_a_column_are_texts() -> None:
    for tests in ({1: "a", "b": 2}, [{"a": {None: 1}}]):
        with pytest.raises(
            ValidationError, match=r"row 2: the name (1|None) inside a column is no text; put it in quotes"
        ):
            config(inline({"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2, "tests": tests}))


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("composite", "several families at once are a source of `type: mixture` here"),
        ("codeio", "its problems are others each time, whatever the seed"),
        ("list_functions", "its problems are others each time, whatever the seed"),
        ("knight_swap", "differ from process to process"),
        ("word_ladder", "differ from process to process; begin each command, and what serves the run, with PYTHONHASH"),
    ],
)
def test_families_that_cannot_be_posed_again_are_refused(family: str, told: str) -> None:
    with pytest.raises(DataError, match=f"prompts.source.dataset: .*'{family}'.* {told}"):
        load(config({"type": "reasoning_gym", "dataset": family, "size": 1}).source)


def test_with_a_fixed_seed_of_hashes_a_family_that_follows_it_is_posed() -> None:
    code = (
        "from stages.prompts.config import ReasoningGymSource as S; from stages.prompts.sources import load; "
        "print([p.prompt for p in load(S(type='reasoning_gym', dataset='ransom_note', size=3))])"
    )
    fixed = os.environ | {"PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", code]
    one, two = (subprocess.run(command, env=fixed, capture_output=True, check=True).stdout for _ in range(2))
    assert one == two and one.count(b"ansom note") >= 3


def test_a_text_of_a_parquet_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 4)))
    broken = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"aG\xf6x"))
    pq.write_table(pa.table({"id": [1, 2], "prompt": broken}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p\.parquet, row 2, column 'prompt': not UTF-8 at byte 1$"):
        load(config({"type": "file", "path": str(tmp_path / "p.parquet")}).source)


def test_a_long_file_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stages.prompts.prepare as module

    path = tmp_path / "p.jsonl"
    path.write_text("".join(f'{{"prompt": "{i} + 1", "answer": {i + 1}}}\n' for i in range(5000)))
    whole = prepare(config({"type": "file", "path": str(path)}, heldout=0.2))
    most: list[int] = []
    real = module.table
    monkeypatch.setattr(module, "table", lambda raw, *rest: most.append(len(raw)) or real(raw, *rest))
    monkeypatch.setattr(module, "AT_ONCE", 700)
    parts = prepare(config({"type": "file", "path": str(path)}, heldout=0.2))
    assert max(most) == 700 and sum(most) == 5000
    assert parts.train.equals(whole.train) and parts.heldout.equals(whole.heldout)


# Prompts dropped into a run


def test_new_prompts_of_a_part_are_worded_like_it_and_leak_nothing_that_is_held_out(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1", "answer": "2"}, {"prompt": "say", "answer": "x"}]
    parts = mixture(sums=inline(rows[0]) | {"_template": "{prompt} ="}, talk=inline(rows[1]))
    fields: dict[str, Any] = {
        "heldout_source": inline({"prompt": "Greet!", "answer": "y"}, {"prompt": "2 + 2", "answer": "4"})
    }
    new = {
        "sums/a.jsonl": [
            {"prompt": "1 + 2", "answer": "3"},
            {"prompt": "1 + 1", "answer": "2"},
            {"prompt": "2  +  2", "answer": "4"},
        ],
        "talk/b.jsonl": [{"prompt": "greet! ", "answer": "y"}, {"prompt": "Greet!", "answer": "y"}],
        "c.jsonl": [{"prompt": "d", "answer": "1"}],
    }
    for choice, kept in (("warn", ["1 + 2 =", "2  +  2 =", "greet! "]), ("drop", ["1 + 2 ="])):
        wanted = config(parts, near_duplicates=choice, **fields)
        paths = RunPaths.named(tmp_path, choice)
        run(Job(paths, 0, seed=1), wanted)
        for name, lines in new.items():
            (paths.data / name).parent.mkdir(parents=True, exist_ok=True)
            (paths.data / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        added.run(Job(paths, 1, seed=1), wanted)
        train = tables.read(paths.stage(1, "prompts") / "train.parquet", PROMPTS)
        manifest = read_manifest(paths.stage(1, "prompts"))
        assert manifest is not None and contents(train) == kept
        assert train["source"].to_list() == ["sums", "sums", "talk"][: len(kept)]
        assert sorted(name for name in manifest.inputs if name.startswith("data/")) == [
            "data/sums/a.jsonl",
            "data/talk/b.jsonl",
        ]
        assert manifest.dropped["trained on already"] == 1 and manifest.dropped["held out"] == 1
        told = " ".join(manifest.notes["warnings"])
        assert "c.jsonl: belongs into the folder of a part of the mixture" in told
        assert ("2 new prompts are held out too but for case and white space" in told) == (choice == "warn")
        assert manifest.dropped.get("held out but for case and white space", 0) == 2 * (choice == "drop")


def dropped_in(paths: RunPaths, name: str, *rows: dict[str, Any]) -> None:
    (paths.data / name).parent.mkdir(parents=True, exist_ok=True)
    (paths.data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_new_prompts_are_compared_with_the_held_out_ones_as_both_are_worded(tmp_path: Path) -> None:
    heldout = inline({"prompt": "What is 1+1?", "answer": 2})
    wanted = config(
        inline({"prompt": "a", "answer": 1}),
        heldout_source=heldout,
        template="Solve: {prompt}",
        system="Be brief.",
        near_duplicates="drop",
    )
    paths = RunPaths.named(tmp_path, "worded")
    run(Job(paths, 0, seed=1), wanted)
    dropped_in(paths, "n.jsonl", {"prompt": "what is  1+1?", "answer": 2}, {"prompt": "What is 1+2?", "answer": 3})
    added.run(Job(paths, 1, seed=1), wanted)
    assert contents(tables.read(paths.stage(1, "prompts") / "train.parquet", PROMPTS)) == [
        "Be brief. | Solve: What is 1+2?"
    ]


def test_conversations_are_near_where_all_that_was_said_is() -> None:
    def asked(text: str) -> dict[str, Any]:
        said = [("system", "Be kind."), ("user", text), ("assistant", "Ok."), ("user", "Answer it now.")]
        return {"prompt": [{"role": role, "content": content} for role, content in said], "answer": 1}

    rows = [asked(f"Problem {i}") for i in range(9)]
    made = prepare(config(inline(*rows), heldout_source=inline(asked("problem  3")), near_duplicates="drop"))
    assert made.train.height == 8 and made.dropped["held out but for case and white space"] == 1


def test_a_file_belongs_to_the_part_in_whose_folder_it_lies(tmp_path: Path) -> None:
    row = {"prompt": "b", "answer": 2}
    wanted = config(
        mixture(sums=inline({"prompt": "a", "answer": 1}), talk=inline(row) | {"_template": "Say {prompt}"})
    )
    paths = RunPaths.named(tmp_path, "parts")
    run(Job(paths, 0, seed=1), wanted)
    dropped_in(paths, "sum/n.jsonl", {"prompt": "c", "answer": 3})
    found = added.new_files(paths, wanted)
    assert not found.tables and found.problems == [
        f"{paths.data / 'sum'}: its files are not taken up: no part of the mixture has this name, they are sums, talk"
    ]
    (paths.data / "sum").rename(paths.data / "sums")
    added.run(Job(paths, 1, seed=1), wanted)
    (paths.data / "talk").mkdir()
    (paths.data / "sums" / "n.jsonl").rename(paths.data / "talk" / "n.jsonl")
    ((path, frame),) = added.new_files(paths, wanted).tables.items()
    assert path.parent.name == "talk" and contents(frame) == ["Say c"]
    with pytest.raises(DataError, match=r"data/sums/n\.jsonl: gone or changed since iteration 1 took it up"):
        added.run(Job(paths, 1, seed=1), wanted)
