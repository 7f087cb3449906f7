"""Parts of a table: the same work finds its part again, anything else does not."""

import pytest

from stages.contract import tables
from stages.contract.columns import ROLLOUTS
from stages.contract.config import deciding
from stages.contract.digest import file_digest
from stages.sample.config import SampleConfig
from stages.sample.shards import Parts, ranges

DECIDED = {
    "policy": "digest",
    "sample": deciding(SampleConfig()),
    "stop": [1],
    "packages": {"torch": "2"},
    "ids": ["a", "b"],
    "tokens": [[5, 6], [7]],
    "seeds": [[1], [2]],
}


def rollouts(first=20):
    columns = {
        "prompt_id": ["a", "b"],
        "sample": [0, 0],
        "prompt": ["12", "3"],
        "prompt_tokens": [[5, 6], [7]],
        "completion": ["ab", ""],
        "completion_tokens": [[first, 21, 1], [1]],
        "sampler_logprobs": [[-0.5, -1.25, -0.125], [-3.0]],
        "finish_reason": ["stop", "stop"],
        "temperature": [1.0, 1.0],
        "seed": [1, 2],
        "task": ["sums", "sums"],
        "answer": ["3", None],
        "metadata": ["{}", "{}"],
        "messages": [[{"role": "user", "content": "1 + 2"}], None],
        "format": ["chat", None],
        "policy_digest": ["digest", "digest"],
    }
    return tables.frame(ROLLOUTS, columns)


@pytest.fixture
def parts(tmp_path):
    return Parts(tmp_path / "iterations" / "0001" / ".sample.parts")


def test_ranges_by_hand():
    assert ranges(10, 1) == [range(10)]
    assert ranges(10, 4) == [range(2), range(2, 5), range(5, 7), range(7, 10)]
    assert ranges(8, 4) == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    assert ranges(3, 5) == [range(1), range(1, 2), range(2, 3)]  # no part is empty
    assert ranges(1, 1) == [range(1)]


def test_ranges_take_each_row_once_in_order_and_differ_by_one_row_at_most():
    for rows in range(1, 40):
        for shards in range(1, 12):
            cut = ranges(rows, shards)
            assert [row for part in cut for row in part] == list(range(rows))
            assert max(map(len, cut)) - min(map(len, cut)) <= 1
            assert min(map(len, cut)) > 0


def test_a_part_comes_back_as_it_was_kept(parts):
    assert parts.load(DECIDED) is None  # there is not even a folder
    parts.store(DECIDED, rollouts())
    assert parts.load(dict(reversed(DECIDED.items()))).equals(rollouts())
    assert [path.suffix for path in parts.folder.iterdir()] == [".parquet"]


OTHERS = {
    "another policy": {"policy": "another"},
    "another temperature": {
        "sample": deciding(SampleConfig.model_validate({"sampling": {"temperature": 0.5}})),
    },
    "another engine": {"sample": deciding(SampleConfig.model_validate({"engine": {"type": "vllm"}}))},
    "another end token": {"stop": [1, 2]},
    "other packages": {"packages": {"torch": "3"}},
    "another seed": {"seeds": [[1], [3]]},
    "another prompt of the same tokens": {"ids": ["a", "c"]},
    "the same prompt in other tokens": {"tokens": [[5, 6], [8]]},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_was_decided_otherwise_is_another_part(parts, name):
    parts.store(DECIDED, rollouts())
    assert parts.load(DECIDED | OTHERS[name]) is None
    parts.store(DECIDED | OTHERS[name], rollouts(first=33))
    assert parts.load(DECIDED | OTHERS[name]).equals(rollouts(first=33))
    assert parts.load(DECIDED).equals(rollouts())


def test_more_shards_limits_or_engines_do_not_make_another_configuration_of_the_parts():
    """Prompts and seeds name a part; how many shards there were, or how they were watched, changes nothing in it."""
    one = {"engine": {"type": "vllm"}}
    other = {"engine": {"type": "vllm", "engines": 2, "silence_limit": 9, "start_limit": 9}, "shards": 7}
    assert deciding(SampleConfig.model_validate(one)) == deciding(SampleConfig.model_validate(other))


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[:-7]
    elif how == "empty":
        content.clear()
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "bit-flipped", "empty"])
def test_a_damaged_part_is_not_used_and_can_be_kept_again(parts, how):
    parts.store(DECIDED, rollouts())
    [path] = parts.folder.iterdir()
    damage(path, how)
    assert parts.load(DECIDED) is None
    parts.store(DECIDED, rollouts())
    assert parts.load(DECIDED).equals(rollouts())


def test_a_whole_file_of_another_table_is_not_used(parts):
    parts.store(DECIDED, rollouts())
    [path] = parts.folder.iterdir()
    path.write_bytes(b"no table at all")
    stem = path.stem.rpartition("-")[0]
    path.rename(path.with_name(f"{stem}-{file_digest(path)}.parquet"))
    assert parts.load(DECIDED) is None


def test_what_a_kill_left_half_written_is_no_part(parts):
    parts.store(DECIDED, rollouts())
    [path] = parts.folder.iterdir()
    path.rename(parts.folder / ".partial")
    assert parts.load(DECIDED) is None
    parts.store(DECIDED, rollouts())
    assert [path.name.startswith(".") for path in parts.folder.iterdir()] == [False]
