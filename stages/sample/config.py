"""Configuration of sampling."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.contract.config import Config, operational


class TransformersEngine(Config):
    """Sampling by the transformers library, in this process."""

    type: Literal["transformers"] = "transformers"
    batch_size: int = Field(default=256, gt=0)
    """Completions that are drawn at a time; bounds memory."""


class VllmEngine(Config):
    """Sampling by vLLM, in processes of our own that stay warm while the weights change."""

    type: Literal["vllm"] = "vllm"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the engine. float32 is as exact as the trainer; the others are faster on a GPU and some tenths of a
    nat off on a token: let the update recompute (`old_logprobs`) and correct (`mismatch`)."""
    engines: int = operational(1, gt=0)
    """Engines that share the prompts: one for each GPU, or for each group of `tensor_parallel` GPUs."""
    tensor_parallel: int = Field(default=1, gt=0)
    """GPUs over which one engine's weights are split."""
    max_sequences: int = Field(default=256, gt=0)
    """Completions that an engine draws at a time."""
    gpu_memory: float = operational(0.5, gt=0, le=1)
    """Part of a GPU's memory that the engine may take for weights and cache; the trainer needs the rest, unless
    `sleep`."""
    cache_gib: float | None = operational(None, gt=0)
    """GiB of key-value cache; null takes what `gpu_memory` leaves, on a CPU 1."""
    cuda_graphs: bool = True
    """Records CUDA graphs at the start, on a GPU: faster steps for a slower start."""
    sleep: bool = operational(False)
    """On a GPU, frees the engine's weights and cache while other stages work."""
    start_limit: float = operational(600, gt=0)
    """Seconds in which the engine has to have started, or changed its weights."""
    silence_limit: float = operational(300, gt=0)
    """Seconds without a step of the engine after which it counts as hanging and is ended."""
    probe_tolerance: float | None = Field(default=None, gt=0)
    """Nats by which a token's log-probability may differ from the trainer's after a change of weights; null takes
    0.001 for float32 and 0.5 for the others."""


Engine = Annotated[TransformersEngine | VllmEngine, Field(discriminator="type")]


class SamplingConfig(Config):
    """How a token is drawn from the policy's distribution."""

    temperature: float = Field(default=1.0, ge=0)
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draws from the smallest set of tokens whose probability reaches this."""
    top_k: int = Field(default=0, ge=0)
    """Draws from the k most likely tokens; 0 from all."""
    max_tokens: int = Field(default=256, gt=0)
    """Tokens of a completion at most, the end token included."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end a completion beside the tokenizer's end token."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion; its tokens, up to the one that completes the text, stay part of it."""
    logprobs: Literal["processed", "raw"] = "processed"
    """Which log-probabilities are reported: of the distribution that was sampled from (temperature, top-k and top-p
    applied), or the model's own. With `raw` at a temperature other than 1, and with top-k or top-p, the update's
    figures of the mismatch compare two distributions."""


class FidelityConfig(Config):
    """How the sampler's log-probabilities are compared with the trainer's, on some completions of each `sample`."""

    completions: int | None = operational(None, ge=0)
    """Completions that are compared, spread over all; 0 compares none; null takes one of every 32, from 1 to 8."""
    warn: float = operational(0.05, gt=0)
    """Mean absolute difference (nats) of a token from which the stage warns."""
    error: float = operational(0.5, gt=0)
    """Mean absolute difference (nats) of a token from which the stage fails."""


class LevelsCurriculum(Config):
    """Prompts of the lowest level at first; then a further level is opened from time to time."""

    type: Literal["levels"]
    every: int | None = Field(default=None, gt=0)
    """Iterations after which the next level is opened; null goes by `success`."""
    success: float | None = Field(default=None, gt=0, le=1)
    """Share of successes, at the highest open level in the iteration before, that opens the next one. Where nothing of
    that level was drawn or judged, it stays."""
    rehearsal: float = Field(default=0.2, ge=0, lt=1)
    """Part of an iteration's prompts that comes from lower levels and from prompts without one, where there are any."""
    reward: str | None = None
    """Name of the reward that says what a success is; null takes the first that judges the prompt."""
    threshold: float = 1.0
    """A completion is a success where that reward is at least this."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.every is None) == (self.success is None):
            raise ValueError("curriculum: set one of every and success, which say when a level is opened")
        return self


class SuccessCurriculum(Config):
    """Prompts by what their groups earned when they were drawn last: the less sure the outcome, the likelier."""

    type: Literal["success"]
    window: int = Field(default=10, gt=0)
    """Iterations back whose scores are read; what was not drawn in them counts as unknown, with the weight 1."""
    floor: float = Field(default=0.1, gt=0, le=1)
    """Weight of a prompt of which all completions were right, or none. For a share p of right ones the weight rises
    from this to 1 with 4p(1-p), the variance of the reward (learnability, arXiv:2502.12272)."""
    reward: str | None = None
    """Name of the reward that says what a success is; null takes the first that judges the prompt."""
    threshold: float = 1.0
    """A completion is a success where that reward is at least this."""


Curriculum = Annotated[LevelsCurriculum | SuccessCurriculum, Field(discriminator="type")]


class SampleConfig(Config):
    """Which prompts an iteration draws, and how they are answered."""

    prompts: int = Field(default=64, gt=0)
    """Prompts an iteration."""
    group_size: int = Field(default=8, gt=0)
    """Completions a prompt (G); methods that compare within a group need at least 2."""
    max_prompt_tokens: int = Field(default=1024, gt=0)
    """Longer prompts are dropped and counted."""
    weights: dict[str, float] | None = None
    """Shares of the parts of `prompts.source.type: mixture`, by their names, e.g. `{sums: 3, code: 1}`: each iteration
    draws by them, part by part each prompt once in a pass. null draws from all prompts alike."""
    curriculum: Curriculum | None = None
    """Which prompts are drawn when; null draws each once in a pass, in an order by the seed."""
    rounds: int = Field(default=1, gt=0)
    """Rounds of sampling at most; above 1, prompts are added in place of groups whose rewards are all equal, until
    `prompts` groups have a difference (dynamic sampling, DAPO). Judges while it samples; `score` judges again."""
    sampling: SamplingConfig = SamplingConfig()
    """How a token is drawn."""
    engine: Engine = TransformersEngine()
    """What draws."""
    shards: int = operational(1, gt=0)
    """Parts that are drawn and kept one by one, so that a kill loses one of them. The table is the same whatever it is;
    where an engine's rounding depends on the batch, the same but for rounding."""
    fidelity: FidelityConfig = FidelityConfig()
    """Comparing the sampler with the trainer."""

    @field_validator("weights")
    @classmethod
    def _sorted(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and (min(value.values(), default=0) < 0 or not sum(value.values()) > 0):
            raise ValueError("weights are 0 or more, and one is above 0")
        return None if value is None else dict(sorted(value.items()))  # their order decides nothing
