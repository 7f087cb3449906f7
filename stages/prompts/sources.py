"""Reads prompts from reasoning-gym, files, the configuration and Hugging Face datasets. Heavy libraries load late."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, assert_never

from stages.contract.errors import DataError
from stages.prompts.config import FileSource, HuggingFaceSource, InlineSource, PlainSource, ReasoningGymSource
from stages.prompts.files import numbered_rows
from stages.prompts.rows import RawPrompt, prompts_of

HASHED = (
    "intermediate_integration",
    "isomorphic_strings",
    "knight_swap",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
)
"""Families that go through sets of texts, so that their problems follow Python's random seed of hashes."""
NEVER_THE_SAME = "its problems are others each time, whatever the seed"
REFUSED = {
    "codeio": NEVER_THE_SAME,
    "list_functions": NEVER_THE_SAME,
    "composite": "several families at once are a source of `type: mixture` here, a part for each",
}


def load(source: PlainSource, field: str = "prompts.source") -> list[RawPrompt]:
    """All prompts of a source, as `read` gives them."""
    return list(read(source, field))


def read(source: PlainSource, field: str = "prompts.source") -> Iterator[RawPrompt]:
    """The prompts of a source one by one, in its order; `field` is its name in the configuration, for messages.

    Raises:
        DataError: the source is missing, empty, or broken; says which row and column.
    """
    match source:
        case ReasoningGymSource():
            prompts = _reasoning_gym(source, field)
        case FileSource(path=path):
            counted = "row" if path.suffix == ".parquet" else "line"
            prompts = prompts_of(numbered_rows(path, field), source, str(path), field, counted)
        case InlineSource():
            prompts = prompts_of(enumerate(source.rows, 1), source, f"{field}.rows", field)
        case HuggingFaceSource():
            prompts = prompts_of(_numbered(_huggingface(source, field), source), source, source.path, field)
        case _:
            assert_never(source)
    empty = True
    for prompt in prompts:
        empty = False
        yield prompt
    if empty:
        raise DataError(f"{field}: {source.type} gives no prompt: {source.model_dump()}")


def _reasoning_gym(source: ReasoningGymSource, field: str) -> Iterator[RawPrompt]:
    import reasoning_gym

    if told := REFUSED.get(source.dataset):
        raise DataError(f"{field}.dataset: {source.dataset!r}: {told}")
    for level in range(source.levels) if source.levels else [None]:
        parameters = source.parameters if level is None else _level(source, level, field) | source.parameters
        at = "" if level is None else f" at level {level}"
        try:
            dataset = reasoning_gym.create_dataset(source.dataset, size=source.size, seed=source.seed, **parameters)
        except (ValueError, TypeError, AssertionError) as error:
            raise DataError(f"{field}: reasoning-gym refuses {source.dataset!r}{at}: {error}") from error
        if source.dataset in HASHED and sys.flags.hash_randomization:
            raise DataError(
                f"{field}.dataset: the problems of {source.dataset!r} differ from process to process; begin each "
                "command, and what serves the run, with PYTHONHASHSEED=0 in its environment, or take another family"
            )
        for item in dataset:
            metadata = json.loads(json.dumps(item["metadata"], default=str))
            task = f"reasoning_gym/{source.dataset}"
            yield RawPrompt(item["question"], item["answer"], task, metadata | {"question": item["question"]}, level)


def _level(source: ReasoningGymSource, level: int, field: str) -> dict[str, Any]:
    """A family's parameters at a level of its own curriculum: what is harder than the levels below it."""
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
    from reasoning_gym.factory import CURRICULA, create_curriculum

    if source.dataset not in CURRICULA:
        raise DataError(f"{field}.levels: reasoning-gym has no curriculum for {source.dataset!r}; set it to null")
    curriculum = create_curriculum(source.dataset)
    highest = max((len(attribute.levels) for attribute in curriculum.attributes.values()), default=0)
    if level >= highest:
        raise DataError(
            f"{field}.levels: the curriculum of {source.dataset!r} has {highest} levels, not {source.levels}"
        )
    curriculum.set_global_level(level)
    try:
        made = curriculum.generate_configuration(context=DefaultCurriculumContext(RangeAttributeMode.UPPER_BOUND))
    except (ValueError, TypeError, AssertionError) as error:
        raise DataError(f"{field}: reasoning-gym refuses {source.dataset!r} at level {level}: {error}") from error
    return {part.name: getattr(made, part.name) for part in fields(made) if part.name not in ("seed", "size")}


def _numbered(rows: Iterable[Any], source: HuggingFaceSource) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a dataset with their numbers; each is decoded when its turn comes."""
    number = 1
    try:
        for number, row in enumerate(rows, 2):
            yield number - 1, dict(row)
    except UnicodeDecodeError as error:
        raise DataError(f"{source.path}, row {number}: not UTF-8 at byte {error.start}") from error


def _huggingface(source: HuggingFaceSource, field: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(f"{field}: type huggingface needs `pip install 'grpo-flows[datasets]'`") from error
    try:
        if (Path(source.path) / "dataset_info.json").is_file() or (Path(source.path) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(source.path)
            split = found[source.split] if isinstance(found, datasets.DatasetDict) else found
            if split.split is not None and str(split.split) != source.split:
                raise DataError(f"{field}.split: {source.path!r} holds the split {split.split!s}, not {source.split!r}")
        else:
            split = datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    except (FileNotFoundError, ConnectionError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{field}: cannot load the dataset {source.path!r}: {error}") from error
    except StopIteration as error:  # what datasets raises for a data file without rows
        raise DataError(f"{field}: the dataset {source.path!r} has no rows") from error
    return split
