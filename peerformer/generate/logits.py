"""One forward pass at a time: the logits after the last token of each sequence.

The engine and beam search both come here: prompts of unequal length are set flush right, what
the cache already has of them is left out, and a model that has diverged is named.

Knows nothing about how tokens are chosen.

Shapes: B sequences, T tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from peerformer.errors import CheckpointError, ConfigError
from peerformer.model.cache import Cache
from peerformer.model.transformer import Transformer

PADDING = 0  # any token: nobody sees it


def checked(model: Transformer, tokens: Sequence[int]) -> list[int]:
    """The prompt as a list.

    Raises:
        ConfigError: it is empty, or has an id outside the vocabulary.
    """
    if not tokens:
        raise ConfigError("there is nothing to continue: the prompt has no tokens")
    size = model.config.vocab_size
    if wrong := [token for token in tokens if not 0 <= token < size]:
        raise ConfigError(
            f"the prompt has token {wrong[0]}, and the model's vocabulary {size}",
            why="the tokenizer is not the one that the model was trained with",
        )
    return list(tokens)


def read_texts(model: Transformer, texts: Sequence[Sequence[int]], cache: Cache) -> Tensor:
    """Begin anew with whole texts; the logits after each, (B, V), float32 on the CPU."""
    held = cache.begin(texts)
    rest = [list(text[known:]) for text, known in zip(texts, held, strict=True)]
    longest = max(len(tokens) for tokens in rest)
    padding = [longest - len(tokens) for tokens in rest]
    cache.pad(padding)
    rows = [[PADDING] * pad + tokens for pad, tokens in zip(padding, rest, strict=True)]
    return last_logits(model, rows, cache)


# Around one forward pass and not around the loop: a mode entered in a generator would stay
# switched on in the caller between two tokens.
@torch.inference_mode()
def last_logits(model: Transformer, rows: Sequence[Sequence[int]], cache: Cache | None) -> Tensor:
    """The logits after the last token of each row, (B, V), float32 on the CPU.

    Raises:
        CheckpointError: they are not finite.
    """
    tokens_BT = torch.tensor(rows, device=model.embed_tokens.weight.device)
    logits_BV = model(tokens_BT, cache)[:, -1].float().cpu()
    if not logits_BV.isfinite().all():
        raise CheckpointError(
            "the model's output is not finite", hint="use an earlier checkpoint of the run"
        )
    return logits_BV
