"""Configuration of the update."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.contract.config import Config
from stages.model.config import LoraConfig, OptimizerConfig
from stages.model.kl_controller import KlTerm

Ratio = Literal["token", "sequence", "sequence_token"]


class LossConfig(Config):
    """What every loss has."""

    aggregation: Literal["sequence_mean", "token_mean", "constant", "sequence_sum"] = "token_mean"
    """How tokens become one number: mean over each sequence, then over sequences (GRPO); mean over all tokens of the
    optimizer batch (DAPO); sum over each sequence divided by `length`, then mean over sequences (Dr. GRPO); sum over
    each sequence, then mean over sequences (LUSPO)."""
    length: int | None = Field(default=None, gt=0)
    """Tokens that `constant` divides by, e.g. sample.sampling.max_tokens."""

    @model_validator(mode="after")
    def _length_where_needed(self) -> Self:
        if (self.aggregation == "constant") != (self.length is not None):
            raise ValueError(f"aggregation {self.aggregation} with length {self.length}: `constant` alone has a length")
        return self


class ClippedLoss(LossConfig):
    """The clipped surrogate of PPO and GRPO; with the ratio of a sequence GSPO, and with `sequence_sum` LUSPO."""

    type: Literal["clipped"] = "clipped"
    epsilon_low: float = Field(default=0.2, ge=0, le=1)
    """Width of the clip below a ratio of 1."""
    epsilon_high: float = Field(default=0.2, ge=0)
    """Width of the clip above a ratio of 1."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Ratio from which on a token with a negative advantage has no more weight (dual clip); null sets no bound."""
    delta: float | None = Field(default=None, gt=0)
    """Upper bound of the ratio that is not clipped (two-sided clip of INTELLECT-2); null sets none."""
    ratio: Ratio = "token"
    """Whose ratio: the token's, its sequence's (GSPO), or the sequence's with the token's gradient (GSPO-token)."""

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if self.dual_clip is not None and self.delta is not None:
            raise ValueError("dual_clip and delta bound the same ratios: set one of them to null")
        return self


class PolicyGradientLoss(LossConfig):
    """Advantage times log-probability, without a ratio (REINFORCE)."""

    type: Literal["policy_gradient"]


class GpgLoss(LossConfig):
    """The policy gradient, made greater by the part of groups that are constant (GPG)."""

    type: Literal["gpg"]


class CispoLoss(LossConfig):
    """Log-probability times advantage times a ratio that is bounded and has no gradient (CISPO)."""

    type: Literal["cispo"]
    cap: Literal["relative", "absolute"] = "relative"
    """Whether the ratio is kept within [1 - epsilon_low, 1 + epsilon_high], or within [epsilon_low, epsilon_high]."""
    epsilon_high: float = Field(default=4.0, gt=0)
    """Where the ratio is capped above."""
    epsilon_low: float | None = Field(default=None, ge=0)
    """Where it is capped below; null does not."""
    ratio: Ratio = "token"
    """Whose ratio: the token's, or its sequence's."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.bounds()
        if low is not None and low >= high:
            raise ValueError(f"the ratio is to be kept within [{low}, {high}]: the lower bound must be less")
        return self

    def bounds(self) -> tuple[float | None, float]:
        """Least and greatest ratio."""
        if self.cap == "absolute":
            return self.epsilon_low, self.epsilon_high
        return None if self.epsilon_low is None else 1 - self.epsilon_low, 1 + self.epsilon_high


class SapoLoss(LossConfig):
    """A soft gate of the ratio in place of the clip (SAPO)."""

    type: Literal["sapo"]
    temperature_positive: float = Field(default=1.0, gt=0)
    """Steepness of the gate where the advantage is positive."""
    temperature_negative: float = Field(default=1.05, gt=0)
    """Steepness of the gate where it is not."""
    ratio: Ratio = "token"
    """Whose ratio: the token's, or its sequence's."""


class GmpoLoss(LossConfig):
    """The geometric mean of a sequence's clipped ratios (GMPO)."""

    type: Literal["gmpo"]
    aggregation: Literal["sequence_mean", "token_mean", "constant", "sequence_sum"] = "sequence_mean"
    """As in the other losses; each token of a sequence has the sequence's loss, so `sequence_mean` is the paper's."""
    epsilon_low: float = Field(default=0.4, ge=0)
    """Width of the clip below a log-ratio of 0 (nats)."""
    epsilon_high: float = Field(default=0.4, ge=0)
    """Width of the clip above a log-ratio of 0 (nats)."""


class DppoLoss(LossConfig):
    """The ratio times advantage, but for tokens whose probability has moved too far already (DPPO, binary TV)."""

    type: Literal["dppo"]
    threshold: float = Field(default=0.15, ge=0, le=1)
    """Change of a token's probability from which on it is left out."""


Loss = Annotated[
    ClippedLoss | PolicyGradientLoss | GpgLoss | CispoLoss | SapoLoss | GmpoLoss | DppoLoss, Field(discriminator="type")
]


class KlConfig(KlTerm):
    """The KL term towards the reference policy, in the loss, aggregated as the loss is.

    No ratio of a sequence and no weight against mismatch ever multiplies it. For a KL term in the reward see
    `advantage`.
    """

    estimator: Literal["k1", "k2", "k3", "unbiased_k3"] = "k3"
    """Schulman's estimators, or k3 times the token's ratio to the old policy (DeepSeek-V3.2)."""


class EntropyConfig(Config):
    """What entropy does to the loss."""

    bonus: float = Field(default=0.0, ge=0)
    """Coefficient of the mean entropy (nats), aggregated as the loss is, that is subtracted from the loss."""
    top: float = Field(default=1.0, gt=0, le=1)
    """Part of the optimizer batch's tokens, those of the greatest entropy under the old policy, that the policy loss is
    taken over (arXiv:2506.01939 takes 0.2); the denominators stay those of all tokens."""


class MismatchConfig(Config):
    """Weights of the policy loss for the sampler's probabilities not being the trainer's."""

    level: Literal["token", "sequence"] = "token"
    """Whether a weight is a token's ratio trainer / sampler, or the product over its sequence."""
    low: float | None = Field(default=None, ge=0)
    """Lower bound of the weight; null sets none."""
    high: float = Field(default=2.0, gt=0)
    """Upper bound of the weight."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low is not None and self.low >= self.high:
            raise ValueError(f"low {self.low} must be less than high {self.high}")
        return self


class TruncatedWeights(MismatchConfig):
    """Weights beyond a bound are brought to it (TIS)."""

    type: Literal["truncate"]


class MaskedWeights(MismatchConfig):
    """Weights beyond a bound become 0: by sequence MIS, by token with both bounds IcePop."""

    type: Literal["mask"]


Mismatch = Annotated[TruncatedWeights | MaskedWeights, Field(discriminator="type")]


class AverageConfig(Config):
    """An exponential average of the policies, kept beside each as a model folder `average`."""

    decay: float = Field(gt=0, lt=1)
    """Part of the old average that stays: average = decay · average + (1 - decay) · policy."""


class UpdateConfig(Config):
    """How a policy is trained on an iteration's rollouts."""

    epochs: int = Field(default=1, gt=0)
    """Passes over the rollouts."""
    minibatches: int = Field(default=1, gt=0)
    """Optimizer steps an epoch."""
    micro_batch_tokens: int = Field(default=16384, gt=0)
    """Padded tokens of a forward and backward pass; bounds memory, never changes the gradient."""
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    """Log-probabilities of the old policy: by a pass of the trainer, which the first optimizer step is spared, or as
    the sampler reported them."""
    on_nonfinite: Literal["stop", "skip_step", "rollback"] = "stop"
    """What a loss or gradient that is not finite does. `stop`: the update ends, names the rows, and the former policy
    stays. `skip_step`: that optimizer step is left out and counted. `rollback`: the iteration leaves policy and
    optimizer as they were, counts it, and the run goes on. Where a step has spoilt the weights already, `skip_step` too
    stops."""
    loss: Loss = ClippedLoss()
    """The objective."""
    kl: KlConfig = KlConfig()
    """The KL term."""
    entropy: EntropyConfig = EntropyConfig()
    """The entropy term, and training on the tokens of greatest entropy."""
    mismatch: Mismatch | None = None
    """Correction for the mismatch of sampler and trainer; null corrects nothing."""
    average: AverageConfig | None = None
    """Keeps an exponential average of the policies, which `score.reference` can name; null keeps none."""
    lora: LoraConfig | None = None
    """Trains an adapter in place of the whole model; null trains the whole."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""

    @field_validator("loss", mode="before")
    @classmethod
    def _clipped_unless_named(cls, value: Any) -> Any:
        return {"type": "clipped", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.old_logprobs == "sampler":
            if self.mismatch is not None:
                raise ValueError("mismatch compares the trainer's old log-probabilities: set old_logprobs to recompute")
            if self.entropy.top < 1:
                raise ValueError("entropy.top needs the old policy's entropies: set old_logprobs to recompute")
        return self
