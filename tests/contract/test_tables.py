"""Tables keep what they are given, refuse what does not fit, and join one to one."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contract import tables
from stages.contract.columns import (
    ADVANTAGES,
    DEMONSTRATIONS,
    EVALUATION,
    PROMPTS,
    QUESTIONS,
    ROLLOUTS,
    SCHEMA_VERSION,
    SCORES,
    STEPS,
    SUPERVISED_STEPS,
    Table,
)
from stages.contract.errors import ArtifactError

KEYS: dict[str, Any] = {"prompt_id": ["a", "a", "b"], "sample": [0, 1, 0]}
EXAMPLES: dict[str, tuple[Table, dict[str, Any]]] = {
    "prompts": (
        PROMPTS,
        {
            "prompt_id": ["a", "b"],
            "messages": [
                [{"role": "system", "content": "Rechne."}, {"role": "user", "content": "1 + 1 = 🙂"}],
                [{"role": "user", "content": "Ein Satz\nin zwei Zeilen"}],
            ],
            "format": ["chat", "text"],
            "task": ["sums", "words"],
            "answer": ["2", None],
            "metadata": ["{}", '{"level": 3}'],
            "source": [None, "words"],
            "level": [None, 3],
        },
    ),
    "questions": (QUESTIONS, {"prompt_id": ["a", "b"], "near": [-(2**63), 7]}),
    "demonstrations": (
        DEMONSTRATIONS,
        KEYS | {"prompt": ["1+1=", "1+1=", "2+2="], "completion": ["2", "3", ""], "correct": [True, False, None]},
    ),
    "supervised_steps": (
        SUPERVISED_STEPS,
        {"step": [1, 2], "tokens": [40, 41], "learning_rate": [0.5, 0.25], "loss": [2.0, 1.5], "gradient_norm": [1, 2]},
    ),
    "rollouts": (
        ROLLOUTS,
        KEYS
        | {
            "prompt": ["1+1=", "1+1=", "2+2="],
            "prompt_tokens": [[5, 6, 5, 7], [5, 6, 5, 7], [8, 6, 8, 7]],
            "completion": ["2", "", "4"],
            "completion_tokens": [[8, 1], [1], [10, 1]],
            "sampler_logprobs": [[-0.5, -0.25], [-3.0], [-0.125, -0.0]],
            "finish_reason": ["stop", "stop", "length"],
            "temperature": [1.0, 1.0, 0.5],
            "seed": [2**63 - 1, 0, 7],
            "task": ["sums"] * 3,
            "answer": ["2", "2", None],
            "metadata": ["{}"] * 3,
            "messages": [None] * 3,
            "format": [None] * 3,
            "policy_digest": ["d" * 64] * 3,
        },
    ),
    "scores": (
        SCORES,
        KEYS
        | {
            "reward": [1.0, None, 0.5],
            "error": [None, "math: no verdict in 5 s", None],
            "extracted": ["2", None, "4"],
            "reference_logprobs": [[-0.5, -0.25], None, []],
            "values": [[0.5, 0.75], None, []],
            "token_rewards": [[0.0, 1.0], None, []],
            "step_ends": [[1], None, []],
            "reward_math": [1.0, None, 0.5],
            "status_math": ["ok", "timeout", "ok"],
            "weight_math": [1.0, 1.0, 1.0],
        },
    ),
    "advantages": (
        ADVANTAGES,
        KEYS
        | {
            "advantages": [[0.5, 0.5], [-0.5], []],
            "returns": [[1.0, 0.5], None, []],
            "train": [True, True, False],
            "reason": [None, None, "no spread"],
            "group_mean": [0.5, 0.5, None],
            "group_std": [0.25, 0.25, None],
        },
    ),
    "steps": (
        STEPS,
        {
            "step": [1, 2],
            "epoch": [1, 1],
            "minibatch": [1, 2],
            "rows": [8, 8],
            "tokens": [100, 90],
            "learning_rate": [0.5, 0.25],
            "loss": [0.125, -0.125],
            "gradient_norm": [1.5, 2.5],
            "kl": [0.0, None],
            "ratio_max": [1.25, 1.5],
        },
    ),
    "evaluation": (
        EVALUATION,
        {
            "prompt_id": ["a", "b"],
            "task": ["sums", "sums"],
            "samples": [4, 4],
            "successes": [1, 0],
            "reward_mean": [0.25, None],
            "majority_answer": ["2", None],
            "majority_correct": [True, None],
            "pass_at_1": [0.25, 0.0],
            "pass_at_4": [1.0, 0.0],
        },
    ),
}


def scores(columns: dict[str, Any] | None = None) -> pl.DataFrame:
    return tables.frame(SCORES, EXAMPLES["scores"][1] | (columns or {}))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "table.parquet"


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_written_is_what_is_read(name: str, place: Path) -> None:
    table, columns = EXAMPLES[name]
    frame = tables.frame(table, columns)
    tables.write(place, frame, table)
    back = tables.read(place, table)
    assert back.equals(frame)
    assert back.schema == frame.schema
    assert back.to_dict(as_series=False) == columns


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_empty_table_keeps_its_types(name: str, place: Path) -> None:
    table, columns = EXAMPLES[name]
    empty = tables.frame(table, {column: [] for column in columns})
    tables.write(place, empty, table)
    assert tables.read(place, table).schema == tables.frame(table, columns).schema
    assert tables.read(place, table).height == 0


def test_the_file_holds_the_schema_of_the_code(place: Path) -> None:
    table, columns = EXAMPLES["rollouts"]
    tables.write(place, tables.frame(table, columns), table)
    schema = pq.read_schema(place)
    assert schema.equals(ROLLOUTS.schema(list(columns)), check_metadata=False)
    assert schema.metadata[b"table"] == b"rollouts"
    assert schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    assert schema.field("prompt_tokens").type == pa.list_(pa.int32())
    assert not schema.field("sampler_logprobs").nullable


def test_anyone_can_read_a_table_with_plain_polars(place: Path) -> None:
    table, columns = EXAMPLES["rollouts"]
    tables.write(place, tables.frame(table, columns), table)
    frame = pl.read_parquet(place)
    assert frame.schema["completion_tokens"] == pl.List(pl.Int32)
    assert frame.schema["sampler_logprobs"] == pl.List(pl.Float32)
    assert frame["completion_tokens"].to_list() == [[8, 1], [1], [10, 1]]
    assert frame["sampler_logprobs"].list.sum().to_list() == [-0.75, -3.0, -0.125]


def test_equal_frames_give_equal_bytes_however_they_came_about(tmp_path: Path) -> None:
    rows = 20_000  # more than two row groups
    columns = {
        "prompt_id": [f"p{i // 4}" for i in range(rows)],
        "sample": [i % 4 for i in range(rows)],
        "reward": [None if i % 7 == 0 else i / 3 for i in range(rows)],
        "error": [None] * rows,
        "extracted": [str(i % 13) for i in range(rows)],
        "reference_logprobs": [[-0.5] * (i % 3) for i in range(rows)],
        **dict.fromkeys(("values", "token_rewards", "step_ends"), [None] * rows),
    }
    whole = tables.frame(SCORES, columns)
    longer = pl.concat([whole, scores().select(whole.columns)])
    same = {
        "again": tables.frame(SCORES, columns),
        "in chunks": pl.concat([whole[:7], whole[7:15_000], whole[15_000:]], rechunk=False),
        "sliced": longer[:rows],
        "filtered": longer.filter(~pl.col("prompt_id").is_in(["a", "b"])),
        "columns in another order": whole.select(reversed(whole.columns)),
    }
    tables.write(tmp_path / "whole", whole, SCORES)
    for name, frame in same.items():
        tables.write(tmp_path / name, frame, SCORES)
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole").read_bytes(), name
    tables.write(tmp_path / "another", whole.with_columns(extracted=pl.lit("5")), SCORES)
    assert (tmp_path / "another").read_bytes() != (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_missing_column_is_refused(name: str, place: Path) -> None:
    table, columns = EXAMPLES[name]
    last = table.fields[-1].name
    with pytest.raises(ValueError, match=f"'{table.name}' lacks the columns .*'{last}'"):
        tables.write(place, tables.frame(table, columns).drop(last), table)
    assert not place.exists()


def test_a_column_of_no_family_is_refused(place: Path) -> None:
    with pytest.raises(ValueError, match="'scores' has no column 'bonus'"):
        tables.write(place, scores().with_columns(bonus=pl.lit(1.0)), SCORES)
    with pytest.raises(ValueError, match="'scores' has no column 'bonus'"):
        scores({"bonus": [1.0, 1.0, 1.0]})
    assert not place.exists()


def test_a_family_takes_any_number_of_columns_in_the_order_given(place: Path) -> None:
    named = {f"reward_{name}": [0.0, 0.5, 1.0] for name in ("zeal", "art")}
    tables.write(place, scores(named), SCORES)
    assert tables.read(place, SCORES).columns[-3:] == ["weight_math", "reward_zeal", "reward_art"]


def test_values_of_another_type_are_refused(place: Path) -> None:
    with pytest.raises(ValueError, match="Failed to parse string: 'two'"):
        tables.write(place, scores().with_columns(sample=pl.Series(["one", "two", "3"])), SCORES)
    with pytest.raises(ValueError, match="truncated"):
        tables.write(place, scores().with_columns(sample=pl.Series([0.0, 1.5, 0.0])), SCORES)
    with pytest.raises(TypeError, match="Int32"):
        scores({"sample": [0, 2**40, 0]})
    assert not place.exists()


@pytest.mark.parametrize("column", ["prompt_id", "sample"])
def test_a_null_in_the_key_is_refused(column: str, place: Path) -> None:
    values = [*KEYS[column][:2], None]
    with pytest.raises(ValueError, match=f"column '{column}' holds a null"):
        tables.write(place, scores({column: values}), SCORES)


def test_a_null_is_refused_where_none_may_be_and_kept_where_one_may(place: Path) -> None:
    table, columns = EXAMPLES["advantages"]
    for name, values in {"train": [True, None, True], "advantages": [[0.5], None, []]}.items():
        with pytest.raises(ValueError, match=f"column '{name}' holds a null"):
            tables.write(place, tables.frame(table, columns | {name: values}), table)
    tables.write(place, tables.frame(table, columns | {"group_std": [None] * 3}), table)
    assert tables.read(place, table)["group_std"].null_count() == 3


def test_a_null_inside_a_list_is_refused(place: Path) -> None:
    table, columns = EXAMPLES["advantages"]
    broken = tables.frame(table, columns | {"advantages": [[0.5, None], [-0.5], []]})
    with pytest.raises(ValueError, match="column 'advantages' holds a null"):
        tables.write(place, broken, table)
    with pytest.raises(ValueError, match="column 'reference_logprobs' holds a null"):
        tables.write(place, scores({"reference_logprobs": [[None], None, []]}), SCORES)
    headless = [[{"role": None, "content": "1 + 1 ="}], [{"role": "user", "content": ""}]]
    with pytest.raises(ValueError, match="role"):
        tables.write(place, tables.frame(PROMPTS, EXAMPLES["prompts"][1] | {"messages": headless}), PROMPTS)


def test_a_repeated_key_is_refused(place: Path) -> None:
    with pytest.raises(ValueError, match=r"the key \('prompt_id', 'sample'\) repeats"):
        tables.write(place, scores({"sample": [0, 0, 0]}), SCORES)
    assert not place.exists()


def test_no_file_is_named(place: Path) -> None:
    with pytest.raises(ArtifactError, match=r"table\.parquet: cannot be read as Parquet"):
        tables.read(place, SCORES)


def test_another_table_is_named(place: Path) -> None:
    tables.write(place, scores(), SCORES)
    with pytest.raises(ArtifactError, match=r"table\.parquet: holds the table 'scores', 'advantages' is wanted"):
        tables.read(place, ADVANTAGES)


def test_a_parquet_file_of_somebody_else_is_no_table(place: Path) -> None:
    scores().write_parquet(place)
    with pytest.raises(ArtifactError, match=r"table\.parquet: holds the table '\?', 'scores' is wanted"):
        tables.read(place, SCORES)


@pytest.mark.parametrize("version", ["99", "1.0", "?"])
def test_a_newer_schema_version_is_named(version: str, place: Path) -> None:
    tables.write(place, scores(), SCORES)
    table = pq.read_table(place)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"schema_version": version.encode()}), place)
    told = rf"table\.parquet: has schema version {re.escape(version)}, this code reads up to {SCHEMA_VERSION}: update"
    with pytest.raises(ArtifactError, match=told):
        tables.read(place, SCORES)


def test_a_table_of_an_older_schema_has_nulls_where_columns_came_later(place: Path) -> None:
    tables.write(place, scores(), SCORES)
    table = pq.read_table(place)
    later = ["values", "token_rewards", "step_ends"]
    old = table.drop_columns(later).replace_schema_metadata({**table.schema.metadata, b"schema_version": b"1"})
    pq.write_table(old, place)
    read = tables.read(place, SCORES)
    assert read.columns == scores().columns
    assert read.drop(later).equals(scores().drop(later))
    assert read.select(later).null_count().row(0) == (read.height,) * 3
    pq.write_table(old.drop_columns(["prompt_id"]).replace_schema_metadata(old.schema.metadata), place)
    with pytest.raises(ArtifactError, match=r"lacks the columns \['prompt_id'\]"):
        tables.read(place, SCORES)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.drop_columns(["extracted"]), r"lacks the columns \['extracted'\]"),
        (lambda table: table.append_column("bonus", pa.array([1.0] * 3)), "has no column 'bonus'"),
        (lambda table: table.set_column(1, "sample", pa.array([0, 1, 0])), "columns are"),
    ],
    ids=["a column less", "a column more", "another type"],
)
def test_columns_that_are_not_the_schemas_are_told(change: Any, told: str, place: Path) -> None:
    tables.write(place, scores(), SCORES)
    table = pq.read_table(place)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), place)
    with pytest.raises(ArtifactError, match=rf"table\.parquet: .*{told}"):
        tables.read(place, SCORES)


def test_a_table_cut_at_any_byte_is_refused_by_name(place: Path) -> None:
    tables.write(place, scores(), SCORES)
    whole = place.read_bytes()
    for length in range(0, len(whole), 7):
        place.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"table\.parquet: cannot be read as Parquet"):
            tables.read(place, SCORES)


def test_a_flipped_bit_never_escapes_as_another_error(place: Path) -> None:
    """In the footer a flip is an `ArtifactError` or harmless; in the data only digests are sure to see it."""
    table, columns = EXAMPLES["advantages"]
    tables.write(place, tables.frame(table, columns), table)
    whole = place.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    flips = [(at, 0x80 if at % 2 else 0x02) for at in range(footer, len(whole))]
    refused = 0
    for at, bit in flips:
        damaged = bytearray(whole)
        damaged[at] ^= bit
        place.write_bytes(damaged)
        try:
            tables.read(place, table)
        except ArtifactError as error:
            assert str(place) in str(error)
            refused += 1
    assert refused > len(flips) / 3


@pytest.mark.parametrize("content", [b"", b"PAR1", b'{"prompt_id": "a"}\n', b"PAR1" + b"\0" * 64 + b"PAR1"])
def test_what_is_no_parquet_is_refused_by_name(content: bytes, place: Path) -> None:
    place.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"table\.parquet: cannot be read as Parquet"):
        tables.read(place, SCORES)


LEFT = pl.DataFrame({"prompt_id": ["b", "a", "a"], "sample": [0, 1, 0], "reward": [3.0, 2.0, 1.0]})
RIGHT = pl.DataFrame({"prompt_id": ["a", "a", "b"], "sample": [0, 1, 0], "length": [10, 20, 30]})


def test_a_join_matches_by_key_and_keeps_the_left_order() -> None:
    joined = tables.join(LEFT, RIGHT, "rewards and lengths")
    assert joined.rows() == [("b", 0, 3.0, 30), ("a", 1, 2.0, 20), ("a", 0, 1.0, 10)]


@pytest.mark.parametrize(
    ("left", "right", "told"),
    [
        (LEFT, RIGHT[:2], "3 rows on the left, 2 on the right, 2 have a partner"),
        (LEFT[:2], RIGHT, "2 rows on the left, 3 on the right, 2 have a partner"),
        (LEFT, RIGHT.with_columns(sample=pl.Series([0, 1, 5])), "3 rows on the left, 3 on the right, 2 have a partner"),
        (LEFT, pl.concat([RIGHT, RIGHT[:1]]), "repeats"),
        (pl.concat([LEFT, LEFT[:1]]), RIGHT, "repeats"),
        (pl.concat([LEFT, LEFT[:1]]), pl.concat([RIGHT, RIGHT[:1]]), "repeats"),
        (LEFT[:0], RIGHT, "0 rows on the left, 3 on the right, 0 have a partner"),
    ],
    ids=["missing", "extra", "another", "repeated right", "repeated left", "repeated both", "none"],
)
def test_a_join_that_is_not_one_to_one_is_refused(left: pl.DataFrame, right: pl.DataFrame, told: str) -> None:
    with pytest.raises(ArtifactError, match=rf"^rewards and lengths: .*{told}"):
        tables.join(left, right, "rewards and lengths")
