"""The model, read top to bottom: embed, blocks, norm, head.

A decoder-only transformer in Qwen3's layout and with Hugging Face's parameter names, so that a
checkpoint needs no conversion: each block adds attention and a SwiGLU feed-forward to the
residual stream, both fed by an RMSNorm; the head is the embedding again, or a matrix of its own.

Knows nothing about optimizers, text or files.

Sources: Yang et al., Qwen3 Technical Report, 2025, section 2; Press and Wolf, Using the Output
Embedding, 2017 (tied head); Chowdhery et al., PaLM, 2022, appendix B (FLOPs of a token).

Shapes: B batch, T new tokens, D width, V vocabulary, K head dimension.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peerformer.config import ModelConfig
from peerformer.model.attention import Attention, RMSNorm, rotary_table
from peerformer.model.cache import KeyValueCache
from peerformer.model.feed_forward import FeedForward

IGNORED_TARGET = -100  # PyTorch's and Hugging Face's mark of a position without a target
DEVIATION = 0.02  # GPT-2's; with a tied head it keeps the first loss near log V
# Of the two matrices that write to the residual stream. Blocks that start near the identity
# learn sooner: of deviations tried, this was among the best with Muon and with AdamW alike.
WRITING_DEVIATION = 0.002


class Transformer(nn.Module):
    """A language model: tokens in, logits of each next token out.

    Its weights are those of `initialise(model, 0)` until they are set.

    Args:
        config: the shape; `vocab_size` must be known (more than 0).
    """

    cosines_PK: Tensor
    signed_sines_PK: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vocab_size > 0, "the vocabulary's size comes from the tokenizer"
        self.config = config
        V, D = config.vocab_size, config.hidden_size
        self.embed_tokens = nn.utils.skip_init(nn.Embedding, V, D)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(D, config.rms_norm_epsilon)
        if not config.tie_embeddings:
            self.lm_head = nn.utils.skip_init(nn.Linear, D, V, bias=False)
        cosines_PK, signed_sines_PK = rotary_table(config)
        self.register_buffer("cosines_PK", cosines_PK, persistent=False)
        self.register_buffer("signed_sines_PK", signed_sines_PK, persistent=False)
        initialise(self, seed=0)

    def forward(self, tokens_BT: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each token, in the type of computation.

        Args:
            tokens_BT: token ids; with a cache, those after the tokens it holds.
            cache: extended by these tokens; None computes without one.
        """
        start, T = cache.length if cache else 0, tokens_BT.shape[1]
        assert start + T <= self.config.max_positions, f"{start + T} tokens"
        rotary = self.cosines_PK[start : start + T], self.signed_sines_PK[start : start + T]
        x_BTD = self.embed_tokens(tokens_BT)
        for block in self.layers:
            x_BTD = block(x_BTD, rotary, cache)
        if cache is not None:
            cache.advance(T)
        head = self.embed_tokens if self.config.tie_embeddings else self.lm_head
        return F.linear(self.norm(x_BTD), head.weight)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross entropy in nats, a float32 scalar; targets of -100 are ignored.

        Where every target is ignored, it is 0.
        """
        logits_BTV = self(tokens_BT)
        total = F.cross_entropy(
            logits_BTV.flatten(0, 1).float(),
            targets_BT.flatten(),
            ignore_index=IGNORED_TARGET,
            reduction="sum",
        )
        return total / (targets_BT != IGNORED_TARGET).sum().clamp(min=1)


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_epsilon)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_epsilon)
        self.mlp = FeedForward(config)

    def forward(
        self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], cache: KeyValueCache | None
    ) -> Tensor:
        """The residual stream after the block, (B, T, D)."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotary, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


def initialise(model: nn.Module, seed: int) -> None:
    """Set every weight from a seed, the same bits on every machine.

    Matrices are uniform around 0, with `DEVIATION`, or `WRITING_DEVIATION` where they write to
    the residual stream; norms are 1. Uniform, because a scaled random integer is exact wherever
    IEEE arithmetic is, while a normal deviate goes through the logarithm of the local library.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                weight.fill_(1.0)
                continue
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            bound = math.sqrt(3) * (WRITING_DEVIATION if writes else DEVIATION)
            uniform = torch.rand(weight.shape, generator=generator).mul_(2).sub_(1)
            weight.copy_(uniform.mul_(bound))


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the model's order, without building it."""
    D, F_, K = config.hidden_size, config.intermediate_size, config.head_dim
    H, G, V = config.num_heads, config.num_kv_heads, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (V, D)}
    for layer in range(config.num_layers):
        block = {
            "input_layernorm": (D,),
            "self_attn.q_proj": (H * K, D),
            "self_attn.k_proj": (G * K, D),
            "self_attn.v_proj": (G * K, D),
            "self_attn.o_proj": (D, H * K),
            "self_attn.q_norm": (K,),
            "self_attn.k_norm": (K,),
            "post_attention_layernorm": (D,),
            "mlp.gate_proj": (F_, D),
            "mlp.up_proj": (F_, D),
            "mlp.down_proj": (D, F_),
        }
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    shapes["norm.weight"] = (D,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (V, D)
    return shapes


def count_parameters(config: ModelConfig) -> int:
    """Number of trainable values; a tied head counts once."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Floating-point operations of forward and backward, a token, averaged over a sequence.

    Matrix products only, two operations a multiply-add, the backward pass twice the forward one.
    Of attention what the causal mask leaves: a token sees (T + 1) / 2 on average.
    """
    matrices = sum(
        math.prod(shape)
        for name, shape in parameter_shapes(config).items()
        if len(shape) == 2 and name != "embed_tokens.weight"
    )
    head = config.vocab_size * config.hidden_size if config.tie_embeddings else 0
    seen = (sequence_length + 1) / 2
    attention = 2 * config.num_layers * config.num_heads * config.head_dim * seen
    return 3 * 2 * (matrices + head + attention)
