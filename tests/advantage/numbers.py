"""Rows as tables, and the papers' formulas written out, one row and one token at a time."""

import math

import numpy as np
import polars as pl


def table(prompt_ids, rewards, lengths, **columns):
    """Joined rows; sample numbers count within a prompt."""
    seen = {}
    samples = [seen.update({p: seen.get(p, -1) + 1}) or seen[p] for p in prompt_ids]
    lists = {name: pl.Series(values, dtype=pl.List(pl.Float32)) for name, values in columns.items() if name in LISTS}
    if "step_ends" in columns:
        lists["step_ends"] = pl.Series(columns["step_ends"], dtype=pl.List(pl.Int32))
    others = {name: values for name, values in columns.items() if name not in lists}
    data = {"prompt_id": prompt_ids, "sample": samples, "length": lengths}
    return pl.DataFrame(data | {"reward": pl.Series(rewards, dtype=pl.Float64)} | lists | others)


LISTS = ("values", "sampler_logprobs", "reference_logprobs", "token_rewards")


def gae_by_definition(rewards, values, gamma, lam):
    """A_t = Σ_l (γλ)^l δ_{t+l}, the sum itself and not its recursion (arXiv:1506.02438, equation 16)."""
    after = [*values[1:], 0.0][: len(values)]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return [sum((gamma * lam) ** i * d for i, d in enumerate(deltas[t:])) for t in range(len(deltas))]


def grpo_by_definition(rewards, eps=1e-4, ddof=1):
    """One group: (r_i - mean) / (std + eps) (arXiv:2402.03300, section 4.1.2)."""
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / (len(rewards) - ddof))
    return [(r - mean) / (std + eps) for r in rewards]


def leave_one_out_by_definition(rewards, eps, ddof):
    """One group: mean and std of the others; not divided where these are all equal."""
    out = []
    for i, r in enumerate(rewards):
        others = np.array([*rewards[:i], *rewards[i + 1 :]], dtype=float)
        constant = others.min() == others.max()
        out.append((r - others.mean()) / (1.0 if constant else others.std(ddof=ddof) + eps))
    return out
