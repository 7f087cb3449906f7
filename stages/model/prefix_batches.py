"""Prompts with completions as a model is given them: a prompt that several rows have is computed once.

The prompts go through the model first; their keys and values are then repeated for their rows, whose completions follow
(gradients flow back through the repetition). It is the same function of the same numbers as rows that are whole.

Dimensions: U different prompts, P positions of the padded prompts, B rows, S positions of the padded rows, N completion
tokens of all rows in row order, X what the model gives for a position.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from stages.model.microbatches import micro_batches, shared_batches

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layers that leave keys and values; what others leave is changed in place, which gradients do not bear."""


@dataclass(frozen=True)
class Prefix:
    """The different prompts, padded on the left."""

    ids_UP: Tensor
    mask_UP: Tensor
    """1 for a token, 0 for padding."""
    prompts_B: Tensor
    """Which prompt each row has."""


@dataclass(frozen=True)
class TokenBatch:
    """Rows padded on the right: prompts with completions, or completions alone where there is a prefix."""

    ids_BS: Tensor
    mask_BS: Tensor
    """1 for a token, 0 for padding."""
    prefix: Prefix | None
    """The prompts of rows that hold completions alone; their last tokens, which predict nothing, are left out."""
    places_N: Tensor
    """Index into what the model gives, flattened, of the position that predicts each completion token: into the
    prefix's last positions [U], where there are any, followed by the rows' [B·S]."""
    targets_N: Tensor
    """The completion tokens."""
    temperature_N: Tensor
    """The temperature that each completion token was drawn with."""


def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether a prompt can be computed once for several rows: all layers of the model are attention."""
    own: Any = model
    kinds = getattr(own.config.get_text_config(), "layer_types", None) or []
    return set(kinds) <= ATTENTION and not own._is_stateful


def token_batches(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    budget: int,
    device: str,
) -> Iterator[tuple[list[int], TokenBatch]]:
    """Micro-batches of at most `budget` padded tokens, each with the numbers of its rows."""
    lengths = [len(completion) for completion in completions]
    if share := shares_prompts(model):
        parts = shared_batches(prompts, lengths, budget)
    else:
        parts = micro_batches([len(p) + n for p, n in zip(prompts, lengths, strict=True)], budget)
    for part in parts:
        asked, answers = [prompts[row] for row in part], [completions[row] for row in part]
        yield part, collate(asked, answers, [temperatures[row] for row in part], device, share)


def collate(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    device: str,
    share: bool = True,
) -> TokenBatch:
    """A batch from token ids; a temperature of 0 (greedy) counts as 1.

    Args:
        prompts: of each row, one token at least.
        completions: of each row.
        temperatures: that each row was drawn with.
        device: where it is made.
        share: whether prompts that several rows have become a prefix.
    """
    assert all(prompts), "a first token needs something before it"
    keys = [tuple(prompt) for prompt in prompts]
    different = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    lengths = [len(completion) for completion in completions]
    if share and len(different) < len(keys):
        firsts = [different[key] for key in keys]
        ids_UP, mask_UP = _padded(list(different), left=True)
        ids_BS, mask_BS = _padded([completion[:-1] for completion in completions])
        prefix = Prefix(ids_UP.to(device), mask_UP.to(device), torch.tensor(firsts, device=device))
        # The first token of a completion is predicted by its prompt, each other one by the token before it.
        begins = [len(different) + row * ids_BS.shape[1] for row in range(len(keys))]
        places = [
            torch.cat([torch.tensor([first]), torch.arange(begin, begin + n - 1)])
            for first, begin, n in zip(firsts, begins, lengths, strict=True)
        ]
    else:
        ids_BS, mask_BS = _padded(
            [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        )
        prefix = None
        begins = [row * ids_BS.shape[1] + len(key) - 1 for row, key in enumerate(keys)]
        places = [torch.arange(begin, begin + n) for begin, n in zip(begins, lengths, strict=True)]
    counts = torch.tensor(lengths)
    return TokenBatch(
        ids_BS.to(device),
        mask_BS.to(device),
        prefix,
        torch.cat(places).to(device),
        torch.tensor([token for completion in completions for token in completion], device=device),
        torch.tensor([t or 1.0 for t in temperatures]).repeat_interleave(counts).to(device),
    )


def completion_states(run: Callable[..., Tensor], model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """What a model gives [N, X] where each completion token is predicted.

    A position is taken several times where rows share a prompt. `index_select` adds the gradients of such a position
    in a fixed order; indexing with a tensor adds them from several threads in the order in which they come.

    Args:
        run: the model or a part of it: takes what the library's models take, gives [rows, positions, X].
        model: whose configuration says what its keys and values are.
        batch: the rows.
    """
    if batch.prefix is None:
        out_BSX = run(input_ids=batch.ids_BS, attention_mask=batch.mask_BS, use_cache=False)
        return out_BSX.flatten(0, 1).index_select(0, batch.places_N)
    prefix, cache = batch.prefix, DynamicCache(config=model.config)
    positions_UP = (prefix.mask_UP.cumsum(-1) - 1).clamp(min=0)
    out_UPX = run(
        input_ids=prefix.ids_UP,
        attention_mask=prefix.mask_UP,
        position_ids=positions_UP,
        past_key_values=cache,
        use_cache=True,
    )
    firsts_UX = out_UPX[:, -1]
    if batch.ids_BS.shape[1] == 0:
        return firsts_UX.index_select(0, batch.places_N)
    cache.reorder_cache(prefix.prompts_B)  # type: ignore[arg-type]
    lengths_B1 = prefix.mask_UP.sum(-1, keepdim=True).index_select(0, prefix.prompts_B)
    out_BSX = run(
        input_ids=batch.ids_BS,
        attention_mask=torch.cat([prefix.mask_UP.index_select(0, prefix.prompts_B), batch.mask_BS], dim=1),
        position_ids=lengths_B1 + torch.arange(batch.ids_BS.shape[1], device=batch.ids_BS.device),
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([firsts_UX, out_BSX.flatten(0, 1)]).index_select(0, batch.places_N)


def _padded(rows: Sequence[Sequence[int]], left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids and mask, padded with 0 on one side."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(len(row))
        ids[place, at] = torch.tensor(row, dtype=torch.long)
        mask[place, at] = 1
    return ids, mask
