"""The loss's terms: numbers worked by hand in float64, gradients, limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.contract.metrics import Meter
from stages.update.config import (
    CispoLoss,
    ClippedLoss,
    DppoLoss,
    GmpoLoss,
    GpgLoss,
    KlConfig,
    PolicyGradientLoss,
    SapoLoss,
    UpdateConfig,
)
from stages.update.loss.cispo import cispo
from stages.update.loss.clipped import clip_fractions, clipped
from stages.update.loss.dppo import dppo, dppo_masks
from stages.update.loss.gmpo import gmpo
from stages.update.loss.gpg import gpg_factor
from stages.update.loss.kl import k1, k2, k3, kl_estimate
from stages.update.loss.mismatch import importance_weights
from stages.update.loss.policy_gradient import policy_gradient
from stages.update.loss.ratio import importance_ratio
from stages.update.loss.reduce import token_weights
from stages.update.loss.sapo import sapo
from stages.update.loss.value import value_loss
from stages.update.objective import LossInputs, derived, loss_of
from stages.update.surrogate import surrogate


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_the_clipped_surrogate_on_both_sides_of_both_signs():
    # ε 0.2 / 0.3. A=2: ratios 0.5, 1, 1.25, 2 → -1, -2, -2.5, -2·1.3; A=-2: → 2·0.8 (clipped below), 2, 2.5, 4
    ratio = doubles(0.5, 1, 1.25, 2, 0.5, 1, 1.25, 2)
    advantages = torch.tensor([2.0] * 4 + [-2.0] * 4, dtype=torch.float64)
    loss = clipped(ratio, advantages, 0.2, 0.3)
    torch.testing.assert_close(loss, torch.tensor([-1, -2, -2.5, -2.6, 1.6, 2, 2.5, 4], dtype=torch.float64))
    loss.sum().backward()
    assert ratio.grad.tolist() == [-2, -2, -2, 0, 0, 2, 2, 2]
    low, high = clip_fractions(ratio, advantages, 0.2, 0.3)
    assert low.nonzero().tolist() == [[4]]
    assert high.nonzero().tolist() == [[3]]


def test_k3_by_hand():
    # d = ln 2: 2 - ln 2 - 1 = 0.306853; d = -ln 2: 1/2 + ln 2 - 1 = 0.193147
    logprobs = doubles(-2.0, -2.0, -2.0)
    value = k3(logprobs, torch.tensor([-2.0, -2 + math.log(2), -2 - math.log(2)], dtype=torch.float64))
    assert value.tolist() == pytest.approx([0.0, 0.3068528194, 0.1931471806])
    value.sum().backward()  # 1 - exp(d)
    assert logprobs.grad.tolist() == pytest.approx([0.0, -1.0, 0.5])


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative(a, b):
    assert k3(torch.tensor([a]), torch.tensor([b])).item() >= 0


def test_k3_keeps_its_digits_where_the_two_nearly_agree():
    # d²/2 for small d; exp(d) - d - 1 in float32 would give 0 or 6e-8
    assert k3(torch.tensor([-1.0]), torch.tensor([-1.0 + 2**-12])).item() == pytest.approx(2**-25, rel=1e-3)


def test_the_other_estimators_by_hand():
    # d = log π - log π_ref = -ln 2, ln 2: k1 = d, k2 = d²/2; π/π_old = 1/2 times k3 = 0.306853, 0.193147
    logprobs, reference = doubles(-2.0, -2.0), torch.tensor([-2 + math.log(2), -2 - math.log(2)], dtype=torch.float64)
    assert k1(logprobs, reference).tolist() == pytest.approx([-0.6931471806, 0.6931471806])
    assert k2(logprobs, reference).tolist() == pytest.approx([0.2402265070] * 2)
    old = logprobs.detach() + math.log(2)
    unbiased = kl_estimate(logprobs, old, reference, "unbiased_k3", None)
    assert unbiased.tolist() == pytest.approx([0.1534264097, 0.0965735903])
    unbiased.sum().backward()  # ρ (k3 + 1 - exp(d)) = ρ · -d: ½ · -ln 2, ½ · ln 2
    assert logprobs.grad.tolist() == pytest.approx([-0.3465735903, 0.3465735903])


def test_a_clamped_estimate_is_bounded_on_both_sides_and_has_no_gradient_there():
    logprobs, reference = doubles(-1.0, -5.0, -1.2), torch.tensor([-5.0, -1.0, -1.0], dtype=torch.float64)
    value = kl_estimate(logprobs, logprobs.detach(), reference, "k1", 2.0)
    assert value.tolist() == pytest.approx([2.0, -2.0, -0.2])
    value.sum().backward()
    assert logprobs.grad.tolist() == [0.0, 0.0, 1.0]


@given(st.lists(st.floats(-6, 6), min_size=4, max_size=4), st.lists(st.floats(-6, 6), min_size=4, max_size=4))
def test_k1_and_k3_are_unbiased_on_policy_and_the_unbiased_k3_also_off_policy(policy, reference):
    """Summed over a whole vocabulary, weighted by who draws, each is the KL; so is the gradient of the last."""
    logits = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    log_policy = logits.log_softmax(0)
    log_reference = torch.tensor(reference, dtype=torch.float64).log_softmax(0)
    log_old = torch.tensor([0.5, -0.25, 0.0, 0.75], dtype=torch.float64).log_softmax(0)
    kl = (log_policy.exp() * (log_policy - log_reference)).sum()
    [expected] = torch.autograd.grad(kl, logits, retain_graph=True)
    for estimator in (k1, k3):
        assert (log_policy.exp() * estimator(log_policy, log_reference)).sum().item() == pytest.approx(kl.item())
    drawn = (log_old.exp() * kl_estimate(log_policy, log_old, log_reference, "unbiased_k3", None)).sum()
    assert drawn.item() == pytest.approx(kl.item())
    [gradient] = torch.autograd.grad(drawn, logits, retain_graph=True)
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=1e-6)
    squared = (log_policy.detach().exp() * k2(log_policy, log_reference)).sum()
    [gradient] = torch.autograd.grad(squared, logits)
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=1e-6)


def test_ratios_by_hand():
    # rows of 1 and 2 tokens; log-ratios ln 2 | ln 2, ln 8: sequence (ln 2 + ln 8) / 2 = ln 4
    lengths, old = torch.tensor([1, 2]), torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    values = {}
    for level in ("token", "sequence", "sequence_token"):
        logprobs = (old + torch.tensor([2.0, 2, 8], dtype=torch.float64).log()).requires_grad_()
        ratio = importance_ratio(logprobs, old, lengths, level)
        values[level] = ratio.tolist()
        (ratio * torch.tensor([1.0, 1, 3])).sum().backward()
        values[f"{level} gradient"] = logprobs.grad.tolist()
    assert values["token"] == pytest.approx([2, 2, 8])
    assert values["token gradient"] == pytest.approx([2, 2, 24])
    assert values["sequence"] == values["sequence_token"] == pytest.approx([2, 4, 4])
    assert values["sequence gradient"] == pytest.approx([2, 8, 8])  # 4 · (1 + 3) / 2 to each
    assert values["sequence_token gradient"] == pytest.approx([2, 4, 12])  # to each its own


def test_both_bounds_of_negative_advantages_by_hand():
    # A = -2, ratios 2, 4, 9; bound 3: loss 4, 6, 6, no gradient beyond; A = 1, ratio 9 is clipped by 1.3 as before
    for bound in ({"dual_clip": 3.0}, {"delta": 3.0}):
        ratio = doubles(2, 4, 9, 9)
        advantages = torch.tensor([-2.0, -2, -2, 1], dtype=torch.float64)
        loss = clipped(ratio, advantages, 0.2, 0.3, **bound)
        assert loss.tolist() == pytest.approx([4, 6, 6, -1.3])
        loss.sum().backward()
        assert ratio.grad.tolist() == [2, 0, 0, 0]


def test_policy_gradient_and_cispo_by_hand():
    logprobs, advantages = doubles(-1.0, -2.0, -0.5), torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64)
    assert policy_gradient(logprobs, advantages).tolist() == [2.0, -2.0, 1.5]
    # ratios 0.5, 1, 8 capped at 0.6 … 4: weights 0.6, 1, 4
    ratio = doubles(0.5, 1.0, 8.0)
    loss = cispo(ratio, logprobs, advantages, 0.6, 4.0)
    assert loss.tolist() == pytest.approx([1.2, -2.0, 6.0])
    loss.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-1.2, 1.0, -12.0])  # not cut off beyond the cap
    assert ratio.grad is None


def test_the_two_conventions_of_cispos_cap():
    assert CispoLoss(type="cispo", epsilon_high=4.0).bounds() == (None, 5.0)
    assert CispoLoss(type="cispo", epsilon_low=0.2, epsilon_high=0.5).bounds() == (0.8, 1.5)
    assert CispoLoss(type="cispo", cap="absolute", epsilon_high=5.0).bounds() == (None, 5.0)


def test_sapo_by_hand():
    # τ (ρ - 1) = ln 3 where A > 0 (τ 2): σ = 3/4, loss -4/2 · 3/4 · 1 = -1.5; gradient -4 · 3/4 · 1/4 = -3/4
    # τ 4 where A = -1, ρ = 1: σ = 1/2, loss 1/2; gradient 4 · 1/4 = 1
    ratio = doubles(1 + math.log(3) / 2, 1.0)
    loss = sapo(ratio, torch.tensor([1.0, -1.0], dtype=torch.float64), 2.0, 4.0)
    assert loss.tolist() == pytest.approx([-1.5, 0.5])
    loss.sum().backward()
    assert ratio.grad.tolist() == pytest.approx([-0.75, 1.0])


def test_gmpo_by_hand():
    # Rows of 2 tokens, clip at ±ln 2 of the log-ratio. A = 3, ratios 8 (→ 2), 1/8 (stays): (2 / 8)^½ = ½: loss -1.5.
    # A = -3, ratios 8 (stays), 1/8 (→ ½): (8 / 2)^½ = 2: loss 6.
    old = torch.zeros(4, dtype=torch.float64)
    logprobs = torch.tensor([8, 1 / 8, 8, 1 / 8], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([3.0, 3, -3, -3], dtype=torch.float64)
    loss = gmpo(logprobs, old, advantages, torch.tensor([2, 2]), math.log(2), math.log(2))
    assert loss.tolist() == pytest.approx([-1.5, -1.5, 6, 6])
    loss.sum().backward()  # of each row 2 · loss · ½ goes to the token that was not clipped
    assert logprobs.grad.tolist() == pytest.approx([0, -1.5, 6, 0])


def test_dppo_by_hand():
    # Probabilities 0.5 → 0.8 (moved 0.3), 0.01 → 0.1 (ratio 10, moved 0.09), 0.5 → 0.2 (moved -0.3); δ 0.15
    old = torch.tensor([0.5, 0.01, 0.5, 0.5], dtype=torch.float64).log()
    logprobs = torch.tensor([0.8, 0.1, 0.2, 0.2], dtype=torch.float64).log()
    advantages = torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    low, high = dppo_masks(logprobs, old, advantages, 0.15)
    assert (low.tolist(), high.tolist()) == ([False, False, True, False], [True, False, False, False])
    ratio = (logprobs - old).exp().requires_grad_()
    loss = dppo(ratio, advantages, low, high)
    assert loss.tolist() == pytest.approx([0, -10, 0, -0.4])
    loss.sum().backward()
    assert ratio.grad.tolist() == [0, -1, 0, -1]


def test_gpgs_factor_by_hand():
    # 6 rows of 30 tokens are trained on, 2 of 2 tokens are of constant groups: α = 8/6; 8/6 · 30/32 = 1.25
    assert gpg_factor(8, 2, 32, 30) == pytest.approx(1.25)
    assert gpg_factor(8, 2, 40, 30) == pytest.approx(1.0)  # as long as the others
    assert gpg_factor(8, 2, 32, 32) == pytest.approx(8 / 6)  # trained on, with advantages of 0
    assert gpg_factor(6, 0, 30, 30) == gpg_factor(8, 8, 24, 0) == gpg_factor(0, 0, 0, 0) == 1.0


def test_weights_against_mismatch_by_hand():
    # ratios trainer / sampler: 4 | 2, ¼; of the rows 4 and ½
    ratios = torch.tensor([4.0, 2, 0.25], dtype=torch.float64)
    old, sampler, lengths = ratios.log() - 1, torch.full((3,), -1.0, dtype=torch.float64), torch.tensor([1, 2])

    def weights(level, kind, low, high):
        weight, changed = importance_weights(old, sampler, lengths, level, kind, low, high)
        return pytest.approx(weight.tolist()), changed.tolist()

    assert weights("token", "truncate", None, 2.5) == ([2.5, 2, 0.25], [True, False, False])
    assert weights("token", "truncate", 0.5, 2.5) == ([2.5, 2, 0.5], [True, False, True])
    assert weights("token", "mask", 0.5, 2.5) == ([0, 2, 0], [True, False, True])
    assert weights("sequence", "truncate", None, 2.5) == ([2.5, 0.5, 0.5], [True, False, False])
    assert weights("sequence", "mask", None, 2.5) == ([0, 0.5, 0.5], [True, False, False])


def test_the_value_loss_by_hand():
    # V 1, 3, 3; R 2, 2, 0; V_old 1, 2, 1; clip 0.5: near 1, 2.5, 1.5: squares 1, 1, 9; clipped squares 1, 0.25, 2.25
    values, returns = doubles(1, 3, 3), torch.tensor([2.0, 2, 0], dtype=torch.float64)
    old = torch.tensor([1.0, 2, 1], dtype=torch.float64)
    assert value_loss(values, returns, old, None).tolist() == [0.5, 0.5, 4.5]
    assert value_loss(values, returns, old, 0.5).tolist() == [0.5, 0.5, 4.5]  # the worse of the two
    # V 0.2 is near 0.5 of V_old 1: (0.5 - 0)² is worse than 0.2², and has no gradient
    value = doubles(0.2)
    loss = value_loss(value, torch.zeros(1).double(), torch.ones(1).double(), 0.5)
    assert loss.item() == pytest.approx(0.125)
    loss.sum().backward()
    assert value.grad.item() == 0.0


def test_the_aggregations_by_hand():
    # rows of 1 and 3 tokens, losses 4 | 1 2 3: sequence mean (4 + 2) / 2 = 3, token mean 10 / 4 = 2.5,
    # by the constant 5 (4 + 6) / 5 / 2 = 1, sequence sum (4 + 6) / 2 = 5
    losses, lengths = torch.tensor([4.0, 1, 2, 3]), torch.tensor([1, 3])

    def total(aggregation, length=None):
        return (token_weights(lengths, aggregation, rows=2, tokens=4, length=length) * losses).sum().item()

    assert total("sequence_mean") == pytest.approx(3.0)
    assert total("token_mean") == pytest.approx(2.5)
    assert total("constant", 5) == pytest.approx(1.0)
    assert total("sequence_sum") == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("aggregation", "length", "whole"),
    [("sequence_mean", None, 1.0), ("token_mean", None, 1.0), ("constant", 9, 1.0), ("sequence_sum", None, 9.0)],
)
def test_weights_of_a_whole_batch_sum_to_the_same_however_it_is_cut(aggregation, length, whole):
    lengths = [1, 7, 2, 30, 5]
    parts = [torch.tensor(lengths[:2]), torch.tensor(lengths[2:])]
    total = sum(token_weights(part, aggregation, rows=5, tokens=45, length=length).sum().item() for part in parts)
    assert total == pytest.approx(whole)


LOSSES = {
    "clipped": ClippedLoss(),
    "dual clip": ClippedLoss(dual_clip=2.0),
    "delta": ClippedLoss(delta=2.0),
    "gspo": ClippedLoss(ratio="sequence"),
    "policy gradient": PolicyGradientLoss(type="policy_gradient"),
    "gpg": GpgLoss(type="gpg"),
    "cispo": CispoLoss(type="cispo"),
    "sapo": SapoLoss(type="sapo", temperature_positive=1.0, temperature_negative=1.0),
    "gmpo": GmpoLoss(type="gmpo"),
    "dppo": DppoLoss(type="dppo"),
}
GSPO_TOKEN = ClippedLoss(ratio="sequence_token")
rows_of = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def random_rows(lengths, seed, spread):
    """Log-probabilities, old ones `spread` nats away, advantages of rows, lengths; float64."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    logprobs = -3 * torch.rand(count, generator=generator, dtype=torch.float64) - 0.01
    old = logprobs + spread * torch.randn(count, generator=generator, dtype=torch.float64)
    rows = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    return logprobs.requires_grad_(), old, rows.repeat_interleave(torch.tensor(lengths)), torch.tensor(lengths)


@pytest.mark.parametrize("loss", [*LOSSES.values(), GSPO_TOKEN], ids=[*LOSSES, "gspo token"])
@given(lengths=rows_of, seed=st.integers(0, 10_000))
def test_at_ratio_one_every_loss_has_the_gradient_of_the_policy_gradient(loss, lengths, seed):
    logprobs, old, advantages, lengths_R = random_rows(lengths, seed, spread=0.0)
    weights = token_weights(lengths_R, "sequence_mean", len(lengths), sum(lengths))
    (weights * surrogate(loss, logprobs, old, advantages, lengths_R).loss_N).sum().backward()
    torch.testing.assert_close(logprobs.grad, -weights * advantages, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", [*LOSSES.values(), GSPO_TOKEN], ids=[*LOSSES, "gspo token"])
@given(lengths=rows_of, seed=st.integers(0, 10_000))
def test_without_advantage_there_is_no_loss_and_no_gradient(loss, lengths, seed):
    logprobs, old, _, lengths_R = random_rows(lengths, seed, spread=0.7)
    value = surrogate(loss, logprobs, old, torch.zeros_like(old), lengths_R).loss_N
    assert value.abs().max() == 0
    value.sum().backward()
    assert logprobs.grad.abs().max() == 0


@pytest.mark.parametrize("loss", [*LOSSES.values(), GSPO_TOKEN], ids=[*LOSSES, "gspo token"])
@given(lengths=rows_of, seed=st.integers(0, 10_000), scale=st.floats(0.1, 10))
def test_every_loss_is_linear_in_the_size_of_the_advantages(loss, lengths, seed, scale):
    logprobs, old, advantages, lengths_R = random_rows(lengths, seed, spread=0.7)
    one = surrogate(loss, logprobs, old, advantages, lengths_R).loss_N
    many = surrogate(loss, logprobs, old, scale * advantages, lengths_R).loss_N
    torch.testing.assert_close(many, scale * one)


@given(lengths=rows_of, seed=st.integers(0, 10_000))
def test_no_clip_promises_more_than_the_ratio_itself(lengths, seed):
    logprobs, old, advantages, lengths_R = random_rows(lengths, seed, spread=0.7)
    made = surrogate(ClippedLoss(), logprobs, old, advantages, lengths_R)
    assert (made.loss_N >= -made.ratio_N * advantages - 1e-12).all()
    bounded = surrogate(ClippedLoss(dual_clip=1.5), logprobs, old, advantages, lengths_R).loss_N
    assert (bounded <= made.loss_N + 1e-12).all()
    geometric = surrogate(GmpoLoss(type="gmpo", epsilon_low=9, epsilon_high=9), logprobs, old, advantages, lengths_R)
    gspo = surrogate(
        ClippedLoss(ratio="sequence", epsilon_low=1, epsilon_high=99), logprobs, old, advantages, lengths_R
    )
    torch.testing.assert_close(geometric.loss_N, gspo.loss_N)  # without a clip both are the sequence's ratio


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "unbiased_k3"])
def test_gradients_are_those_of_finite_differences(name, estimator):
    """With the weights that a loss takes as given (CISPO's ratio) held fixed, as its definition says."""
    logprobs, old, advantages, lengths_R = random_rows([3, 1, 4], 11, spread=0.5)
    reference = old - 0.2
    config = UpdateConfig(
        loss=LOSSES[name].model_copy(update={"aggregation": "sequence_mean"}),
        kl=KlConfig(coefficient=0.1, estimator=estimator),
        entropy={"bonus": 0.2},
    )
    fixed = surrogate(LOSSES[name], logprobs, old, advantages, lengths_R).ratio_N.detach()

    def value(x):
        if name != "cispo":
            return loss_of(
                x, LossInputs(old, advantages, reference, lengths_R), config, 3, 8, Meter(), entropy_N=-x * 0.3
            )
        low, high = config.loss.bounds()
        weights = token_weights(lengths_R, "sequence_mean", 3, 8)
        kl = kl_estimate(x, old, reference, estimator, None)
        return (weights * (cispo(fixed, x, advantages, low, high) + 0.1 * kl + 0.2 * 0.3 * x)).sum()

    assert torch.autograd.gradcheck(value, (logprobs,))
    inputs = LossInputs(old, advantages, reference, lengths_R)
    whole = loss_of(logprobs, inputs, config, 3, 8, Meter(), entropy_N=-logprobs * 0.3)
    [expected] = torch.autograd.grad(value(logprobs), logprobs)
    [got] = torch.autograd.grad(whole, logprobs)
    torch.testing.assert_close(got, expected)


def test_gspo_tokens_gradient_is_gspos_where_a_rows_advantages_are_equal():
    logprobs, old, advantages, lengths_R = random_rows([3, 1, 4], 5, spread=0.3)
    weights = token_weights(lengths_R, "sequence_mean", 3, 8)
    gradients = []
    for loss in (ClippedLoss(ratio="sequence"), GSPO_TOKEN):
        total = (weights * surrogate(loss, logprobs, old, advantages, lengths_R).loss_N).sum()
        gradients.append(torch.autograd.grad(total, logprobs)[0])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("clip", [None, 0.3])
def test_the_gradient_of_the_value_loss_is_that_of_finite_differences(clip):
    generator = torch.Generator().manual_seed(2)
    values, returns, old = (torch.randn(9, generator=generator, dtype=torch.float64) for _ in range(3))
    assert torch.autograd.gradcheck(lambda x: value_loss(x, returns, old, clip), (values.requires_grad_(),))


def test_neither_weights_against_mismatch_nor_the_top_entropy_touch_kl_and_bonus():
    logprobs, old, advantages, lengths_R = random_rows([3, 1, 4], 5, spread=0.3)
    sampler = old.detach() + 0.5
    config = UpdateConfig(
        loss=ClippedLoss(ratio="sequence"),
        kl=KlConfig(coefficient=0.1),
        entropy={"bonus": 0.2, "top": 0.5},
        mismatch={"type": "mask", "level": "sequence", "high": 0.001},
    )
    inputs = LossInputs(old, advantages, old - 0.2, lengths_R, sampler, torch.zeros(8, dtype=torch.bool))
    meter = Meter()
    total = loss_of(logprobs, inputs, config, 3, 8, meter, entropy_N=-logprobs)
    figures = meter.result()
    assert figures["policy_loss"] == 0.0
    assert figures["mismatch_weight_mean"] == 0.0
    expected = (0.1 * k3(logprobs, old - 0.2) + 0.2 * logprobs).mean()
    assert total.item() == pytest.approx(expected.item())
    [got], [wanted] = torch.autograd.grad(total, logprobs), torch.autograd.grad(expected, logprobs)
    torch.testing.assert_close(got, wanted)


def test_loss_gradient_and_figures_of_a_small_batch_by_hand():
    # Two rows of one and two tokens; ε 0.2; β 0.5; token mean over 3 tokens.
    # token 1: ρ = 1,   A =  1: -1;              reference equal: KL 0
    # token 2: ρ = 1.5, A =  1: clipped, -1.2;   d = ln 2: KL 0.3068528
    # token 3: ρ = 1.5, A = -2: 3;               d = -ln 2: KL 0.1931472
    # loss = (-1 - 1.2 + 3)/3 + 0.5·0.5/3 = 0.2666667 + 0.0833333 = 0.35
    # d loss / d logprob: token 1: -1/3; token 2: 0 + 0.5·(1-2)/3; token 3: (1.5·2)/3 + 0.5·(1-0.5)/3
    logprobs = doubles(-1.0, -1.0, -1.0)
    old = torch.tensor([-1.0, -1 - math.log(1.5), -1 - math.log(1.5)], dtype=torch.float64)
    reference = torch.tensor([-1.0, -1 + math.log(2), -1 - math.log(2)], dtype=torch.float64)
    inputs = LossInputs(old, torch.tensor([1.0, 1, -2], dtype=torch.float64), reference, torch.tensor([1, 2]))
    config = UpdateConfig(loss=ClippedLoss(epsilon_low=0.2, epsilon_high=0.2), kl=KlConfig(coefficient=0.5))
    meter = Meter()
    loss = loss_of(logprobs, inputs, config, rows=2, tokens=3, meter=meter)
    assert loss.item() == pytest.approx(0.35)
    loss.backward()
    assert logprobs.grad.tolist() == pytest.approx([-1 / 3, -0.5 / 3, 1 + 0.25 / 3])
    figures = derived(meter.result())
    assert figures == pytest.approx(
        {
            "clip_fraction_low": 0.0,
            "clip_fraction_high": 1 / 3,
            "ratio_mean": 4 / 3,
            "ratio_min": 1.0,
            "ratio_max": 1.5,
            "policy_loss": 0.8 / 3,
            "effective_sample_size": 16 / 3 / 5.5,  # (1 + 1.5 + 1.5)² / (3 · (1 + 2.25 + 2.25))
            "kl": 0.5 / 3,
            "kl_k1": 0.0,
            "kl_k2": math.log(2) ** 2 / 3,
            "kl_k3": 0.5 / 3,
            "kl_loss": 0.25 / 3,
            "loss": 0.35,
        }
    )


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    logprobs = doubles(-0.5, -1.5, -2.5)
    advantages = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    inputs = LossInputs(logprobs.detach(), advantages, None, torch.tensor([3]))
    loss_of(logprobs, inputs, UpdateConfig(), rows=1, tokens=3, meter=Meter()).backward()
    torch.testing.assert_close(logprobs.grad, -advantages / 3)


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(3)
    logprobs = (-torch.rand(12, dtype=torch.float64) * 3).requires_grad_()
    old = logprobs.detach() + 0.3 * torch.randn(12, dtype=torch.float64)
    inputs = LossInputs(old, torch.randn(12, dtype=torch.float64), old - 0.2, torch.tensor([3, 4, 5]))
    config = UpdateConfig(loss=ClippedLoss(aggregation="sequence_mean"), kl=KlConfig(coefficient=0.1))
    assert torch.autograd.gradcheck(lambda x: loss_of(x, inputs, config, 3, 12, Meter()), (logprobs,))
