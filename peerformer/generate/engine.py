"""The engine: a model and a prompt in, tokens out, one at a time.

The prompt is computed at once and its keys and values kept (prefill); after that each step
computes one token against the cache (decode). Where the context window is full, the last half of
it becomes the prompt of a fresh window: it is computed anew at positions from 0 on, so that one
token in each half window costs a prefill, and every token sees at least half a window of text.

Knows nothing about text: it takes token ids and yields token ids.

Shapes: B batch (1), T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence, Set

import torch
from torch import Tensor

from peerformer.errors import CheckpointError, ConfigError
from peerformer.generate.sampling import Sampling, sample
from peerformer.model.cache import KeyValueCache
from peerformer.model.transformer import Transformer

SEEDS = 1 << 63  # torch.Generator takes seeds below it


def generate(
    model: Transformer,
    prompt_tokens: Sequence[int],
    *,
    sampling: Sampling,
    tokens_max: int,
    stop_ids: Set[int],
    seed: int,
) -> Iterator[int]:
    """Continue a prompt, yielding each token as it is made.

    Of a prompt longer than the context window the last window is read.

    Args:
        model: in eval mode.
        prompt_tokens: at least one token id.
        sampling: how a token is chosen.
        tokens_max: the most tokens to yield.
        stop_ids: ends before yielding one of these.
        seed: the same seed and arguments yield the same tokens on one machine.

    Raises:
        ConfigError: an empty prompt, an id outside the vocabulary, or a seed out of range.
        CheckpointError: the model's output is not finite.
    """
    if not 0 <= seed < SEEDS:
        raise ConfigError(f"the seed is {seed}, but must be from 0 to {SEEDS - 1}")
    if tokens_max < 0:
        raise ConfigError(f"{tokens_max} tokens cannot be made", hint="--tokens 200")
    return _decode(model, _checked(model, prompt_tokens), sampling, tokens_max, stop_ids, seed)


def next_token_probabilities(
    model: Transformer, tokens: Sequence[int], top: int
) -> list[tuple[int, float]]:
    """The most likely next tokens and their probabilities, the likeliest first.

    Args:
        model: in eval mode.
        tokens: at least one token id; of more than the context window the last are read.
        top: how many; at most the vocabulary.

    Raises:
        ConfigError: no tokens, an id outside the vocabulary, or `top` out of range.
        CheckpointError: the model's output is not finite.
    """
    config = model.config
    if not 0 < top <= config.vocab_size:
        raise ConfigError(f"{top} tokens were asked for, of {config.vocab_size}", hint="--top 5")
    logits_1V = _last_logits(model, _checked(model, tokens)[-config.max_positions :], None)
    values, ids = logits_1V[0].softmax(dim=-1).topk(top)
    return list(zip(ids.tolist(), values.tolist(), strict=True))


def _decode(
    model: Transformer,
    tokens: list[int],
    sampling: Sampling,
    tokens_max: int,
    stop_ids: Set[int],
    seed: int,
) -> Iterator[int]:
    weight, window = model.embed_tokens.weight, model.config.max_positions
    length_max = min(window, len(tokens) + tokens_max)
    cache = KeyValueCache(model.config, 1, length_max, weight.dtype, weight.device)
    generator = torch.Generator().manual_seed(seed)
    unread = tokens[-window:]
    context = list(unread)  # what the cache holds and is about to hold
    for _ in range(tokens_max):
        if len(context) > window:
            context = context[-(window // 2) :]
            unread = context
            cache.clear()
        logits_1V = _last_logits(model, unread, cache)
        token = int(
            sample(
                logits_1V,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                generator=generator,
            )
        )
        if token in stop_ids:
            return
        yield token
        context.append(token)
        unread = [token]


# Around one forward pass and not around the loop: a mode entered in a generator would stay
# switched on in the caller between two tokens.
@torch.inference_mode()
def _last_logits(model: Transformer, tokens: list[int], cache: KeyValueCache | None) -> Tensor:
    """Logits after the last token, (1, V), float32 on the CPU, where they are drawn from."""
    tokens_BT = torch.tensor([tokens], device=model.embed_tokens.weight.device)
    logits_1V = model(tokens_BT, cache)[:, -1].float().cpu()
    if not logits_1V.isfinite().all():
        raise CheckpointError(
            "the model's output is not finite", hint="use an earlier checkpoint of the run"
        )
    return logits_1V


def _checked(model: Transformer, tokens: Sequence[int]) -> list[int]:
    if not tokens:
        raise ConfigError("there is nothing to continue: the prompt has no tokens")
    size = model.config.vocab_size
    if wrong := [token for token in tokens if not 0 <= token < size]:
        raise ConfigError(
            f"the prompt has token {wrong[0]}, and the model's vocabulary {size}",
            why="the tokenizer is not the one that the model was trained with",
        )
    return list(tokens)
