"""Prompts as the model sees them: text, then token ids, once."""

from typing import Literal

from transformers import PreTrainedTokenizerBase

from stages.contract.errors import ConfigError

Format = Literal["chat", "text"]


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], kind: Format) -> str:
    """The text of a prompt: by the tokenizer's chat template, or the messages' contents, one a line.

    Raises:
        ConfigError: `chat`, and the tokenizer has no chat template.
    """
    if kind == "text":
        return "\n".join(message["content"] for message in messages)
    if tokenizer.chat_template is None:
        raise ConfigError("prompts.format: chat, but the policy's tokenizer has no chat template; use text, or add one")
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def encode(tokenizer: PreTrainedTokenizerBase, text: str, kind: Format) -> list[int]:
    """Token ids of a text; `text` adds the tokenizer's own special tokens, which a chat template already holds."""
    ids: list[int] = tokenizer(text, add_special_tokens=kind == "text")["input_ids"]
    return ids
