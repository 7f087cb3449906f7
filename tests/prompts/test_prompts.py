"""From reasoning-gym, files and Hugging Face datasets to training and held-out prompts that have none in common."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import reasoning_gym
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.contract import tables
from stages.contract.columns import PROMPTS
from stages.contract.digest import file_digest
from stages.contract.errors import DataError
from stages.contract.manifest import Manifest, read_manifest
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job
from stages.prompts.config import PromptsConfig
from stages.prompts.rows import RawPrompt
from stages.prompts.sources import load
from stages.prompts.split import is_heldout, split
from stages.prompts.stage import run
from stages.prompts.table import table

SUMS = {
    "type": "reasoning_gym",
    "dataset": "chain_sum",
    "size": 40,
    "seed": 7,
    "parameters": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
}
GSM8K = [
    {"question": "Ann has 3 apples, Ben 4. How many?", "answer": "Together 3 + 4 = <<3+4=7>>7.\n#### 7"},
    {"question": "A car costs $1,200. What do two cost?", "answer": "2 * 1200 = 2,400\n####  2,400 "},
]


def config(source: dict[str, Any], **fields: Any) -> PromptsConfig:
    return PromptsConfig.model_validate({"source": source, "heldout": 0.0} | fields)


def jsonl(path: Path, rows: list[Any]) -> dict[str, Any]:
    """A source over a JSONL file of these rows."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {"type": "file", "path": str(path)}


def made(wanted: PromptsConfig) -> pl.DataFrame:
    return table(load(wanted.source), wanted)


def texts(frame: pl.DataFrame) -> list[str]:
    """The last message of each prompt."""
    return [messages[-1]["content"] for messages in frame["messages"].to_list()]


def done(tmp_path: Path, wanted: PromptsConfig) -> tuple[pl.DataFrame, pl.DataFrame, Manifest]:
    """Training prompts, held-out prompts and manifest of the stage, run on the disk."""
    paths = RunPaths.named(tmp_path, "night")
    run(Job(paths, 0, seed=1), wanted)
    folder = paths.stage(0, "prompts")
    manifest = read_manifest(folder)
    assert manifest is not None
    train, heldout = (tables.read(folder / f"{name}.parquet", PROMPTS) for name in ("train", "heldout"))
    return train, heldout, manifest


# Sources


def test_reasoning_gym_problems_carry_the_answer_and_all_that_the_verifier_needs() -> None:
    prompts = load(config(SUMS).source)
    assert len(prompts) == 40
    verifier = reasoning_gym.get_score_answer_fn("chain_sum")
    for prompt in prompts:
        terms = re.fullmatch(r"(\d\d) ([+-]) (\d\d)", prompt.metadata["expression"])
        assert terms is not None
        left, sign, right = terms.groups()
        assert prompt.answer == str(int(left) + int(right) if sign == "+" else int(left) - int(right))
        assert prompt.prompt == prompt.metadata["question"]
        assert prompt.task == "reasoning_gym/chain_sum"
        assert json.loads(json.dumps(prompt.metadata)) == prompt.metadata
        entry = {"answer": prompt.answer, "question": prompt.prompt, "metadata": dict(prompt.metadata)}
        assert verifier(answer=prompt.answer, entry=entry) == 1.0
        assert verifier(answer="no number", entry=entry) < 1.0


def test_reasoning_gym_repeats_by_seed() -> None:
    assert load(config(SUMS).source) == load(config(SUMS).source)
    assert load(config(SUMS).source) != load(config(SUMS | {"seed": 8}).source)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dataset": "chain_sums"}, "reasoning-gym refuses 'chain_sums': .*not registered"),
        ({"parameters": {"terms": 2}}, "reasoning-gym refuses 'chain_sum': .*'terms'"),
        ({"parameters": {"min_digits": 3, "max_digits": 2}}, "refuses 'chain_sum': max_digits must be >= min_digits"),
        ({"parameters": {"size": 2}}, "refuses 'chain_sum': .*'size'"),
        ({"parameters": {"min_terms": "two"}}, "refuses 'chain_sum': .*'str'"),
    ],
)
def test_what_reasoning_gym_refuses_is_told(change: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        load(config(SUMS | change).source)


ROWS = [
    {"prompt": "1 + 1", "answer": 2, "level": 1, "note": None},
    {"prompt": "Größe 🙂\nzweite Zeile", "answer": "ja", "level": 2, "note": "x"},
]
ROWS_READ = [
    RawPrompt("1 + 1", "2", "file", {"level": 1, "note": None}),
    RawPrompt("Größe 🙂\nzweite Zeile", "ja", "file", {"level": 2, "note": "x"}),
]


def test_a_jsonl_file_is_read_row_by_row(tmp_path: Path) -> None:
    assert load(config(jsonl(tmp_path / "p.jsonl", ROWS)).source) == ROWS_READ


def test_blank_lines_windows_ends_and_odd_separators_inside_a_text_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('\r\n{"prompt": "a\u2028b\x85c", "answer": 0}\r\n\n{"prompt": "d", "answer": false}', newline="")
    prompts = load(config({"type": "file", "path": str(path)}).source)
    assert [(prompt.prompt, prompt.answer) for prompt in prompts] == [("a\u2028b\x85c", "0"), ("d", "False")]


def test_a_parquet_file_gives_the_same_as_a_jsonl_file(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pl.DataFrame([row | {"answer": str(row["answer"])} for row in ROWS]).write_parquet(path)
    assert load(config({"type": "file", "path": str(path)}).source) == ROWS_READ


def test_columns_and_task_go_by_the_names_given(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", [{"q": "1 + 1", "a": "2", "answer": "no"}])
    named = source | {"prompt_field": "q", "answer_field": "a", "task": "sums"}
    assert load(config(named).source) == [RawPrompt("1 + 1", "2", "sums", {"a": "2", "answer": "no"})]
    unanswered = source | {"prompt_field": "q", "answer_field": None}
    assert load(config(unanswered).source) == [RawPrompt("1 + 1", None, "file", {"a": "2", "answer": "no"})]


def test_rows_may_stand_in_the_configuration() -> None:
    rows = [
        {"prompt": "1 + 1", "answer": 2, "kind": "sum"},
        {"prompt": [{"role": "user", "content": "Hallo"}], "answer": {"b": [1]}, "kind": "talk"},
    ]
    source = {"type": "inline", "rows": rows, "task_field": "kind"}
    assert load(config(source).source) == [
        RawPrompt("1 + 1", "2", "sum", {"kind": "sum"}),
        RawPrompt([{"role": "user", "content": "Hallo"}], '{"b": [1]}', "talk", {"kind": "talk"}),
    ]
    with pytest.raises(DataError, match=r"^prompts\.source\.rows, row 2: no answer in column 'answer'"):
        load(config({"type": "inline", "rows": [rows[0], {"prompt": "b"}]}).source)
    with pytest.raises(DataError, match=r"rows, row 1: the name of a task is wanted in column 'kin', this is missing"):
        load(config(source | {"task_field": "kin"}).source)


def test_dots_lead_into_nested_columns(tmp_path: Path) -> None:
    row = {"ask": {"text": "1 + 1"}, "ask.text": "2 + 2", "solution": {"short": "2"}}
    named = {"prompt_field": "ask.text", "answer_field": "solution.short"}
    found = load(config(jsonl(tmp_path / "p.jsonl", [row, {k: row[k] for k in ("ask", "solution")}]) | named).source)
    assert [(prompt.prompt, prompt.answer) for prompt in found] == [("2 + 2", "2"), ("1 + 1", "2")]
    assert found[0].metadata == {"ask": {"text": "1 + 1"}, "solution": {"short": "2"}}


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library `datasets`, with its cache in a folder of this test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def test_a_dataset_saved_to_disk_is_read(datasets: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_list(GSM8K).save_to_disk(tmp_path / "saved")
    source = {"type": "huggingface", "path": str(tmp_path / "saved"), "prompt_field": "question", "task": "gsm8k"}
    assert load(config(source).source) == [RawPrompt(row["question"], row["answer"], "gsm8k", {}) for row in GSM8K]


def test_a_text_of_a_dataset_that_is_not_utf8_is_named(datasets: Any, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 5)))
    broken = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"abG\xf6x"))
    pq.write_table(pa.table({"prompt": broken, "answer": ["1", "2", "3"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=rf"{tmp_path}, row 3: not UTF-8 at byte 1$"):
        load(config({"type": "huggingface", "path": str(tmp_path)}).source)


def test_a_split_of_a_dataset_saved_to_disk_is_read(datasets: Any, tmp_path: Path) -> None:
    splits = {"train": datasets.Dataset.from_list(GSM8K[:1]), "test": datasets.Dataset.from_list(GSM8K[1:])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    source = {"type": "huggingface", "path": str(tmp_path / "saved"), "prompt_field": "question"}
    assert [prompt.prompt for prompt in load(config(source).source)] == [GSM8K[0]["question"]]
    assert [prompt.prompt for prompt in load(config(source | {"split": "test"}).source)] == [GSM8K[1]["question"]]
    with pytest.raises(DataError, match=r"cannot load the dataset .*saved': 'validation'"):
        load(config(source | {"split": "validation"}).source)


def test_a_folder_of_data_files_is_a_dataset(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    conversation = [{"role": "user", "content": "Hallo"}]
    jsonl(tmp_path / "files" / "train.jsonl", [{"prompt": conversation, "answer": "Guten Tag", "level": 3}])
    jsonl(tmp_path / "files" / "test.jsonl", [{"prompt": conversation, "answer": "Servus", "level": 4}])
    source = {"type": "huggingface", "path": str(tmp_path / "files")}
    assert load(config(source).source) == [RawPrompt(conversation, "Guten Tag", "huggingface", {"level": 3})]
    assert load(config(source | {"split": "test"}).source)[0].answer == "Servus"
    with pytest.raises(DataError, match='Unknown split "validation"'):
        load(config(source | {"split": "validation"}).source)


@pytest.mark.parametrize(("name", "content"), [("bad", '{"prompt": \n'), ("empty", ""), ("none", None)])
def test_a_folder_that_is_no_dataset_is_named(name: str, content: str | None, datasets: Any, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    if content is not None:
        (tmp_path / name / "train.jsonl").write_text(content)
    with pytest.raises(DataError, match=rf"^prompts\.source: .*the dataset '\S*/{name}'"):
        load(config({"type": "huggingface", "path": str(tmp_path / name)}).source)


# Prompts


def test_a_text_becomes_one_message_and_all_else_metadata(tmp_path: Path) -> None:
    frame = made(config(jsonl(tmp_path / "p.jsonl", ROWS), format="text"))
    assert frame["messages"].to_list()[0] == [{"role": "user", "content": "1 + 1"}]
    assert frame["answer"].to_list() == ["2", "ja"]
    assert frame["format"].to_list() == ["text", "text"]
    assert [json.loads(text) for text in frame["metadata"]] == [row.metadata for row in ROWS_READ]


def test_messages_stay_as_they_are_after_the_system_message(tmp_path: Path) -> None:
    conversation = [
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Sure?"},
    ]
    source = jsonl(tmp_path / "p.jsonl", [{"prompt": conversation, "answer": "yes"}])
    assert made(config(source))["messages"].to_list() == [conversation]
    with_system = made(config(source, system="Be brief."))["messages"].to_list()
    assert with_system == [[{"role": "system", "content": "Be brief."}, *conversation]]
    with pytest.raises(DataError, match="messages, which take no template"):
        made(config(source, template="Q: {prompt}"))


def test_a_template_takes_the_prompt_and_other_columns(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", [{"prompt": "1 {x} 1", "answer": "2", "level": 3, "share": 0.25}])
    wanted = config(source, template="[{level:02d}, {share:.1%}] {prompt} {{={prompt!r}}}", system="Rechne.")
    assert made(wanted)["messages"].to_list() == [
        [
            {"role": "system", "content": "Rechne."},
            {"role": "user", "content": "[03, 25.0%] 1 {x} 1 {='1 {x} 1'}"},
        ]
    ]


def test_the_bare_sum_of_a_reasoning_gym_problem() -> None:
    frame = made(config(SUMS, template="{expression} ="))
    for text, answer in zip(texts(frame), frame["answer"], strict=True):
        left, sign, right, equals = text.split()
        assert equals == "="
        assert int(answer) == int(left) + (1 if sign == "+" else -1) * int(right)


def test_the_answer_is_cut_out_of_a_worked_solution(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", GSM8K) | {"prompt_field": "question"}
    assert made(config(source, answer_pattern="#### (.*)"))["answer"].to_list() == ["7", "2,400"]


@pytest.mark.parametrize("pattern", ["###### (.*)", "####(x)?", r"####(\s*)"])
def test_an_answer_that_the_pattern_does_not_give_is_told(pattern: str, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", GSM8K[:1]) | {"prompt_field": "question"}
    with pytest.raises(DataError, match=r"prompts\.answer_pattern: .* is not found in the answer 'Together 3 \+ 4"):
        made(config(source, answer_pattern=pattern))


def test_ids_go_by_messages_alone(tmp_path: Path) -> None:
    rows = [{"prompt": text, "answer": answer} for text, answer in (("a", "1"), ("b", "1"), ("a", "2"))]
    source = jsonl(tmp_path / "p.jsonl", rows)
    first, second, third = made(config(source))["prompt_id"]
    assert first == third != second
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert made(config(source, format="text"))["prompt_id"][0] == first
    assert made(config(source, system="Be brief."))["prompt_id"][0] != first


# Training and held-out


def raw(names: list[str]) -> pl.DataFrame:
    prompts = [RawPrompt(name or "empty", None, "t", {}) for name in names]
    return table(prompts, config({"type": "file", "path": "unused.jsonl"}))


NAMES = st.lists(st.text("abc", max_size=4), max_size=12)
SHARES = st.floats(0, 0.99)


@settings(deadline=None, max_examples=60)
@given(NAMES, NAMES, SHARES)
def test_no_prompt_is_in_both_and_growing_data_moves_none(names: list[str], more: list[str], share: float) -> None:
    train, heldout, dropped = split(raw(names), share, None)
    both = [*texts(train), *texts(heldout)]
    assert sorted(both) == sorted({name or "empty" for name in names})
    assert dropped == {"equal prompt": len(names) - len(both)}
    for grown in (names + more, more + names):
        train_of_all, heldout_of_all, _ = split(raw(grown), share, None)
        assert set(texts(train)) <= set(texts(train_of_all))
        assert set(texts(heldout)) <= set(texts(heldout_of_all))


@settings(deadline=None, max_examples=60)
@given(NAMES, NAMES)
def test_held_out_prompts_of_another_source_are_never_trained_on(names: list[str], other: list[str]) -> None:
    train, heldout, dropped = split(raw(names), 0.5, raw(other))
    left, right = {name or "empty" for name in names}, {name or "empty" for name in other}
    assert sorted(texts(heldout)) == sorted(right)
    assert sorted(texts(train)) == sorted(left - right)
    assert dropped == {
        "equal prompt": len(names) - len(left) + len(other) - len(right),
        "also held out": len(left & right),
    }


def test_a_share_is_held_out_and_a_greater_one_holds_the_lesser() -> None:
    ids = [f"{i:016x}" for i in range(4000)]
    chosen = {share: {name for name in ids if is_heldout(name, share)} for share in (0.0, 0.1, 0.25, 0.999999)}
    assert chosen[0.0] == set()
    assert len(chosen[0.1]) == pytest.approx(400, abs=95)  # 5 standard deviations
    assert len(chosen[0.25]) == pytest.approx(1000, abs=137)
    assert len(chosen[0.999999]) > 3990
    assert chosen[0.1] < chosen[0.25] < chosen[0.999999]


def test_the_first_of_equal_prompts_stays_in_the_order_of_the_source() -> None:
    train, _, dropped = split(raw(["c", "a", "c", "b", "a"]), 0.0, None)
    assert texts(train) == ["c", "a", "b"]
    assert dropped == {"equal prompt": 2}


def test_the_stage_writes_both_tables_and_counts_what_it_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": text, "answer": text} for text in ("a", "b", "leak", "a", "c")]
    other = [{"prompt": text, "answer": text} for text in ("x", "leak", "x")]
    source, heldout_source = jsonl(tmp_path / "p.jsonl", rows), jsonl(tmp_path / "h.jsonl", other)
    train, heldout, manifest = done(tmp_path, config(source, heldout_source=heldout_source, template="Say {prompt}"))
    assert texts(train) == ["Say a", "Say b", "Say c"]
    assert texts(heldout) == ["Say x", "Say leak"]
    assert manifest.dropped == {"equal prompt": 2, "also held out": 1}
    assert manifest.metrics == {"train_prompts": 3, "heldout_prompts": 2}
    assert {name: record.digest for name, record in manifest.inputs.items()} == {
        str(tmp_path / name): file_digest(tmp_path / name) for name in ("h.jsonl", "p.jsonl")
    }


def test_the_stage_splits_reasoning_gym_problems_by_share(tmp_path: Path) -> None:
    train, heldout, manifest = done(tmp_path, config(SUMS, heldout=0.3))
    kept = {*train["prompt_id"], *heldout["prompt_id"]}
    assert kept == {*made(config(SUMS))["prompt_id"]}
    assert len(kept) == train.height + heldout.height == 40 - manifest.dropped.get("equal prompt", 0)
    assert heldout["prompt_id"].to_list() == [name for name in made(config(SUMS))["prompt_id"] if is_heldout(name, 0.3)]
    assert 0 < heldout.height < train.height


def test_a_source_that_is_held_out_whole_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", ROWS)
    with pytest.raises(DataError, match=r"of 2 prompts none is left to train on .*'also held out': 2"):
        done(tmp_path, config(source, heldout_source=source))
    assert not RunPaths.named(tmp_path, "night").stage(0, "prompts").exists()


# What cannot be used


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "file gives no prompt"),
        ("\n \n", "file gives no prompt"),
        ('{"prompt": "a", "answer": 1}\n\n{"prompt": "b",\n', r"p\.jsonl, line 3: not JSON"),
        ('{"prompt": "a", "answer": 1}\n["b", 2]\n', r"p\.jsonl, line 2: a JSON object is wanted, this is list"),
        ("7\n", r"p\.jsonl, line 1: a JSON object is wanted, this is int"),
        ('{"prompt": "a \\ud83d", "answer": 1}\n', r"p\.jsonl, line 1: half a surrogate pair"),
        ("[" * 100_000, r"p\.jsonl, line 1: not JSON .*recursion"),
        ('{"question": "a", "answer": 1}\n', r"line 1: no column 'prompt', only \['answer', 'question'\]"),
        (
            '{"prompt": "a", "answer": 1}\n{"prompt": "b"}\n',
            r"line 2: no answer in column 'answer', only \['prompt'\] are there; fill it in",
        ),
        ('{"prompt": "a", "answer": null}\n', "line 1: no answer in column 'answer'"),
        ('{"prompt": "a", "answer": "  "}\n', "line 1: no answer in column 'answer'"),
        ('{"prompt": "  ", "answer": 1}\n', r"line 1, column 'prompt': a text or a list of messages .* this is '  '"),
        ('{"prompt": 7, "answer": 1}\n', "line 1, column 'prompt': a text or a list of messages .* this is 7"),
        ('{"prompt": [], "answer": 1}\n', "line 1, column 'prompt': a text or a list of messages"),
        ('{"prompt": ["a"], "answer": 1}\n', "line 1, column 'prompt': a text or a list of messages"),
        ('{"prompt": [{"role": "user"}], "answer": 1}\n', "line 1, column 'prompt': a text or a list of messages"),
        ('{"prompt": [{"role": "user", "content": 1}], "answer": 1}\n', "line 1, column 'prompt': a text or a list"),
    ],
)
def test_a_file_that_cannot_be_used_says_where(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=told) as caught:
        load(config({"type": "file", "path": str(tmp_path / "p.jsonl")}).source)
    assert "p.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.jsonl", b'{"prompt": "Gr\xf6\xdfe", "answer": 1}', r"p\.jsonl, line 1: not UTF-8 at byte 14"),
        ("p.jsonl", b"\xef\xbb\xbf{}", r"p\.jsonl, line 1: no column 'prompt'"),  # after a byte order mark
        ("p.jsonl", b'{"prompt": "a", "answer": 1, "b": "\\udc00"}', r"p\.jsonl, line 1: half a surrogate pair"),
        ("p.parquet", b"PAR1 and no more", r"p\.parquet: cannot be read as Parquet"),
        ("p.parquet", b"", r"p\.parquet: cannot be read as Parquet"),
        ("p.csv", b"prompt,answer\n", r"p\.csv ends in '\.csv'; \.jsonl, \.jsonl\.gz or \.parquet is"),
        ("p", b"", r"p ends in ''; \.jsonl, \.jsonl\.gz or \.parquet is"),
    ],
)
def test_bytes_that_cannot_be_read_are_told(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        load(config({"type": "file", "path": str(tmp_path / name)}).source)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "p.jsonl", tmp_path):
        with pytest.raises(DataError, match=rf"^prompts\.source\.path: no file {re.escape(str(path))}$"):
            load(config({"type": "file", "path": str(path)}).source)


def test_a_parquet_file_without_rows_gives_no_prompt(tmp_path: Path) -> None:
    pl.DataFrame(ROWS).clear().write_parquet(tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"file gives no prompt: .*p\.parquet"):
        load(config({"type": "file", "path": str(tmp_path / "p.parquet")}).source)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{prompt} {lvl}", r"no column 'lvl' in the source, only \['level', 'note', 'prompt'\]"),
        ("{answer}", "no column 'answer'"),
        ("{prompt:d}", "does not fit '1 \\+ 1': Unknown format code 'd'"),
        ("{note:>5}", "does not fit '1 \\+ 1': unsupported format string passed to NoneType"),
    ],
)
def test_a_template_that_does_not_fit_the_source_is_told(template: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^prompts\.template: .*{told}"):
        made(config(jsonl(tmp_path / "p.jsonl", ROWS), template=template))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"template": "{prompt"}, "write {{ and }} for braces"),
        ({"template": "prompt}"}, "write {{ and }} for braces"),
        ({"template": "{}"}, "'' in braces is not a plain column name"),
        ({"template": "{0}"}, "'0' in braces is not a plain column name"),
        ({"template": "{prompt.upper}"}, "'prompt.upper' in braces is not a plain column name"),
        ({"template": "{prompt[0]}"}, "in braces is not a plain column name"),
        ({"template": "{prompt:{level.real}}"}, "in braces is not a plain column name"),
        ({"answer_pattern": "#### .*"}, "has 0 groups; one is wanted, around the answer"),
        ({"answer_pattern": "(#+) (.*)"}, "has 2 groups; one is wanted, around the answer"),
        ({"answer_pattern": "(####"}, "not a regular expression"),
        ({"heldout": 1.0}, "less than 1"),
        ({"heldout": -0.1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_before_anything_is_read(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        config({"type": "file", "path": "nowhere.jsonl"}, **fields)
