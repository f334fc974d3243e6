"""A model with other tokens: rows of its embedding and of its head, picked out and numbered anew.

What is computed for a kept token is what was computed before; the others are as if they had never
been. Knows nothing about what a token stands for.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from peerformer.errors import CheckpointError
from peerformer.model.convert import from_hf_state, to_hf_state
from peerformer.model.transformer import Transformer

ROWS = ("model.embed_tokens.weight", "lm_head.weight")  # by Hugging Face's names


def with_tokens(model: Transformer, kept: Sequence[int]) -> Transformer:
    """Return a model whose token `new` is the token `kept[new]` of this one, in eval mode.

    Raises:
        CheckpointError: the model has no such token.
    """
    if wrong := [token for token in kept if not 0 <= token < model.config.vocab_size]:
        raise CheckpointError(
            f"the model has {model.config.vocab_size} tokens, and token {wrong[0]} is none of them",
            why="the tokenizer is not the one that the model was trained with",
        )
    state = to_hf_state(model)
    rows = torch.tensor(list(kept))
    state |= {name: state[name][rows] for name in ROWS if name in state}
    return from_hf_state(state, replace(model.config, vocab_size=len(kept)))
