"""Configuration of the prompts and their sources."""

import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from stages.contract.config import Config


class ReasoningGymSource(Config):
    """Problems that reasoning-gym poses and marks."""

    type: Literal["reasoning_gym"]
    dataset: str
    """Family of problems, e.g. `chain_sum`."""
    size: int = Field(gt=0)
    """Problems to generate, before equal ones are removed."""
    seed: int = 0
    """Seed of the generator."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """The family's own parameters, e.g. `{min_terms: 2}`."""


class RowsSource(Config):
    """What sources of rows have in common: which column is what."""

    type: str
    prompt_field: str = "prompt"
    """Column of the prompt: a text, or a list of messages `{role, content}`. Dots lead into nested columns."""
    answer_field: str | None = "answer"
    """Column of the right answer; null where there are none."""
    task: str
    """Name of the task, by which rewards can be chosen."""
    task_field: str | None = None
    """Column of each row's own task; null gives all rows the same `task`."""


class FileSource(RowsSource):
    """A local JSONL or Parquet file, one prompt a row."""

    type: Literal["file"]
    path: Path
    """File ending in `.jsonl` or `.parquet`; a relative path counts from the working directory."""
    task: str = "file"
    """Name of the task, by which rewards can be chosen."""


class InlineSource(RowsSource):
    """Rows that stand in the configuration itself, for a handful of prompts."""

    type: Literal["inline"]
    rows: tuple[dict[str, Any], ...] = Field(min_length=1)
    """A mapping of columns for each prompt, e.g. `{prompt: 1 + 1, answer: 2}`."""
    task: str = "inline"
    """Name of the task, by which rewards can be chosen."""


class HuggingFaceSource(RowsSource):
    """A Hugging Face dataset: a name on the hub, or a local folder written by `save_to_disk` or holding data files."""

    type: Literal["huggingface"]
    path: str
    """Dataset name or local folder."""
    name: str | None = None
    """Configuration of the dataset, e.g. `main`."""
    split: str = "train"
    """Split to read."""
    revision: str | None = None
    """Commit of the dataset on the hub; pin it so that the run can be repeated."""
    task: str = "huggingface"
    """Name of the task, by which rewards can be chosen."""


Source = Annotated[ReasoningGymSource | FileSource | InlineSource | HuggingFaceSource, Field(discriminator="type")]


class PromptsConfig(Config):
    """Which prompts are trained on, and which are held out."""

    source: Source
    """Where prompts come from."""
    heldout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the source's prompts to hold out, chosen by the prompt's digest; ignored with `heldout_source`."""
    heldout_source: Source | None = None
    """A source of its own for held-out prompts; prompts of it that are in `source` too are not trained on."""
    template: str = "{prompt}"
    """Text of a prompt, with `{prompt}` and the names of the row's other columns or metadata in braces."""
    format: Literal["chat", "text"] = "chat"
    """`chat` applies the tokenizer's chat template to the messages; `text` joins their contents."""
    system: str | None = None
    """Text of a system message put before each prompt."""
    answer_pattern: str | None = None
    r"""Regular expression whose first group is the answer, e.g. `#### (.*)` for GSM8K."""

    @field_validator("template")
    @classmethod
    def _plain_names(cls, value: str) -> str:
        try:
            fields = [(name, form) for _, name, form, _ in string.Formatter().parse(value) if name is not None]
        except ValueError as error:
            raise ValueError(f"{error}: write {{{{ and }}}} for braces") from error
        if odd := [name for name, form in fields if not name.isidentifier() or "{" in (form or "")]:
            raise ValueError(f"{odd[0]!r} in braces is not a plain column name")
        if not fields:
            raise ValueError("names no column in braces, so that all prompts would be equal")
        return value

    @field_validator("answer_pattern")
    @classmethod
    def _one_group(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                groups = re.compile(value).groups
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
            if groups != 1:
                raise ValueError(f"has {groups} groups; one is wanted, around the answer")
        return value
