"""Vectors as a cache keeps them: as they are, or rounded to eight bits with a scale each.

The scale belongs to one vector, that is to one token and head, so that a token with large keys
costs the others nothing. It is the largest magnitude over 127, and values are rounded to the
nearest of 255 levels: an error of at most 1/254 of the vector's largest value.

Knows nothing about what the vectors are of.
"""

from typing import Any

import torch
from torch import Tensor

LEVELS = 127  # of either sign in eight bits


class StoredVectors:
    """A block of vectors, written and read by index as a tensor is.

    Args:
        shape: of the block; the last dimension is the vector's.
        dtype: of the vectors that come in and go out.
        device: where they are kept.
        rounded: whether they are kept in eight bits.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        rounded: bool = False,
    ) -> None:
        self._dtype = dtype
        self._values = torch.zeros(shape, dtype=torch.int8 if rounded else dtype, device=device)
        scales = torch.zeros((*shape[:-1], 1), dtype=torch.float32, device=device)
        self._scales = scales if rounded else None

    def __setitem__(self, index: Any, vectors: Tensor) -> None:
        if self._scales is None:
            self._values[index] = vectors
            return
        wide = vectors.float()
        scales = wide.abs().amax(dim=-1, keepdim=True) / LEVELS
        # A vector of zeros has scale 0, and stays one of zeros.
        levels = wide / scales.clamp(min=torch.finfo(torch.float32).tiny)
        self._values[index] = levels.round().clamp(-LEVELS, LEVELS).to(torch.int8)
        self._scales[index] = scales

    def __getitem__(self, index: Any) -> Tensor:
        if self._scales is None:
            return self._values[index]
        return (self._values[index].float() * self._scales[index]).to(self._dtype)

    @property
    def size_bytes(self) -> int:
        """Memory that the block takes."""
        blocks = (self._values,) if self._scales is None else (self._values, self._scales)
        return sum(block.nbytes for block in blocks)

    def copy(self, origin: int, target: int) -> None:
        """Overwrite one entry of the first dimension with another."""
        self._values[target] = self._values[origin]
        if self._scales is not None:
            self._scales[target] = self._scales[origin]

    def select(self, rows: Tensor) -> None:
        """Keep these entries of the first dimension, in this order."""
        self._values = self._values[rows]
        if self._scales is not None:
            self._scales = self._scales[rows]
