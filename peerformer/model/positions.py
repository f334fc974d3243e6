"""How a token knows its place: rotated queries and keys, or a vector added to the embedding.

Rotary: a query and a key are turned by an angle proportional to their positions, so that their
product depends on the distance alone. Coordinate i is paired with i + K / 2 ("halves"), as
Hugging Face does. A context longer than the one trained on is reached by turning more slowly:
"linear" slows every pair alike, "yarn" and "llama3" only the pairs that would not have completed
enough turns within the original context, and leave the fast ones, which tell neighbours apart.

Added: a learned vector per position, or sines and cosines of fixed frequencies.

Knows nothing about attention, or where positions come from.

Sources: Su et al., RoFormer, 2021, section 3.2; Chen et al., Position Interpolation, 2023
(linear); Peng et al., YaRN, 2023, sections 3.2 to 3.4; Grattafiori et al., The Llama 3 Herd of
Models, 2024 (llama3, as in its published code); Vaswani et al., 2017, section 3.5 (sinusoidal).

Shapes: B batch, T tokens, D width, K head dimension, P positions of a table.
"""

import math

import torch
from torch import Tensor, nn

from peerformer.config import ModelConfig

SINUSOIDAL_BASE = 10_000.0


def rotary_table(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with the sign of the half that they go to; each (P, K), float32."""
    frequencies, factor = rotary_frequencies(config)
    angles = torch.outer(torch.arange(config.max_positions, dtype=torch.float32), frequencies)
    sines, cosines = angles.sin() * factor, angles.cos() * factor
    return torch.cat((cosines, cosines), dim=-1), torch.cat((-sines, sines), dim=-1)


def rotary_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Radians a token of the K / 2 pairs, and the factor of their cosines and sines."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return SCALINGS[config.rope_scaling](1.0 / config.rope_theta**exponents, config)


def original_positions(config: ModelConfig) -> int:
    """The context that a scaling stretches."""
    stretched = max(1, round(config.max_positions / config.rope_factor))
    return config.rope_original_positions or stretched


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + K / 2) of the last dimension by its position's angle.

    Args:
        x: (B, heads, T, K).
        rotary: the table's rows of the T positions, each (T, K) or (B, 1, T, K).
    """
    cosines_TK, signed_sines_TK = (table.to(x.dtype) for table in rotary)
    return x * cosines_TK + x.roll(x.shape[-1] // 2, -1) * signed_sines_TK


def leave(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """`x` as it is, in a model without rotary positions."""
    return x


class Unmarked(nn.Module):
    """Nothing is added to the embedding: positions are rotary, or the model has none."""

    def forward(self, x_BTD: Tensor, positions: Tensor) -> Tensor:
        """The embedding as it is."""
        return x_BTD


class Learned(nn.Module):
    """A learned vector for each position is added to the embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.max_positions, config.hidden_size))

    def forward(self, x_BTD: Tensor, positions: Tensor) -> Tensor:
        """The embedding and the vectors of positions, (T,) or (B, T)."""
        return x_BTD + self.weight[positions].to(x_BTD.dtype)


class Sinusoidal(nn.Module):
    """Sines and cosines of the position, of D / 2 frequencies, are added to the embedding."""

    table_PD: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        exponents = torch.arange(0, config.hidden_size, 2) / config.hidden_size
        positions = torch.arange(config.max_positions, dtype=torch.float32)
        angles = torch.outer(positions, SINUSOIDAL_BASE**-exponents)
        pairs = torch.stack((angles.sin(), angles.cos()), dim=-1)  # sine, cosine, sine, …
        self.register_buffer("table_PD", pairs.flatten(1), persistent=False)

    def forward(self, x_BTD: Tensor, positions: Tensor) -> Tensor:
        """The embedding and the vectors of positions, (T,) or (B, T)."""
        return x_BTD + self.table_PD[positions].to(x_BTD.dtype)


def make_positions(config: ModelConfig) -> nn.Module:
    """What marks the embedding with positions."""
    if config.positions == "learned":
        return Learned(config)
    return Sinusoidal(config) if config.positions == "sinusoidal" else Unmarked()


def _plain(frequencies: Tensor, config: ModelConfig) -> tuple[Tensor, float]:
    return frequencies, 1.0


def _linear(frequencies: Tensor, config: ModelConfig) -> tuple[Tensor, float]:
    return frequencies / config.rope_factor, 1.0


def _yarn(frequencies: Tensor, config: ModelConfig) -> tuple[Tensor, float]:
    """A pair of many turns is kept, one of few is stretched, between them a ramp over pairs."""
    K, base, original = config.head_dim, config.rope_theta, original_positions(config)

    def pair_of(turns: float) -> float:
        return K * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_of(config.rope_beta_fast)), 0)
    high = min(math.ceil(pair_of(config.rope_beta_slow)), K - 1)
    width = high - low or 0.001  # a ramp without width is a step
    stretched = ((torch.arange(K // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    slowed = frequencies / config.rope_factor
    # Scores of a longer context are flatter; the factor, on queries and keys, sharpens them.
    factor = config.rope_attention_factor or 0.1 * math.log(config.rope_factor) + 1.0
    return slowed * stretched + frequencies * (1 - stretched), factor


def _llama3(frequencies: Tensor, config: ModelConfig) -> tuple[Tensor, float]:
    """As YaRN, but with a ramp over turns, and no factor."""
    low, high = config.rope_low_frequency_factor, config.rope_high_frequency_factor
    turns = original_positions(config) * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * kept + frequencies / config.rope_factor * (1 - kept), 1.0


SCALINGS = {"none": _plain, "linear": _linear, "yarn": _yarn, "llama3": _llama3}
