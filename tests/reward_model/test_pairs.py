"""Preferences: TRL's formats, what is no pair, which are held out, and pairs made from answers."""

import json

import polars as pl
import pytest

from stages.contract.errors import DataError
from stages.reward_model.config import AnswerPairs
from stages.reward_model.pairs import Pair, from_answers, from_file, is_heldout
from tests.warmstart.test_warmstart import prompt_table

ASKED = [{"role": "user", "content": "What colour is the sky?"}]
BLUE, GREEN = ([{"role": "assistant", "content": f"It is {colour}."}] for colour in ("blue", "green"))


def written(folder, *rows):
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder / "pairs.jsonl"


def test_all_formats_of_trl_say_the_same(tmp_path):
    rows = [
        {"prompt": ASKED, "chosen": BLUE, "rejected": GREEN},  # conversational, the prompt by itself
        {"chosen": ASKED + BLUE, "rejected": ASKED + GREEN},  # the prompt inside
        {"prompt": ASKED[0]["content"], "chosen": "It is blue.", "rejected": "It is green."},  # plain texts
        {"prompt": None, "chosen": ASKED + BLUE, "rejected": ASKED + GREEN, "score": 3},
    ]
    pairs = from_file(written(tmp_path, *rows), plain=False)
    assert pairs == [Pair(ASKED + BLUE, ASKED + GREEN)] * 4
    assert pairs[0].prompt == ASKED
    pl.DataFrame(rows[:1] * 2).write_parquet(tmp_path / "pairs.parquet")
    assert from_file(tmp_path / "pairs.parquet", plain=False) == pairs[:2]


def test_plain_texts_that_hold_their_prompt_are_pairs_of_plain_text_alone(tmp_path):
    path = written(tmp_path, {"chosen": "The sky is blue.", "rejected": "The sky is green."})
    [pair] = from_file(path, plain=True)
    assert [message["content"] for message in pair.chosen + pair.rejected] == ["The sky is blue.", "The sky is green."]
    with pytest.raises(DataError, match=r"row 1: there is no prompt, and 'chosen' is a text: set reward_model\.format"):
        from_file(path, plain=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no pairs"),
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: a JSON object is wanted, this is list"),
        ('{"chosen": "\\ud800", "rejected": "b", "prompt": "c"}', "line 1: not JSON"),
        ('{"prompt": "a", "chosen": "b"}', r"row 1: no column 'rejected', only \['chosen', 'prompt'\]"),
        ('{"prompt": "a", "chosen": "b", "rejected": null}', "row 1, column 'rejected': a text or a list of messages"),
        ('{"prompt": "a", "chosen": "b", "rejected": " "}', "row 1, column 'rejected'"),
        ('{"prompt": 7, "chosen": "b", "rejected": "c"}', "row 1, column 'prompt'"),
        ('\n\n{"prompt": "a", "chosen": [{"role": "user"}], "rejected": "c"}', "row 1, column 'chosen'"),
    ],
)
def test_what_is_no_pair_is_named(tmp_path, text, message):
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        from_file(tmp_path / "pairs.jsonl", plain=False)


def test_files_that_cannot_be_read_are_named(tmp_path):
    for name, content, message in (
        ("nowhere.jsonl", None, "no file"),
        ("pairs.csv", b"a", r"ends in '\.csv'; \.jsonl or \.parquet is wanted"),
        ("pairs.parquet", b"PAR1", "cannot be read as Parquet"),
        ("pairs.jsonl", b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            from_file(tmp_path / name, plain=False)


def test_no_prompt_is_on_both_sides_and_more_pairs_move_none():
    def pair(prompt, right):
        asked = [{"role": "user", "content": prompt}]
        return Pair(*([*asked, {"role": "assistant", "content": text}] for text in (right, f"not {right}")))

    held = {prompt: {is_heldout(pair(f"question {prompt}", str(i)), 0.2) for i in range(5)} for prompt in range(1000)}
    assert all(len(sides) == 1 for sides in held.values())
    # 1,000 prompts: the standard error of a share of 0.2 is 0.013
    assert sum(True in sides for sides in held.values()) == pytest.approx(200, abs=50)

    def talk(question, answer):
        return [{"role": "assistant", "content": f"\n\nHuman: {question}\n\nAssistant: {answer}"}]

    for q in range(100):  # the question is known where texts hold it, as in HH-RLHF
        pairs = [Pair(talk(q, f"It is {i}."), talk(q, f"It was {i}.")) for i in range(5)]
        assert len({is_heldout(pair, 0.5) for pair in pairs}) == 1
        assert pairs[0].prompt[0]["content"] == f"\n\nHuman: {q}\n\nAssistant:"
    texts = [
        Pair([{"role": "assistant", "content": f"a{i}"}], [{"role": "assistant", "content": "b"}]) for i in range(99)
    ]
    assert 0 < sum(is_heldout(text, 0.5) for text in texts) < 99  # without a prompt each pair is by itself


def test_of_answers_the_right_one_is_chosen_and_a_wrong_one_rejected():
    pairs = from_answers(prompt_table([str(10 * i) for i in range(200)]), AnswerPairs(type="answers", per_prompt=3), 1)
    assert len(pairs) == 600
    right, wrong = ([int(getattr(pair, side)[-1]["content"]) for pair in pairs] for side in ("chosen", "rejected"))
    assert right == [10 * (i // 3) for i in range(600)]
    assert {there - here for here, there in zip(right, wrong, strict=True)} == {-10, -2, -1, 1, 2, 10}
    assert pairs[7].prompt == [{"role": "user", "content": "question 2"}]
    with pytest.raises(DataError, match=r"integer answers, a prompt has '1\.5'"):
        from_answers(prompt_table(["1.5"]), AnswerPairs(type="answers"), 1)
    with pytest.raises(ValueError, match="0 would reject the right answer"):
        AnswerPairs(type="answers", offsets=(0, 1))
