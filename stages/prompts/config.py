"""Configuration of the prompts and their sources."""

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from stages.contract.config import Config


def _plain_names(value: str) -> str:
    try:
        fields = [(name, form) for _, name, form, _ in string.Formatter().parse(value) if name is not None]
    except ValueError as error:
        raise ValueError(f"{error}: write {{{{ and }}}} for braces") from error
    if odd := [name for name, form in fields if not name.isidentifier() or "{" in (form or "")]:
        raise ValueError(f"{odd[0]!r} in braces is not a plain column name")
    if not fields:
        raise ValueError("names no column in braces, so that all prompts would be equal")
    return value


def _names_inside(value: Any) -> Iterator[Any]:
    match value:
        case dict():
            yield from value
            yield from (name for inner in value.values() for name in _names_inside(inner))
        case list() | tuple():
            yield from (name for inner in value for name in _names_inside(inner))


def _one_group(value: str) -> str:
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"has {groups} groups; one is wanted, around the answer")
    return value


Template = Annotated[str, AfterValidator(_plain_names)]
Pattern = Annotated[str, AfterValidator(_one_group)]


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
    levels: int | None = Field(default=None, gt=0)
    """Levels 0, 1, … of the family's own curriculum, `size` problems of each; `parameters` override what a level says.
    null: one kind of problems, without a level."""


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
    level_field: str | None = None
    """Column of a whole number from 0 that says how hard a row is, for `sample.curriculum`; null: none says so."""
    layout: Literal["auto", "columns", "verl"] = "auto"
    """`verl` reads data_source as the task and reward_model.ground_truth as the answer; `columns` goes by the fields
    above; `auto` takes verl's where the first row has these and no column `answer`, and the fields are not set."""


class FileSource(RowsSource):
    """A local JSONL or Parquet file, one prompt a row; also in the layouts of TRL (`prompt` of messages) and verl."""

    type: Literal["file"]
    path: Path
    """File ending in `.jsonl`, `.jsonl.gz` or `.parquet`; a relative path counts from the working directory."""
    task: str = "file"
    """Name of the task, by which rewards can be chosen."""


class InlineSource(RowsSource):
    """Rows that stand in the configuration itself, for a handful of prompts."""

    type: Literal["inline"]
    rows: tuple[dict[str, Any], ...] = Field(min_length=1)
    """A mapping of columns for each prompt, e.g. `{prompt: 1 + 1, answer: 2}`."""
    task: str = "inline"
    """Name of the task, by which rewards can be chosen."""

    @field_validator("rows")
    @classmethod
    def _texts_as_names(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for number, row in enumerate(value, 1):
            if odd := [name for inner in row.values() for name in _names_inside(inner) if not isinstance(name, str)]:
                raise ValueError(f"row {number}: the name {odd[0]!r} inside a column is no text; put it in quotes")
        return value


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


PlainSource = Annotated[ReasoningGymSource | FileSource | InlineSource | HuggingFaceSource, Field(discriminator="type")]


class MixturePart(Config):
    """One source of a mixture; what it leaves open is as `prompts` says."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the part, by which `sample.weights` says how much is drawn from it."""
    source: PlainSource
    """Where its prompts come from."""
    template: Template | None = None
    """Its own `prompts.template`."""
    system: str | None = None
    """Its own `prompts.system`."""
    answer_pattern: Pattern | None = None
    """Its own `prompts.answer_pattern`."""


@dataclass(frozen=True)
class Whole:
    """A source that is no mixture, as the one part of itself."""

    source: PlainSource
    name: None = None
    template: None = None
    system: None = None
    answer_pattern: None = None


class MixtureSource(Config):
    """Several sources; `sample.weights` says how much an iteration draws of each, without it prompts count alike."""

    type: Literal["mixture"]
    parts: tuple[MixturePart, ...] = Field(min_length=1)
    """The sources, each with a name."""

    @field_validator("parts")
    @classmethod
    def _own_names(cls, value: tuple[MixturePart, ...]) -> tuple[MixturePart, ...]:
        names = [part.name for part in value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two parts are named {twice[0]!r}; give each a name of its own")
        return value


Source = Annotated[
    ReasoningGymSource | FileSource | InlineSource | HuggingFaceSource | MixtureSource, Field(discriminator="type")
]


class PromptsConfig(Config):
    """Which prompts are trained on, and which are held out."""

    source: Source
    """Where prompts come from."""
    heldout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the source's prompts to hold out, chosen by the prompt's digest; ignored with `heldout_source`."""
    heldout_source: Source | None = None
    """A source of its own for held-out prompts; prompts of it that are in `source` too are not trained on."""
    near_duplicates: Literal["warn", "drop"] = "warn"
    """Training prompts that differ from a held-out one in case and white space alone: told, or not trained on."""
    template: Template = "{prompt}"
    """Text of a prompt, with `{prompt}` and the names of the row's other columns or metadata in braces."""
    format: Literal["chat", "text"] = "chat"
    """`chat` applies the tokenizer's chat template to the messages; `text` joins their contents."""
    system: str | None = None
    """Text of a system message put before each prompt."""
    answer_pattern: Pattern | None = None
    r"""Regular expression whose first group is the answer, e.g. `#### (.*)` for GSM8K."""

    def plain_sources(self) -> dict[str, PlainSource]:
        """Each source that is no mixture, by its dotted name in the configuration."""
        named = {"source": self.source} | ({"heldout_source": self.heldout_source} if self.heldout_source else {})
        return {
            f"prompts.{name}{inside}": part.source
            for name, source in named.items()
            for inside, part in parts_of(source).items()
        }


def parts_of(source: Source) -> dict[str, MixturePart | Whole]:
    """A mixture's parts by their places in it (`.parts.0.source`); another source is one part, in no place."""
    if isinstance(source, MixtureSource):
        return {f".parts.{i}.source": part for i, part in enumerate(source.parts)}
    return {"": Whole(source)}


def worded(config: PromptsConfig, part: MixturePart | Whole) -> PromptsConfig:
    """The configuration with what a part has of its own."""
    own = {name: getattr(part, name) for name in ("template", "system", "answer_pattern")}
    return config.model_copy(update={name: value for name, value in own.items() if value is not None})


def has_levels(source: PlainSource) -> bool:
    """Whether a source says how hard its prompts are."""
    return source.levels is not None if isinstance(source, ReasoningGymSource) else source.level_field is not None
