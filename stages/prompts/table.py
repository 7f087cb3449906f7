"""What a source said → rows of the table `prompts`: template, system message, answers, ids. Pure."""

import json
import re
from collections.abc import Sequence

import polars as pl
import pyarrow as pa
from blake3 import blake3

from stages.contract import tables
from stages.contract.columns import PROMPTS
from stages.contract.errors import DataError
from stages.prompts.config import PromptsConfig
from stages.prompts.rows import RawPrompt

_MESSAGES = next(field.type for field in PROMPTS.fields if field.name == "messages")
NEAR = "near"
"""A column beside those of the table: equal where two questions differ in wording (template, system message), case and
white space alone."""


def table(raw: Sequence[RawPrompt], config: PromptsConfig, source: str | None = None) -> pl.DataFrame:
    """The table `prompts` of what a source said, and the column `near`.

    Args:
        raw: the prompts.
        config: template, system message and answer pattern to apply.
        source: the name of the source in a mixture.
    """
    messages = [_messages(prompt, config) for prompt in raw]
    return tables.frame(
        PROMPTS,
        {
            "prompt_id": [blake3(json.dumps(m).encode()).hexdigest()[:16] for m in messages],
            "messages": pl.Series(pa.array(messages, _MESSAGES)),  # Polars would look at each list by itself
            "format": [config.format] * len(raw),
            "task": [prompt.task for prompt in raw],
            "answer": [_answer(prompt, config.answer_pattern) for prompt in raw],
            "metadata": [json.dumps(prompt.metadata, default=str, sort_keys=True) for prompt in raw],
            "source": [source] * len(raw),
            "level": [prompt.level for prompt in raw],
        },
    ).with_columns(pl.Series(NEAR, [near(prompt.prompt) for prompt in raw], pl.Int64))


def with_near(prompts: pl.DataFrame, questions: pl.DataFrame | None) -> pl.DataFrame:
    """The table `prompts` of a run with the column `near`, which older runs do not hold: there by the worded prompt."""
    if questions is not None:
        return prompts.join(questions, on="prompt_id", how="inner", maintain_order="left")
    worded = [near(messages) for messages in prompts["messages"].to_list()]
    return prompts.with_columns(pl.Series(NEAR, worded, pl.Int64))


def near(prompt: str | list[dict[str, str]]) -> int:
    """A digest of a prompt (of its messages but the system's) that case and white space do not change."""
    said = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt if m["role"] != "system"]
    text = " ".join(said)
    return int.from_bytes(blake3(" ".join(text.split()).casefold().encode()).digest(8), "big", signed=True)


def _messages(raw: RawPrompt, config: PromptsConfig) -> list[dict[str, str]]:
    system = [{"role": "system", "content": config.system}] if config.system else []
    if isinstance(raw.prompt, list):
        if config.template != "{prompt}":
            raise DataError("prompts.template: the prompts are lists of messages, which take no template")
        return system + raw.prompt
    try:
        text = config.template.format_map({**raw.metadata, "prompt": raw.prompt})
    except KeyError as error:
        names = sorted({*raw.metadata, "prompt"})
        raise DataError(f"prompts.template: no column {error} in the source, only {names}") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"prompts.template: {config.template!r} does not fit {raw.prompt!r:.80}: {error}") from error
    return [*system, {"role": "user", "content": text}]


def _answer(raw: RawPrompt, pattern: str | None) -> str | None:
    if pattern is None or raw.answer is None:
        return raw.answer
    found = re.search(pattern, raw.answer)
    cut = (found.group(1) or "").strip() if found else ""
    if not cut:
        raise DataError(f"prompts.answer_pattern: {pattern!r} is not found in the answer {raw.answer!r:.80}")
    return cut
