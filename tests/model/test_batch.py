"""Micro-batches by a budget of padded tokens."""

from hypothesis import given
from hypothesis import strategies as st

from stages.model.batch import micro_batches


def test_by_hand():
    # longest first: 9 takes the room of 12 alone (2 · 9 > 12); 4 4 3 fill 3 · 4 = 12; 1 1 are left
    assert micro_batches([4, 1, 9, 3, 4, 1], budget=12) == [[2], [0, 4, 3], [1, 5]]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_each_row_once_and_no_batch_over_budget_but_a_single_long_row(lengths, budget):
    batches = micro_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget
