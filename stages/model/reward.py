"""Reward models: a conversation → one number, by a plain Hugging Face folder for sequence classification.

Dimensions: B conversations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from stages.contract.errors import ConfigError, DataError, ModelError
from stages.model.load import context_length, load_tokenizer
from stages.model.render import Format, encode
from stages.model.scalar import load_scalar, starting_scalar

Conversation = Sequence[Mapping[str, str]]
"""Messages {role, content}; the last one is what is judged."""


@dataclass(frozen=True)
class RewardModel:
    """A reward model with its tokenizer, and how conversations become its text."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: Format

    @property
    def context(self) -> int:
        """Tokens that it can see."""
        return context_length(self.model)

    def text(self, conversation: Conversation) -> str:
        """What it reads: by its chat template, or the contents, one a line, the last one right behind the one before.

        Plain text ends with the end token, as in TRL.

        Raises:
            DataError: the chat template refuses the conversation, as some refuse a system's message.
        """
        if self.kind == "chat":
            messages = [dict(message) for message in conversation]
            try:
                return str(self.tokenizer.apply_chat_template(messages, tokenize=False))
            except TemplateError as error:
                raise DataError(f"the reward model's chat template refuses the conversation: {error}") from error
        *asked, last = (message["content"] for message in conversation)
        return "\n".join(asked) + last + str(self.tokenizer.eos_token)

    def tokens(self, conversation: Conversation) -> list[int]:
        """The token ids of that text."""
        return encode(self.tokenizer, self.text(conversation), self.kind)

    def rewards(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The reward [B] of each conversation, given as token ids; with gradients where they are enabled."""
        device = self.model.device
        width = max(len(row) for row in rows)
        ids_BS = torch.full((len(rows), width), _pad(self.model), dtype=torch.long)
        mask_BS = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids_BS[i, : len(row)] = torch.tensor(row)
            mask_BS[i, : len(row)] = 1
        out = self.model(input_ids=ids_BS.to(device), attention_mask=mask_BS.to(device))
        rewards_B: Tensor = out.logits[:, 0].float()
        return rewards_B


def load_reward_model(folder: Path, device: str, kind: Format | None = None) -> RewardModel:
    """The reward model of a folder.

    Args:
        folder: Hugging Face folder of a model for sequence classification with one label, and its tokenizer.
        device: `cpu`, `cuda`.
        kind: how conversations become text; None takes `chat` where the tokenizer has a chat template, else `text`.

    Raises:
        ModelError: the folder holds no such model or no tokenizer, or nothing says what rows are padded with.
        ConfigError: `chat`, and the tokenizer has no chat template.
    """
    model = load_scalar(folder, device, AutoModelForSequenceClassification, "reward model")
    tokenizer = load_tokenizer(folder)
    if _pad(model) is None:
        if tokenizer.pad_token_id is None:
            raise ModelError(f"{folder}: neither config.json nor the tokenizer names a pad token: set `pad_token_id`")
        _text_config(model).pad_token_id = int(tokenizer.pad_token_id)
    return RewardModel(model, tokenizer, _kind(tokenizer, folder, kind))


def starting_reward_model(folder: Path, device: str, kind: Format | None = None) -> RewardModel:
    """The reward model of a folder, or one with the body of its language model and a head of zeros.

    The pad token is the model's, else the tokenizer's, else the end token.

    Raises:
        ModelError: the model cannot be loaded, or transformers has no sequence classifier with its body.
        ConfigError: `chat`, and the tokenizer has no chat template.
    """
    model = starting_scalar(folder, device, AutoModelForSequenceClassification, "reward model")
    tokenizer = load_tokenizer(folder)
    if _pad(model) is None:
        pad = tokenizer.pad_token_id
        _text_config(model).pad_token_id = int(tokenizer.eos_token_id if pad is None else pad)
    return RewardModel(model, tokenizer, _kind(tokenizer, folder, kind))


def _kind(tokenizer: PreTrainedTokenizerBase, folder: Path, kind: Format | None) -> Format:
    if kind == "chat" and tokenizer.chat_template is None:
        raise ConfigError(f"{folder}: format is chat, but its tokenizer has no chat template; use text, or add one")
    return kind or ("text" if tokenizer.chat_template is None else "chat")


def _pad(model: PreTrainedModel) -> Any:
    return getattr(_text_config(model), "pad_token_id", None)


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config()
