"""The model, read top to bottom: embed, blocks, norm, head.

A decoder-only transformer. Each block adds attention and a feed-forward to the residual stream;
the head is the embedding again, or a matrix of its own. What the parts are is chosen once, when
the model is made, from `ModelConfig`; by default they are Qwen3's, and the parameters bear
Hugging Face's names, so that such a checkpoint needs no conversion.

Knows nothing about optimizers, text or files.

Sources: Yang et al., Qwen3 Technical Report, 2025, section 2; Press and Wolf, Using the Output
Embedding, 2017 (tied head); Xiong et al., On Layer Normalization in the Transformer Architecture,
2020 (pre-norm and post-norm); Chowdhery et al., PaLM, 2022, appendix B (FLOPs of a token).

Shapes: B batch, T new tokens, D width, V vocabulary, K head dimension, P positions.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peerformer.config import ModelConfig
from peerformer.kernels.visibility import Visibility
from peerformer.model.attention import Attention, pattern_of
from peerformer.model.cache import Cache
from peerformer.model.experts import (
    ExpertLoad,
    active_size,
    auxiliary_losses,
    expert_load,
    finish_step,
    make_mlp,
)
from peerformer.model.linear import embedding, linear
from peerformer.model.norm import make_norm
from peerformer.model.positions import make_positions, rotary_table
from peerformer.model.recompute import run

IGNORED_TARGET = -100  # PyTorch's and Hugging Face's mark of a position without a target
DEVIATION = 0.02  # GPT-2's; with a tied head it keeps the first loss near log V
# Of the two matrices that write to the residual stream. Blocks that start near the identity
# learn sooner: of deviations tried, this was among the best with Muon and with AdamW alike.
WRITING_DEVIATION = 0.002
KEYS_AT_ONCE = 1 << 24  # pairs of a query and a key that are counted in one go, to bound memory


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
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = make_positions(config)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        # After a post-norm block the residual stream is normed already.
        self.norm = make_norm(config) if config.norm_placement == "pre" else nn.Identity()
        if not config.tie_embeddings:
            self.lm_head = linear(config.hidden_size, config.vocab_size, bias=False)
        cosines_PK, signed_sines_PK = rotary_table(config)
        self.register_buffer("cosines_PK", cosines_PK, persistent=False)
        self.register_buffer("signed_sines_PK", signed_sines_PK, persistent=False)
        initialise(self, seed=0)

    def forward(
        self,
        tokens_BT: Tensor,
        cache: Cache | None = None,
        *,
        documents_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token after each token, in the type of computation.

        Args:
            tokens_BT: token ids; with a cache, those after the tokens it holds.
            cache: extended by these tokens; None computes without one.
            documents_BT: the document of each token, which sees no other; -1 is padding. Not
                with a cache.
            positions_BT: the position of each token; None: those that follow the cache's.
        """
        assert cache is None or documents_BT is None, "documents are packed for training only"
        T = tokens_BT.shape[1]
        start = cache.length if cache is not None else 0
        positions_T = torch.arange(start, start + T, device=tokens_BT.device)
        if cache is not None and positions_BT is None:
            positions_BT = cache.positions_BT(T)
        assert positions_BT is not None or start + T <= self.config.max_positions, (start, T)
        visibility = Visibility(positions_T, positions_BT, documents_BT)
        # Padding stands somewhere too; nobody sees where.
        places = positions_T if positions_BT is None else positions_BT.clamp(min=0)
        rotary = self._rotary(start, T, positions_BT)
        x_BTD = self.dropout(self.embed_positions(self.embed_tokens(tokens_BT), places))
        for block in self.layers:
            x_BTD = block(x_BTD, rotary, visibility, cache)
        if cache is not None:
            cache.advance(T)
        head = self.embed_tokens if self.config.tie_embeddings else self.lm_head
        return F.linear(self.norm(x_BTD), head.weight)

    def loss(
        self, tokens_BT: Tensor, targets_BT: Tensor, *, documents_BT: Tensor | None = None
    ) -> Tensor:
        """Mean cross entropy in nats, a float32 scalar; targets of -100 are ignored.

        Where every target is ignored, it is 0. In training it includes what routers add.
        """
        with auxiliary_losses(self) as terms:
            logits_BTV = self(tokens_BT, documents_BT=documents_BT)
        total = F.cross_entropy(
            logits_BTV.flatten(0, 1).float(),
            targets_BT.flatten(),
            ignore_index=IGNORED_TARGET,
            reduction="sum",
        )
        return sum(terms, total / (targets_BT != IGNORED_TARGET).sum().clamp(min=1))

    def expert_load(self) -> dict[int, ExpertLoad]:
        """By sparse layer, how its tokens were spread in the last training step."""
        return expert_load(self)

    def after_step(self, add_up: Callable[[Tensor], None] = lambda _: None) -> None:
        """Say that an optimizer step is done: routers count anew, and move their bias.

        `add_up` puts the sums over all ranks that shared the step in the place of their loads.
        """
        finish_step(self, add_up)

    def _rotary(self, start: int, T: int, positions_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows of the rotary table, (T, K), or (B, 1, T, K) where positions are given."""
        if positions_BT is None:
            return self.cosines_PK[start : start + T], self.signed_sines_PK[start : start + T]
        rows = positions_BT.clamp(min=0)[:, None]  # padding turns by some angle; nobody sees it
        return self.cosines_PK[rows], self.signed_sines_PK[rows]


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = make_mlp(config, layer)
        self.dropout = nn.Dropout(config.residual_dropout)
        self.add = PLACEMENTS[config.norm_placement]
        self.recomputed = "none"  # the part that the backward pass computes again

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        visibility: Visibility,
        cache: Cache | None,
    ) -> Tensor:
        """The residual stream after the block, (B, T, D)."""
        again = self.recomputed == "blocks"
        return run(self._both, x_BTD, rotary, visibility, cache, again=again)

    def _both(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        visibility: Visibility,
        cache: Cache | None,
    ) -> Tensor:
        def attend(y_BTD: Tensor) -> Tensor:
            return self.dropout(self.self_attn(y_BTD, rotary, visibility, cache))

        def think(y_BTD: Tensor) -> Tensor:
            return self.dropout(self.mlp(y_BTD))

        first, second = self.input_layernorm, self.post_attention_layernorm
        again = self.recomputed
        x_BTD = run(self.add, x_BTD, attend, first, again=again == "attention")
        return run(self.add, x_BTD, think, second, again=again == "feed_forward")


Layer = Callable[[Tensor], Tensor]


def add_pre_norm(x_BTD: Tensor, layer: Layer, norm: nn.Module) -> Tensor:
    """The residual stream and what a layer makes of its norm: the stream itself is untouched."""
    return x_BTD + layer(norm(x_BTD))


def add_post_norm(x_BTD: Tensor, layer: Layer, norm: nn.Module) -> Tensor:
    """The norm of the residual stream and what a layer makes of it, as in 2017."""
    return norm(x_BTD + layer(x_BTD))


PLACEMENTS = {"pre": add_pre_norm, "post": add_post_norm}


def initialise(model: nn.Module, seed: int) -> None:
    """Set every weight from a seed, the same bits on every machine.

    Matrices are uniform around 0, with `DEVIATION`, or `WRITING_DEVIATION` where they write to
    the residual stream; norms are 1, biases and sinks 0. Uniform, because a scaled random integer
    is exact wherever IEEE arithmetic is, while a normal deviate goes through the logarithm of the
    local library.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.is_meta:
                continue  # of a model that was made for its shapes alone
            if weight.ndim < 2:
                weight.fill_(0.0 if name.endswith(("bias", ".sinks")) else 1.0)
                continue
            writes = name.removesuffix(".weight").endswith(("o_proj", "down_proj"))
            bound = math.sqrt(3) * (WRITING_DEVIATION if writes else DEVIATION)
            uniform = torch.rand(weight.shape, generator=generator).mul_(2).sub_(1)
            weight.copy_(uniform.mul_(bound))


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the model's order, without memory for their values."""
    with torch.device("meta"):
        model = Transformer(config)
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def count_parameters(config: ModelConfig) -> int:
    """Number of trainable values; a tied head counts once."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def count_active_parameters(config: ModelConfig) -> int:
    """Number of values that one token meets: of the experts only those that it is sent to."""
    shapes = parameter_shapes(config).items()
    return sum(active_size(name, shape, config) for name, shape in shapes)


def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Floating-point operations of forward and backward, a token, averaged over a sequence.

    Matrix products only, two operations a multiply-add, the backward pass twice the forward one.
    Of attention what each layer's mask leaves, such as (T + 1) / 2 keys on average where a token
    sees all before it. Of experts those that a token is sent to.
    """
    matrices = sum(
        active_size(name, shape, config)
        for name, shape in parameter_shapes(config).items()
        if len(shape) >= 2 and not name.startswith("embed_")
    )
    head = config.vocab_size * config.hidden_size if config.tie_embeddings else 0
    seen = sum(keys_seen(config, layer, sequence_length) for layer in range(config.num_layers))
    attention = 2 * config.num_heads * config.head_dim * seen
    return 3 * 2 * (matrices + head + attention)


def keys_seen(config: ModelConfig, layer: int, sequence_length: int) -> float:
    """Keys that a query of a layer sees, averaged over a sequence."""
    pattern = pattern_of(config, layer)
    if pattern.is_full:
        return (sequence_length + 1) / 2
    positions_T = torch.arange(sequence_length)
    seen = 0
    for queries in positions_T.split(KEYS_AT_ONCE // sequence_length + 1):
        seen += int(pattern.allows(queries[:, None], positions_T).sum())
    return seen / sequence_length
