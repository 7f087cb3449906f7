"""A KL coefficient that follows its target."""

import math

import pytest

from stages.model.kl_controller import KlTerm, next_coefficient


def after(kl: float | None, gain: float = 0.1) -> float:
    return next_coefficient(KlTerm.model_validate({"coefficient": 0.1, "adaptive": {"target": 0.5, "gain": gain}}), kl)


def test_it_follows_by_hand() -> None:
    assert after(0.5) == 0.1
    assert after(0.55) == pytest.approx(0.101)  # 1 + 0.1 · 0.1
    assert after(9.0) == pytest.approx(0.102)  # no more than 0.2 counts
    assert after(0.0) == pytest.approx(0.098)
    assert after(0.0, gain=4) == pytest.approx(0.02)  # never to 0, from which it could not come back


@pytest.mark.parametrize("kl", [None, math.nan, math.inf])
def test_without_tokens_or_a_finite_estimate_it_stays(kl: float | None) -> None:
    assert after(kl) == 0.1


def test_without_a_target_it_stays() -> None:
    assert next_coefficient(KlTerm(coefficient=0.3), 9.0) == 0.3


def test_nothing_can_follow_from_zero() -> None:
    with pytest.raises(ValueError, match="adaptive multiplies the coefficient, which is 0"):
        KlTerm.model_validate({"adaptive": {"target": 0.5}})
    with pytest.raises(ValueError, match="less than 5"):
        after(0.5, gain=5)
