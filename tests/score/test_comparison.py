"""What other rewards would have changed, by hand."""

import polars as pl
import pytest

from stages.contract import tables
from stages.contract.columns import ADVANTAGES, RESCORED, ROLLOUTS, SCORES
from stages.score.comparison import compared, iteration_figures, repetition, reward_figures

NAMES = ["a", "a", "a", "a", "b", "b", "b", "b"]
SAMPLES = [0, 1, 2, 3] * 2


def rollouts(lengths):
    text = ["x"] * 8
    columns = dict.fromkeys(("prompt", "completion", "finish_reason", "task", "metadata", "policy_digest"), text)
    columns |= {"prompt_id": NAMES, "sample": SAMPLES, "completion_tokens": [list(range(n)) for n in lengths]}
    columns |= {"prompt_tokens": [[1]] * 8, "sampler_logprobs": [[0.0] * n for n in lengths], "seed": [0] * 8}
    columns |= {"temperature": [1.0] * 8, "answer": text, "messages": [None] * 8, "format": [None] * 8}
    return tables.frame(ROLLOUTS, {field.name: columns[field.name] for field in ROLLOUTS.fields})


def scores(total, **rewards):
    columns = {field.name: [None] * 8 for field in SCORES.fields} | {"prompt_id": NAMES, "sample": SAMPLES}
    parts = {f"reward_{name}": values for name, values in rewards.items()}
    return tables.frame(SCORES, columns | {"reward": total} | parts)


def advantages(values):
    columns = {"prompt_id": NAMES, "sample": SAMPLES, "advantages": [[value] * 2 for value in values]}
    columns |= {"train": [value != 0 for value in values], "returns": [None] * 8, "reason": [None] * 8}
    return tables.frame(ADVANTAGES, columns | {"group_mean": [0.0] * 8, "group_std": [0.0] * 8})


OLD = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
NEW = [0.0, 2.0, 2.0, 0.0, 4.0, None, 0.0, 0.0]


@pytest.fixture
def rows():
    old = scores(OLD, truth=OLD)
    new = scores(NEW, style=NEW, flat=[1.0] * 8)
    sides = advantages([1, 1, -1, -1, 0, 0, 0, 0]), advantages([-1, -1, 1, -1, 2, 0, -1, 0])
    drawn = rollouts([5, 5, 5, 6, 40, 5, 5, 5])
    part = compared(drawn, old, new, sides, 3, False, ("truth", 1.0))
    # the same scores in another order of rows: it is joined by keys
    again = compared(drawn, old.reverse(), new.reverse(), (sides[0].reverse(), sides[1]), 3, False, ("truth", 1.0))
    assert part.equals(again)
    held = compared(drawn, old, new, (None, None), 3, True, ("unheard_of", 1.0))
    return pl.concat([part, held])


def test_the_comparison_is_a_table_with_a_row_a_completion(rows, tmp_path):
    tables.write(tmp_path / "rescored.parquet", rows, RESCORED)
    assert tables.read(tmp_path / "rescored.parquet", RESCORED).equals(rows)
    part = rows.filter(~pl.col("heldout"))
    assert part["sides"].to_list() == ["+-", "+-", "-+", "--", "0+", "00", "0-", "00"]
    assert part["right"].to_list() == [True, True] + [False] * 6
    assert part["length"].to_list() == [5, 5, 5, 6, 40, 5, 5, 5]
    held = rows.filter("heldout")
    assert held["right"].null_count() == held["sides"].null_count() == held["old_advantage"].null_count() == 8


def test_a_high_reward_with_a_wrong_answer_or_an_odd_length_is_suspected(rows):
    part = rows.filter(~pl.col("heldout"))
    # New: 4 2 2 0 0 0 0, mean 8/7, upper quarter from 2 on: rows 1, 2, 4 are high. Row 1 is right. Deviations from the
    # median length 5 are 0 but for 1 and 35: by their mean 36/8, 3.5 · 1.2533 · 4.5 = 19.7, only 40 is far.
    assert part["new_suspect"].to_list() == [None, None, "wrong", None, "wrong length", None, None, None]
    assert part["old_suspect"].null_count() == 8  # those that were rewarded are right
    assert rows.filter("heldout")["new_suspect"].to_list() == [None] * 4 + ["length"] + [None] * 3


def test_a_token_more_than_the_others_is_no_odd_length():
    even = scores([1.0, *[0.0] * 7], truth=[1.0] * 8)
    for length, told in ((6, None), (9, None), (10, "length"), (3, None), (2, "length")):
        rows = compared(rollouts([length] + [5] * 7), even, even, (None, None), 1, False, ("truth", 1.0))
        assert rows["new_suspect"].to_list() == [told] + [None] * 7


def test_figures_of_each_reward_with_the_old_one(rows):
    table = reward_figures(rows)
    assert table["iteration"].to_list() == [3] * 4 + [None] * 4 + [3] * 4 + [None] * 4
    old, new, style, flat = table.filter(~pl.col("heldout"), iteration=3).to_dicts()
    assert [row["reward"] for row in (old, new, style, flat)] == ["old", "new", "style", "flat"]
    assert (old["mean"], old["constant_groups"], old["groups"], old["correlation"]) == (0.25, 1, 2, None)
    assert (new["rows"], new["missing"], new["constant_groups"]) == (8, 1, 0)
    assert new["mean"] == pytest.approx(8 / 7)
    # over the seven rows that have both: Σ(o-ō)(n-n̄) = 2 - 7 · 2/7 · 8/7 = -2/7; Σ(o-ō)² = 10/7; Σ(n-n̄)² = 24 - 64/7
    assert new["correlation"] == style["correlation"] == pytest.approx((-2 / 7) / (10 / 7 * 104 / 7) ** 0.5)
    assert new["std"] == pytest.approx((104 / 7 / 6) ** 0.5)
    assert (flat["constant_groups"], flat["correlation"], flat["std"]) == (2, None, 0)


def test_moves_are_counted(rows):
    train, everything, held, _ = iteration_figures(rows).to_dicts()
    assert train | {"iteration": None} == everything
    assert [train[name] for name in ("up", "down", "gained", "lost")] == [1, 2, 2, 0]
    assert (train["new_wrong"], train["new_length"], train["new_repetition"], train["old_wrong"]) == (2, 1, 0, 0)
    # old 1 1 -1 -1 0 0 0 0 (mean 0), new -1 -1 1 -1 2 0 -1 0: products -2, squares 4 and 9 less 8 · (1/8)²
    assert train["advantage_correlation"] == pytest.approx(-2 / (4 * 8.875) ** 0.5)
    assert (held["up"], held["advantage_correlation"]) == (0, None)


def test_repetition_is_the_share_of_pieces_that_came_before():
    assert repetition([1, 2, 3]) == repetition([]) == repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([7] * 13) == pytest.approx(0.9)  # ten pieces, all equal
    assert repetition([1, 2, 3, 4] * 3) == pytest.approx(5 / 9)  # nine pieces, four distinct


def test_nothing_is_high_where_all_rewards_are_equal():
    same = scores([1.0] * 8, truth=[0.0] * 8)
    rows = compared(rollouts([5] * 8), same, same, (None, None), 1, False, ("truth", 1.0))
    assert rows["old_suspect"].null_count() == rows["new_suspect"].null_count() == 8
