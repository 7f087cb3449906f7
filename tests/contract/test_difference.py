"""How far two outputs are apart, by hand."""

import polars as pl
import pytest
import torch

from stages.contract.difference import table_difference, tensors_difference
from stages.contract.weights import write_tensors


def rows(**changed):
    columns = {
        "prompt_id": ["a", "a", "b"],
        "sample": [0, 1, 0],
        "reward": [1.0, float("nan"), None],
        "logprobs": [[-1.0, -2.0], [], [-3.0]],
        "text": ["x", "y", "z"],
    }
    return pl.DataFrame(columns | changed)


def test_equal_tables_do_not_differ_in_any_order():
    assert table_difference(rows(), rows()[[2, 0, 1]]) == {
        "rows": 0, "of": 3, "first": [], "only_old": 0, "only_new": 0, "columns": {}, "types": [],
    }  # fmt: skip


def test_columns_are_compared_by_value_and_rows_by_key():
    new = rows(reward=[1.25, float("nan"), None], logprobs=[[-1.0, -2.5], [-1.0], [-3.0]], text=["x", "y", "?"])
    told = table_difference(rows(), new[[1, 2, 0]])
    assert told["columns"] == {
        "reward": {"rows": 1, "greatest": 0.25},
        "logprobs": {"rows": 2, "lengths": 1, "greatest": 0.5},
        "text": {"rows": 1},
    }
    assert told["rows"] == 3
    assert told["first"] == [
        {"prompt_id": "a", "sample": 0},
        {"prompt_id": "a", "sample": 1},
        {"prompt_id": "b", "sample": 0},
    ]


def test_rows_without_a_partner_and_columns_of_another_type_are_counted():
    new = rows(text=[1, 2, 3]).with_columns(pl.Series("sample", [0, 1, 5]), pl.lit(1).alias("more"))
    told = table_difference(rows(), new)
    assert (told["of"], told["only_old"], told["only_new"], told["types"]) == (2, 1, 1, ["more", "text"])
    assert told["columns"] == {}


def test_tables_without_a_key_are_compared_by_place():
    told = table_difference(pl.DataFrame({"loss": [0.5, 0.25, 3.0]}), pl.DataFrame({"loss": [0.5, 0.75, 1.0]}))
    assert (told["rows"], told["first"]) == (2, [{"row": 1}, {"row": 2}])
    assert told["columns"] == {"loss": {"rows": 2, "greatest": 2.0}}


def test_tensors_are_compared_by_name(tmp_path):
    write_tensors(tmp_path / "old", {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2), "c": torch.zeros(2)})
    write_tensors(tmp_path / "new", {"a": torch.tensor([1.0, 2.5]), "b": torch.zeros(2), "c": torch.zeros(3)})
    told = tensors_difference(tmp_path / "old", tmp_path / "new")
    assert told == {"tensors": 1, "of": 3, "greatest": pytest.approx(0.5), "in": "a", "types": ["c"]}
