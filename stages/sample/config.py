"""Configuration of sampling."""

from typing import Literal

from pydantic import Field

from stages.contract.config import Config


class TransformersEngine(Config):
    """Sampling by the transformers library, in this process."""

    type: Literal["transformers"] = "transformers"
    batch_size: int = Field(default=256, gt=0)
    """Completions that are drawn at a time; bounds memory."""


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


class SampleConfig(Config):
    """Which prompts an iteration draws, and how they are answered."""

    prompts: int = Field(default=64, gt=0)
    """Prompts an iteration."""
    group_size: int = Field(default=8, gt=0)
    """Completions a prompt (G); methods that compare within a group need at least 2."""
    max_prompt_tokens: int = Field(default=1024, gt=0)
    """Longer prompts are dropped and counted."""
    sampling: SamplingConfig = SamplingConfig()
    """How a token is drawn."""
    engine: TransformersEngine = TransformersEngine()
    """What draws."""
