"""Attention of a new token to all before it, without a copy of keys and values for each query that shares them.

Dimensions: B completions, H key-value heads, R query heads that share one, Q query positions, D width of a head.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "grouped_sdpa"


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The library's `sdpa`; but one position's query heads that share a key-value head become positions of that head.

    The library repeats keys and values for them, which at each token costs more than the attention itself.
    """
    B, heads, Q, D = query.shape
    H = key.shape[1]
    if Q > 1 or heads == H or kwargs.get("position_bias") is not None:
        out: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out
    if attention_mask is not None and attention_mask.shape[1] > 1:
        attention_mask = attention_mask.reshape(attention_mask.shape[0], H, heads // H, -1)
    out_BHRD = nn.functional.scaled_dot_product_attention(
        query.reshape(B, H, heads // H, D), key, value, attn_mask=attention_mask, scale=kwargs.get("scaling")
    )
    return out_BHRD.reshape(B, 1, heads, -1), None


def share_heads(model: PreTrainedModel) -> None:
    """Makes a model attend so, if it attends by `sdpa`."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, grouped_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
