"""The keys and values of what a model has read, written in place.

Dimensions: P prompts, B completions, H key-value heads, S positions, D width of a head.
"""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

LEAST = 4
"""Positions that a new room has free at least; a long one has a quarter more. Rows far apart are slower to read."""


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` with room for what comes; the library's copies all positions for each new one.

    `keys` and `values` [B, H, S, D] are views of the beginnings of two rooms, once there are some.
    """

    _rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds positions; gives all of them."""
        before = self.get_seq_length()
        if before == 0:
            self.lazy_initialization(key_states, value_states)
            self._rooms, self.keys, self.values = None, key_states, value_states
        else:
            after = before + key_states.shape[-2]
            if self._rooms is None or after > self._rooms[0].shape[-2]:
                self._rooms = self._with_room(after)
            keys, values = self._rooms
            keys[..., before:after, :] = key_states
            values[..., before:after, :] = value_states
            self.keys, self.values = keys[..., :after, :], values[..., :after, :]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row, on the way into its room."""
        if (length := self.get_seq_length()) > 0:
            self._rooms = keys, values = self._with_room(length + 1, repeats)
            self.keys, self.values = keys[..., :length, :], values[..., :length, :]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows; they move into a room when there is something to add."""
        super().batch_select_indices(indices)
        self._rooms = None

    def _with_room(self, positions: int, repeats: int = 1) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return _with_room(self.keys, positions, repeats), _with_room(self.values, positions, repeats)


def growing_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache; layers of other kinds (sliding window, linear attention) are the library's."""
    cache = DynamicCache(config=model.config)
    new_layer: Any = GrowingLayer
    cache.layers = [new_layer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _with_room(held_PHSD: Tensor, positions: int, repeats: int) -> Tensor:
    P, H, S, D = held_PHSD.shape
    room = held_PHSD.new_empty(P * repeats, H, positions + max(LEAST, positions // 4), D)
    room.view(P, repeats, H, -1, D)[..., :S, :] = held_PHSD[:, None]
    return room
