"""Micro-batches by a budget of padded tokens."""

from hypothesis import given
from hypothesis import strategies as st

from stages.model.microbatches import micro_batches, shared_batches


def test_by_hand():
    # longest first: 9 takes the room of 12 alone (2 · 9 > 12); 4 4 3 fill 3 · 4 = 12; 1 1 are left
    assert micro_batches([4, 1, 9, 3, 4, 1], budget=12) == [[2], [0, 4, 3], [1, 5]]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_each_row_once_and_no_batch_over_budget_but_a_single_long_row(lengths, budget):
    batches = micro_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


A, B, C = [1, 2, 3, 4], [5, 6], [7]


def test_rows_of_a_prompt_stay_together_where_that_saves_tokens():
    # A's 4 tokens once and two completions of 2: 8; with one of B's it would be 2 · 4 + 3 · 2 = 14
    assert shared_batches([A, B, A, B], [2, 2, 2, 2], budget=8) == [[0, 2], [1, 3]]


def test_completions_of_similar_lengths_stay_together_where_that_saves_more():
    # by prompt 2 batches of 1 + 2 · 9 = 38 padded tokens; by length 2 · 1 + 2 · 9 = 20, or alone 2 · 10, and 2 · 2
    assert shared_batches([C, B, C, B], [9, 9, 1, 1], budget=22) == [[0, 1], [2, 3]]


def test_different_prompts_are_counted_with_their_completions():
    # rows of 5, 5 and 5 tokens are 15 together, though the longest prompt and the longest completion are 4 and 4
    assert shared_batches([A, B, C], [1, 3, 4], budget=15) == [[2, 1, 0]]


@given(
    st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(1, 50)), min_size=1, max_size=60), st.integers(1, 200)
)
def test_shared_each_row_once_and_no_batch_over_budget_but_a_single_long_row(rows, budget):
    prompts, completions = zip(*rows, strict=True)
    batches = shared_batches(prompts, completions, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    for batch in batches:
        different = {tuple(prompts[row]) for row in batch}
        whole = max(len(prompts[row]) + completions[row] for row in batch) * len(batch)
        shared = max(map(len, different)) * len(different) + max(completions[row] for row in batch) * len(batch)
        assert len(batch) == 1 or (whole if len(different) == len(batch) else shared) <= budget
