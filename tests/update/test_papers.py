"""Losses that no installed package has: the papers' formulas written out row by row in NumPy, float64.

The gradient is that of central differences of the formula, with what the paper puts under a stop-gradient held fixed.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from stages.contract.metrics import Meter
from stages.update.config import Loss, UpdateConfig
from stages.update.loss.gpg import gpg_factor
from stages.update.loss.kl import Estimator, kl_estimate
from stages.update.loss.value import value_loss
from stages.update.objective import LossInputs, loss_of

LENGTHS = [3, 6, 1, 4]


def data(seed):
    """Rows of log-probabilities, old ones, the sampler's, and an advantage each."""
    random = np.random.default_rng(seed)

    def rows(scale):
        return [scale * random.normal(size=length) for length in LENGTHS]

    logp = [-np.abs(row) - 0.05 for row in rows(1.0)]
    old = [a + b for a, b in zip(logp, rows(0.4), strict=True)]
    sampler = [a + b for a, b in zip(old, rows(0.4), strict=True)]
    return SimpleNamespace(logp=logp, old=old, sampler=sampler, advantages=random.normal(size=len(LENGTHS)))


def ours(of, loss, factor=1.0, sampler=False, **config):
    flat = torch.tensor(np.concatenate(of.logp), requires_grad=True)
    inputs = LossInputs(
        torch.tensor(np.concatenate(of.old)),
        torch.tensor(np.repeat(of.advantages, LENGTHS)),
        None,
        torch.tensor(LENGTHS),
        torch.tensor(np.concatenate(of.sampler)) if sampler else None,
    )
    settings = UpdateConfig(loss=TypeAdapter(Loss).validate_python(loss), **config)
    value = loss_of(flat, inputs, settings, len(LENGTHS), sum(LENGTHS), Meter(), factor=factor)
    value.backward()
    return value.item(), flat.grad.numpy()


def differences(formula, rows, step=1e-6):
    """Central differences of a formula of rows, with respect to each of their numbers."""
    flat, out = np.concatenate(rows), []
    for i in range(len(flat)):
        ends = []
        for sign in (1, -1):
            moved = flat.copy()
            moved[i] += sign * step
            ends.append(formula(np.split(moved, np.cumsum(LENGTHS)[:-1])))
        out.append((ends[0] - ends[1]) / (2 * step))
    return np.array(out)


def agree(mine, formula, of):
    assert mine[0] == pytest.approx(formula(of.logp), rel=1e-6)
    np.testing.assert_allclose(mine[1], differences(formula, of.logp), rtol=1e-5, atol=1e-7)


SEEDS = pytest.mark.parametrize("seed", range(4))


@SEEDS
def test_gspo(seed):
    """arXiv:2507.18071, equations 5 to 7."""
    of = data(seed)

    def formula(rows):
        total = 0.0
        for new, old, a in zip(rows, of.old, of.advantages, strict=True):
            s = np.prod(np.exp(new) / np.exp(old)) ** (1 / len(new))
            total += min(s * a, min(max(s, 1 - 0.1), 1 + 0.15) * a)
        return -total / len(rows)

    loss = {"type": "clipped", "epsilon_low": 0.1, "epsilon_high": 0.15, "aggregation": "sequence_mean"}
    agree(ours(of, loss | {"ratio": "sequence"}), formula, of)
    agree(ours(of, loss | {"ratio": "sequence_token"}), formula, of)  # the paper's remark on equation 14


@SEEDS
def test_gmpo(seed):
    """arXiv:2507.20673: the geometric mean of the clipped ratios, signed."""
    of = data(seed)

    def formula(rows):
        total = 0.0
        for new, old, a in zip(rows, of.old, of.advantages, strict=True):
            product = 1.0
            for n, o in zip(new, old, strict=True):
                ratio, sign = np.exp(n - o), np.sign(a)
                clip = np.clip(ratio, np.exp(-0.3), np.exp(0.2))
                product *= min(ratio**sign, clip**sign) ** sign
            total += product ** (1 / len(new)) * a
        return -total / len(rows)

    agree(ours(of, {"type": "gmpo", "epsilon_low": 0.3, "epsilon_high": 0.2}), formula, of)


@SEEDS
def test_dppo(seed):
    """arXiv:2602.04879: ρ A where the mask is 1; 0 where |π - π_old| > δ and the update goes further that way."""
    of = data(seed)
    masks = []
    for new, old, a in zip(of.logp, of.old, of.advantages, strict=True):
        p, q = np.exp(new), np.exp(old)
        masks.append([0.0 if abs(x - y) > 0.05 and (x > y) == (a > 0) else 1.0 for x, y in zip(p, q, strict=True)])
    assert 0 < np.concatenate(masks).sum() < sum(LENGTHS)

    def formula(rows):
        parts = zip(rows, of.old, of.advantages, masks, strict=True)
        return -sum((mask * np.exp(new - old) * a).sum() for new, old, a, mask in parts) / sum(LENGTHS)

    agree(ours(of, {"type": "dppo", "threshold": 0.05}), formula, of)


@SEEDS
def test_gpg(seed):
    """arXiv:2504.02546: 1/Σ|o_i| Σ_i Σ_t -log π · α A over all rows, those of constant groups too, α = B / (B - M)."""
    of = data(seed)
    constant = [np.array([-1.0, -2.0]), np.array([-0.5] * 7)]

    def formula(rows):
        everything = [*zip(rows, of.advantages, strict=True), *((row, 0.0) for row in constant)]
        alpha = len(everything) / (len(everything) - len(constant))
        return sum((-row * alpha * a).sum() for row, a in everything) / sum(len(row) for row, _ in everything)

    factor = gpg_factor(len(LENGTHS) + 2, 2, sum(LENGTHS) + 9, sum(LENGTHS))
    agree(ours(of, {"type": "gpg"}, factor=factor), formula, of)


@SEEDS
def test_policy_gradient(seed):
    """The gradient estimate of REINFORCE, a mean over sequences of the sum over their tokens."""
    of = data(seed)

    def formula(rows):
        return -np.mean([a * row.sum() for row, a in zip(rows, of.advantages, strict=True)])

    agree(ours(of, {"type": "policy_gradient", "aggregation": "sequence_sum"}), formula, of)


@SEEDS
def test_cispo_with_the_cap_of_its_paper(seed):
    """arXiv:2506.13585, equations 4 and 5: sg(clip(ρ, 1 - ε_low, 1 + ε_high)) A log π over all tokens."""
    of = data(seed)
    weights = [np.clip(np.exp(new - old), 0.9, 1.2) for new, old in zip(of.logp, of.old, strict=True)]

    def formula(rows):
        parts = zip(rows, weights, of.advantages, strict=True)
        return -sum((w * a * row).sum() for row, w, a in parts) / sum(LENGTHS)

    agree(ours(of, {"type": "cispo", "epsilon_low": 0.1, "epsilon_high": 0.2}), formula, of)


@SEEDS
def test_the_dual_clip(seed):
    """arXiv:1912.09729, with c = 1.4; a mean over tokens, then over sequences."""
    of = data(seed)

    def formula(rows):
        total = 0.0
        for new, old, a in zip(rows, of.old, of.advantages, strict=True):
            for r in np.exp(new - old):
                inner = min(r * a, np.clip(r, 0.8, 1.2) * a)
                total += (max(inner, 1.4 * a) if a < 0 else inner) / len(new)
        return -total / len(rows)

    agree(ours(of, {"type": "clipped", "dual_clip": 1.4, "aggregation": "sequence_mean"}), formula, of)


@SEEDS
@pytest.mark.parametrize("kind", ["TIS", "IcePop", "MIS"])
def test_mismatch(seed, kind):
    """TIS: min(w, C). IcePop: w within [α, β], else 0. MIS: the sequence's w up to C, else 0; w = trainer / sampler."""
    of = data(seed)
    config = {
        "TIS": {"type": "truncate", "level": "token", "high": 1.2},
        "IcePop": {"type": "mask", "level": "token", "low": 0.7, "high": 1.4},
        "MIS": {"type": "mask", "level": "sequence", "high": 1.5},
    }[kind]
    weights = []
    for old, sampler in zip(of.old, of.sampler, strict=True):
        w = np.exp(old) / np.exp(sampler)
        if kind == "TIS":
            weights.append(np.minimum(w, 1.2))
        elif kind == "IcePop":
            weights.append(np.array([x if 0.7 <= x <= 1.4 else 0.0 for x in w]))
        else:
            weights.append(np.full(len(w), w.prod() if w.prod() <= 1.5 else 0.0))

    def formula(rows):
        total = 0.0
        for new, old, w, a in zip(rows, of.old, weights, of.advantages, strict=True):
            r = np.exp(new - old)
            total += (w * np.minimum(r * a, np.clip(r, 0.8, 1.2) * a)).sum()
        return -total / sum(LENGTHS)

    agree(ours(of, {"type": "clipped"}, sampler=True, mismatch=config), formula, of)


@SEEDS
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "unbiased_k3"])
def test_kl(seed, estimator: Estimator):
    """Schulman 2020; DeepSeek-V3.2, arXiv:2512.02556, equation 7."""
    of = data(seed)

    def formula(rows):
        total = 0.0
        for new, old, reference in zip(rows, of.old, of.sampler, strict=True):
            r = np.exp(reference) / np.exp(new)
            value = {"k1": -np.log(r), "k2": np.log(r) ** 2 / 2, "k3": r - 1 - np.log(r)}[estimator.split("_")[-1]]
            total += (value * np.exp(new) / np.exp(old) if estimator == "unbiased_k3" else value).sum()
        return total

    flat = torch.tensor(np.concatenate(of.logp), requires_grad=True)
    old, reference = torch.tensor(np.concatenate(of.old)), torch.tensor(np.concatenate(of.sampler))
    value = kl_estimate(flat, old, reference, estimator, None).sum()
    value.backward()
    agree((value.item(), flat.grad.numpy()), formula, of)


@SEEDS
@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_value_loss(seed, clip):
    """arXiv:1707.06347, equation 9, halved; clipped as described in arXiv:2005.12729, section 3."""
    random = np.random.default_rng(seed)
    values, returns, old = random.normal(size=(3, sum(LENGTHS)))

    def formula(rows):
        total = 0.0
        for v, r, o in zip(np.concatenate(rows), returns, old, strict=True):
            squares = [(v - r) ** 2] + ([] if clip is None else [(o + np.clip(v - o, -clip, clip) - r) ** 2])
            total += max(squares) / 2
        return total

    flat = torch.tensor(values, requires_grad=True)
    total = value_loss(flat, torch.tensor(returns), torch.tensor(old), clip).sum()
    total.backward()
    rows = np.split(values, np.cumsum(LENGTHS)[:-1])
    agree((total.item(), flat.grad.numpy()), formula, SimpleNamespace(logp=rows))
