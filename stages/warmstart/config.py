"""Configuration of the starting policy."""

import string
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.contract.config import Config
from stages.model.config import OptimizerConfig


class NewModel(Config):
    """A new Llama with random weights and a character tokenizer."""

    type: Literal["new"]
    hidden_size: int = Field(default=128, gt=0)
    """Width."""
    intermediate_size: int = Field(default=352, gt=0)
    """Width of the feed-forward layers."""
    layers: int = Field(default=4, gt=0)
    """Transformer layers."""
    heads: int = Field(default=4, gt=0)
    """Attention heads; `hidden_size / heads` must be even. Heads of 32 or 64 suit vLLM."""
    context_length: int = Field(default=128, gt=0)
    """Tokens of prompt and completion at most."""
    characters: str = Field(default=string.digits + string.ascii_letters + string.punctuation + " \n", min_length=1)
    """What the tokenizer knows, a token a character; others are passed over."""

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} divided by heads {self.heads} must be an even number")
        return self


class FolderModel(Config):
    """A Hugging Face model folder on this machine, with its tokenizer; never changed, copied into the run."""

    type: Literal["folder"]
    path: Path
    """The folder; a relative path counts from the working directory."""


class RunModel(Config):
    """The policy of another run in the same folder of runs, as a phase that follows it: the policy alone, copied."""

    type: Literal["run"]
    run: str
    """Name of that run."""
    iteration: Annotated[int, Field(ge=0)] | Literal["last", "promoted"] = "last"
    """Which of its policies: of an iteration, the last one when this run begins, or the one promoted then."""


class AnswerDemonstrations(Config):
    """Demonstrations made from the training prompts' integer answers, of which only a part is right."""

    type: Literal["answers"]
    correct: float = Field(default=0.5, ge=0, le=1)
    """Share of demonstrations that give the right answer."""
    offsets: tuple[int, ...] = Field(default=(-10, -2, -1, 1, 2, 10), min_length=1)
    """The others give the right answer plus one of these."""
    per_prompt: int = Field(default=8, gt=0)
    """Demonstrations of each prompt."""
    template: str = "{answer}"
    """Text of a completion, with `{answer}` in it."""

    @field_validator("template")
    @classmethod
    def _with_answer(cls, value: str) -> str:
        try:
            fits = value.format(answer=1) != value.format(answer=2)
        except (LookupError, ValueError, AttributeError) as error:
            raise ValueError(f"{{answer}} alone may stand in braces ({error!r})") from error
        if not fits:
            raise ValueError("does not hold {answer}, so that all demonstrations would be equal")
        return value


class FileDemonstrations(Config):
    """Demonstrations from a JSONL or Parquet file with the columns `prompt` (as the user says it) and `completion`."""

    type: Literal["file"]
    path: Path
    """The file; a relative path counts from the working directory."""


class TuningConfig(Config):
    """Supervised tuning: cross-entropy of the completions' tokens."""

    demonstrations: Annotated[AnswerDemonstrations | FileDemonstrations, Field(discriminator="type")]
    """What is imitated."""
    steps: int = Field(gt=0)
    """Optimizer steps."""
    batch_size: int = Field(default=64, gt=0)
    """Demonstrations an optimizer step."""
    micro_batch_tokens: int = Field(default=16384, gt=0)
    """Padded tokens of a forward and backward pass; bounds memory."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""


class WarmstartConfig(Config):
    """Where the starting policy comes from."""

    model: Annotated[NewModel | FolderModel | RunModel, Field(discriminator="type")]
    """A new model, a folder, or another run's policy."""
    tuning: TuningConfig | None = None
    """Supervised tuning; null takes the model as it is."""
