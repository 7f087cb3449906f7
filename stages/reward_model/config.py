"""Configuration of the reward model's training."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from stages.contract.config import Config
from stages.model.config import OptimizerConfig


class FilePairs(Config):
    """Preferences from a file, in any of TRL's formats: `chosen`, `rejected`, and `prompt` where these do not hold it.

    Each is a text, or a list of messages `{role, content}`.
    """

    type: Literal["file"]
    path: Path
    """File ending in `.jsonl` or `.parquet`; a relative path counts from the working directory."""
    heldout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the pairs to hold out, chosen by the prompt's digest: no prompt is on both sides. In plain texts without
    `prompt` it is known by the last `\n\nAssistant:` in both, as in HH-RLHF; without that each pair is by itself."""


class AnswerPairs(Config):
    """Preferences made from the prompts' integer answers: the right one is chosen, a wrong one rejected.

    Pairs of the run's held-out prompts are held out.
    """

    type: Literal["answers"]
    offsets: tuple[int, ...] = Field(default=(-10, -2, -1, 1, 2, 10), min_length=1)
    """The rejected answer is the right one plus one of these."""
    per_prompt: int = Field(default=1, gt=0)
    """Pairs of each prompt."""

    @field_validator("offsets")
    @classmethod
    def _wrong(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if 0 in value:
            raise ValueError("0 would reject the right answer")
        return value


class RewardModelConfig(Config):
    """A reward model, trained before the first iteration; `score.rewards` of type `reward_model` without a path use it.

    Bradley–Terry loss.
    """

    pairs: Annotated[FilePairs | AnswerPairs, Field(discriminator="type")]
    """Preferences."""
    model: Path | None = None
    """Hugging Face folder of the language model whose body it takes, or of a reward model to go on from; null takes the
    run's starting policy."""
    format: Literal["chat", "text"] | None = None
    """How a conversation becomes the model's text: by the tokenizer's chat template, or contents one a line; null takes
    `chat` where the tokenizer has a chat template."""
    epochs: int = Field(default=1, gt=0)
    """Passes over the pairs."""
    batch_size: int = Field(default=64, gt=0)
    """Pairs an optimizer step."""
    micro_batch_tokens: int = Field(default=16384, gt=0)
    """Padded tokens of a forward and backward pass; bounds memory."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    """The optimizer."""
