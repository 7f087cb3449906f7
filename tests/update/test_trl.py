"""Loss and gradient agree with those of TRL's GRPOTrainer, called on the CPU with a stand-in for the trainer."""

import warnings
from collections import defaultdict
from types import MethodType, SimpleNamespace

import pytest
import torch
from pydantic import TypeAdapter

from stages.contract.metrics import Meter
from stages.update.batch import kept_tokens
from stages.update.config import Loss, UpdateConfig
from stages.update.loss.mismatch import importance_weights
from stages.update.objective import LossInputs, loss_of

LENGTHS = [3, 7, 1, 5]
LIMIT = 9


@pytest.fixture(scope="module")
def trl():
    """The two trainers; their imports warn of packages that are not needed here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gmpo import GMPOTrainer
        from trl.trainer.grpo_trainer import GRPOTrainer
    return SimpleNamespace(grpo=GRPOTrainer, gmpo=GMPOTrainer)


def data(seed=0):
    """Flat tensors of four rows, float32; ratios from about 0.4 to 2.5."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale):
        return scale * torch.randn(sum(LENGTHS), generator=generator)

    logprobs = -normal(1.5).abs() - 0.05
    advantages = torch.tensor([1.3, -0.8, 0.6, -1.7]).repeat_interleave(torch.tensor(LENGTHS))
    return SimpleNamespace(
        logprobs=logprobs,
        old=logprobs + normal(0.4),
        reference=logprobs + normal(0.5),
        sampler=logprobs + normal(0.5),
        entropy=normal(1.0).abs(),
        advantages=advantages,
    )


def padded(flat):
    return torch.nn.utils.rnn.pad_sequence(list(flat.split(LENGTHS)), batch_first=True)


def accelerator():
    return SimpleNamespace(
        num_processes=1,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, dim, pad_index: x,
        sync_gradients=True,
    )


def theirs(trl, loss_type, of, **settings):
    """Loss and gradient [N] by TRL. Settings beside the trainer's own: `arguments`, `weights` (of the sampler)."""
    logprobs = padded(of.logprobs).requires_grad_()
    entropy = entropy_of(logprobs) if (entropy_of := settings.pop("entropy_of", None)) else padded(of.entropy)
    mask = padded(torch.ones(sum(LENGTHS)))
    arguments = {"delta": None, "use_bias_correction_kl": False, "steps_per_generation": 1}
    arguments |= {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05} | settings.pop("arguments", {})
    weights = settings.pop("weights", None)
    fields = {
        "loss_type": loss_type,
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "use_vllm": weights is not None,
        "vllm_importance_sampling_correction": weights is not None,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": LIMIT,
        "_entropy_bonus_enabled": False,
        "use_adaptive_entropy": False,
        "model": SimpleNamespace(training=True),
        "accelerator": accelerator(),
        "_metrics": {"train": defaultdict(list)},
        "args": SimpleNamespace(**arguments),
        "_get_per_token_logps_and_entropies": lambda *args, **kwargs: (logprobs, entropy, None),
    } | settings
    stub = SimpleNamespace(**fields)
    stub.get_high_entropy_mask = MethodType(trl.grpo.get_high_entropy_mask, stub)
    tokens = mask.long()
    inputs = {
        "prompt_ids": tokens[:, :1],
        "prompt_mask": tokens[:, :1],
        "completion_ids": tokens,
        "completion_mask": tokens,
        "advantages": padded(of.advantages)[:, 0],
        "old_per_token_logps": padded(of.old),
        "ref_per_token_logps": padded(of.reference),
        "num_items_in_batch": mask.sum(),
    }
    if weights is not None:
        inputs["importance_sampling_ratio"] = padded(weights)
    trainer = trl.gmpo if loss_type == "gmpo" else trl.grpo
    loss = trainer._compute_loss(stub, None, inputs)
    loss.backward()
    return loss.item(), logprobs.grad[mask.bool()]


def ours(of, loss, reference=True, sampler=False, kept=None, entropy_of=None, **config):
    """Loss and gradient [N] by this project; `entropy_of` gives entropies of log-probabilities."""
    logprobs = of.logprobs.clone().requires_grad_()
    entropy = entropy_of(logprobs) if entropy_of else None
    settings = UpdateConfig(loss=TypeAdapter(Loss).validate_python(loss), **config)
    inputs = LossInputs(
        of.old,
        of.advantages,
        of.reference if reference else None,
        torch.tensor(LENGTHS),
        of.sampler if sampler else None,
        kept,
    )
    value = loss_of(logprobs, inputs, settings, len(LENGTHS), sum(LENGTHS), Meter(), entropy)
    value.backward()
    return value.item(), logprobs.grad


def agree(mine, other):
    assert mine[0] == pytest.approx(other[0], abs=1e-6, rel=1e-6)
    torch.testing.assert_close(mine[1], other[1], atol=1e-6, rtol=1e-6)


CLIP = {"type": "clipped", "epsilon_low": 0.2, "epsilon_high": 0.28}
CONSTANT = {"aggregation": "constant", "length": LIMIT}
CASES = {
    "grpo": CLIP | {"aggregation": "sequence_mean"},
    "bnpo": CLIP | {"aggregation": "token_mean"},
    "dapo": CLIP | {"aggregation": "token_mean"},
    "dr_grpo": CLIP | CONSTANT,
    "luspo": CLIP | {"aggregation": "sequence_sum"},
    "cispo": {"type": "cispo", "cap": "absolute", "epsilon_high": 1.4, "aggregation": "token_mean"},
    "sapo": {"type": "sapo", "aggregation": "sequence_mean"},
}


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("beta", [0.0, 0.05])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_agree_with_trl(trl, name, beta, level):
    for seed in range(3):
        of = data(seed)
        settings = {"epsilon_high": 1.4} if name == "cispo" else {}
        other = theirs(trl, name, of, beta=beta, importance_sampling_level=level, **settings)
        agree(ours(of, CASES[name] | {"ratio": level}, kl={"coefficient": beta}), other)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_upper_bound_of_the_ratio_agrees_with_trl(trl, level):
    of = data()
    other = theirs(trl, "dapo", of, arguments={"delta": 1.5}, importance_sampling_level=level)
    agree(ours(of, CASES["dapo"] | {"delta": 1.5, "ratio": level}), other)


def test_the_dual_clip_is_the_two_sided_one_beyond_the_clip(trl):
    of = data()
    agree(ours(of, CASES["dapo"] | {"dual_clip": 1.5}), theirs(trl, "dapo", of, arguments={"delta": 1.5}))


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_the_geometric_mean_agrees_with_trl(trl, beta):
    of = data()
    mine = ours(of, {"type": "gmpo", "epsilon_low": 0.3, "epsilon_high": 0.2}, kl={"coefficient": beta})
    agree(mine, theirs(trl, "gmpo", of, beta=beta, epsilon_low=0.3, epsilon_high=0.2))


@pytest.mark.parametrize("name", ["grpo", "dapo", "sapo"])
def test_the_unbiased_kl_agrees_with_trl_where_the_ratio_is_a_tokens(trl, name):
    of = data()
    other = theirs(trl, name, of, beta=0.3, arguments={"use_bias_correction_kl": True})
    agree(ours(of, CASES[name], kl={"coefficient": 0.3, "estimator": "unbiased_k3"}), other)


def test_the_unbiased_kl_keeps_the_tokens_ratio_where_the_loss_takes_the_sequences(trl):
    """TRL multiplies KL by the sequence's ratio then; here the KL part is the same whatever ratio the loss takes."""
    of = data()
    kl = {"coefficient": 0.3, "estimator": "unbiased_k3"}
    parts = []
    for ratio in ("token", "sequence"):
        loss = CASES["dapo"] | {"ratio": ratio}
        with_kl, without = ours(of, loss, kl=kl), ours(of, loss)
        parts.append((with_kl[0] - without[0], with_kl[1] - without[1]))
    agree(parts[0], parts[1])
    other = theirs(
        trl, "dapo", of, beta=0.3, importance_sampling_level="sequence", arguments={"use_bias_correction_kl": True}
    )
    assert abs(other[0] - ours(of, CASES["dapo"] | {"ratio": "sequence"}, kl=kl)[0]) > 1e-3


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("kind", "low", "high"), [("truncate", None, 1.3), ("truncate", 0.8, 1.3), ("mask", 0.7, 1.5)])
def test_weights_against_mismatch_agree_with_trl_and_leave_kl_alone(trl, level, kind, low, high):
    of = data()
    log = of.old - of.sampler
    if level == "sequence":
        sums = torch.stack([part.sum() for part in log.split(LENGTHS)])
        log = sums.repeat_interleave(torch.tensor(LENGTHS))
    weights = log.exp()
    if kind == "truncate":
        weights = weights.clamp(low, high)
    else:
        weights = weights.masked_fill((weights < low) | (weights > high), 0.0)
    got, _ = importance_weights(of.old, of.sampler, torch.tensor(LENGTHS), level, kind, low, high)
    torch.testing.assert_close(got, weights)
    correction = {"type": kind, "level": level, "low": low, "high": high}
    mine = ours(of, CASES["dapo"], sampler=True, mismatch=correction, kl={"coefficient": 0.05})
    agree(mine, theirs(trl, "dapo", of, beta=0.05, weights=weights))


@pytest.mark.parametrize("top", [0.2, 0.5])
def test_training_on_the_top_entropy_quantile_agrees_with_trl(trl, top):
    of = data()
    kept = torch.cat(kept_tokens(of.entropy.split(LENGTHS), top))
    assert 0 < kept.sum() < len(kept)
    mine = ours(of, CASES["dapo"], kept=kept, entropy={"top": top}, kl={"coefficient": 0.05})
    agree(mine, theirs(trl, "dapo", of, beta=0.05, top_entropy_quantile=top))


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_the_entropy_bonus_agrees_with_trl(trl, beta):
    def entropy_of(logprobs):
        return -logprobs * logprobs.exp()

    of = data()
    settings = {"_entropy_bonus_enabled": True, "entropy_coef": 0.2, "entropy_of": entropy_of}
    mine = ours(of, CASES["dapo"], kl={"coefficient": beta}, entropy={"bonus": 0.2}, entropy_of=entropy_of)
    agree(mine, theirs(trl, "dapo", of, beta=beta, **settings))
