"""pass@k against every subset there is, and majority votes."""

import math
from fractions import Fraction
from itertools import combinations, permutations

import pytest

from stages.evaluate.estimators import majority, pass_at_k

CASES = [(n, c, k) for n in range(1, 8) for c in range(n + 1) for k in range(1, n + 1)]


def over_all_subsets(samples: int, successes: int, k: int) -> Fraction:
    """The share of the subsets of k samples in which one succeeds."""
    outcomes = [True] * successes + [False] * (samples - successes)
    subsets = [any(subset) for subset in combinations(outcomes, k)]
    return Fraction(sum(subsets), len(subsets))


@pytest.mark.parametrize(("samples", "successes", "k"), CASES)
def test_pass_at_k_is_the_share_of_all_subsets(samples: int, successes: int, k: int) -> None:
    exact = over_all_subsets(samples, successes, k)
    assert pass_at_k(samples, successes, k) == pytest.approx(float(exact), rel=1e-15, abs=1e-16)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 1, 2) == 0.5  # 3 of the 6 pairs hold the one success
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)  # only the pair of both failures fails
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)  # C(7, 5) of C(10, 5)


@pytest.mark.parametrize("n", [1, 2, 8, 100])
def test_pass_at_k_is_exact_where_it_is_certain(n: int) -> None:
    for k in {1, (n + 1) // 2, n}:
        assert pass_at_k(n, 0, k) == 0.0
        assert pass_at_k(n, n, k) == 1.0
    assert pass_at_k(n, 1, n) == 1.0


def test_pass_at_k_holds_for_numbers_beyond_a_float() -> None:
    with pytest.raises(OverflowError):
        float(math.comb(2000, 1000))
    assert pass_at_k(2000, 1, 1000) == 0.5
    assert pass_at_k(2000, 2, 1000) == pytest.approx(1 - (1000 * 999) / (2000 * 1999), rel=1e-14)


@pytest.mark.parametrize(
    ("samples", "successes", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1), (0, 0, 0), (4, 2, -1)]
)
def test_pass_at_k_of_what_cannot_be_is_refused(samples: int, successes: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {successes} successes in {samples} samples"):
        pass_at_k(samples, successes, k)


def test_the_majority_is_the_answer_given_most_often() -> None:
    for order in permutations(["7", "8", "7", "9"]):
        assert majority(order) == "7"


def test_of_answers_that_tie_the_earliest_wins() -> None:
    assert majority(["8", "7", "7", "8", "9"]) == "8"
    assert majority(["7", "8", "8", "7", "9"]) == "7"
    assert majority(["9", "8"]) == "9"


def test_those_who_gave_no_answer_do_not_vote() -> None:
    assert majority([None, None, None, "7", "8", "8"]) == "8"
    assert majority([None, None, "7"]) == "7"
    assert majority([None, None]) is None
    assert majority([]) is None


def test_an_empty_answer_is_an_answer() -> None:
    assert majority(["", "", "7"]) == ""
