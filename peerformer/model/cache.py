"""The key-value cache: what attention has already computed for the tokens behind it.

One contiguous block, allocated once for the longest sequence, so that decoding never copies
what it has. The model writes the new tokens of every layer behind the first `length` positions,
attends over all of them, and moves `length` once, after the last layer. All sequences of a batch
have the same length.

Knows nothing about tokens or sampling.

Shapes: L layers, B batch, G key-value heads, S longest sequence, K head dimension, T new tokens.
"""

import torch
from torch import Tensor

from peerformer.config import ModelConfig


class KeyValueCache:
    """Keys and values of the `length` tokens seen so far.

    Args:
        config: the model's shape.
        batch_size: sequences B.
        length_max: the most tokens that it holds, at most the model's positions.
        dtype: of the keys and values; the type in which the model computes.
        device: where they are kept.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        length_max: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        assert 0 < length_max <= config.max_positions, (length_max, config.max_positions)
        shape = (config.num_layers, batch_size, config.num_kv_heads, length_max, config.head_dim)
        self._keys_LBGSK = torch.zeros(shape, dtype=dtype, device=device)
        self._values_LBGSK = torch.zeros(shape, dtype=dtype, device=device)
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens held; the position of the next one."""
        return self._length

    @property
    def length_max(self) -> int:
        """The most tokens it holds."""
        return self._keys_LBGSK.shape[3]

    def extend(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values of T new tokens; `length` stays until `advance`.

        Returns:
            The layer's keys and values of all tokens so far, each (B, G, length + T, K), as views.
        """
        end = self._length + k_BGTK.shape[2]
        assert end <= self.length_max, f"{end} tokens in a cache of {self.length_max}"
        keys_BGSK, values_BGSK = self._keys_LBGSK[layer], self._values_LBGSK[layer]
        keys_BGSK[:, :, self._length : end] = k_BGTK
        values_BGSK[:, :, self._length : end] = v_BGTK
        return keys_BGSK[:, :, :end], values_BGSK[:, :, :end]

    def advance(self, tokens: int) -> None:
        """Count tokens that every layer has written."""
        assert 0 <= tokens <= self.length_max - self._length
        self._length += tokens

    def clear(self) -> None:
        """Forget everything; the memory is kept."""
        self._length = 0
