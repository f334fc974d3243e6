"""The engine: a model and prompts in, tokens out, one for each sequence at a time.

The prompts are computed at once and their keys and values kept (prefill); after that each step
computes one token of every sequence against the cache (decode). What a sequence becomes depends on
its prompt and its seed alone, not on what stands beside it. A sequence that has ended makes room in
the batch.

Where the context window of a sequence is full, the last half of it becomes the prompt of a fresh
window: it is computed anew at positions from 0 on, so that one token in each half window costs a
prefill, and every token sees at least half a window of text.

Knows nothing about text: it takes token ids and gives token ids. Whoever calls it may stop a
sequence between two steps.

Shapes: B sequences in the batch, V vocabulary.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peerformer.errors import ConfigError
from peerformer.generate.caching import CacheMaker
from peerformer.generate.logits import checked, last_logits, read_texts
from peerformer.generate.penalties import Said, penalise
from peerformer.generate.sampling import Sampling, sample
from peerformer.model.cache import Cache
from peerformer.model.transformer import Transformer

SEEDS = 1 << 63  # torch.Generator takes seeds below it


@dataclass(frozen=True)
class Decoding:
    """How prompts are continued.

    Args:
        sampling: how a token is chosen.
        tokens_max: the most tokens of one sequence.
        stop_ids: a sequence ends before one of these.
        alternatives: how many of the likeliest tokens are told beside each token, with log
            probabilities; None tells no log probabilities.
    """

    sampling: Sampling
    tokens_max: int
    stop_ids: Set[int] = frozenset()
    alternatives: int | None = None


@dataclass(frozen=True)
class Made:
    """One token of one sequence.

    Log probabilities are the model's own: at temperature 1, with nothing cut and no penalty.
    """

    sequence: int
    token: int
    log_probability: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass
class _Sequence:
    prompt: list[int]
    generator: torch.Generator
    context: list[int]  # what the cache holds and is about to hold
    made: list[int] = field(default_factory=list)
    ended_by: str | None = None


class Generation:
    """Several prompts that are being continued, a token each with every `step`.

    Args:
        model: in eval mode.
        prompts: of each sequence at least one token id; of one that is longer than the context
            window the last window is read.
        seeds: of each sequence; with the same seed and arguments it becomes the same.
        decoding: how.
        caches: which cache; None: a contiguous one.

    Raises:
        ConfigError: an empty prompt, an id outside the vocabulary, or a number out of range.
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        decoding: Decoding,
        caches: CacheMaker | None = None,
    ) -> None:
        assert prompts and len(prompts) == len(seeds), (len(prompts), len(seeds))
        _refuse_impossible(model, seeds, decoding)
        self._model, self._decoding, self._window = model, decoding, model.config.max_positions
        self._sequences = [
            _Sequence(tokens, torch.Generator().manual_seed(seed), tokens[-self._window :])
            for prompt, seed in zip(prompts, seeds, strict=True)
            if (tokens := checked(model, prompt))
        ]
        longest = max(len(sequence.prompt) for sequence in self._sequences)
        self._length_max = min(self._window, longest + decoding.tokens_max)
        self._caches = caches or CacheMaker(model)
        self._cache: Cache | None = None  # None: nothing is computed yet
        self._rows: list[int] = []  # the sequence of each row of the cache
        if decoding.tokens_max == 0:
            for sequence in self._sequences:
                sequence.ended_by = "length"

    @property
    def running(self) -> list[int]:
        """The sequences that have not ended, by their number."""
        return [i for i, sequence in enumerate(self._sequences) if sequence.ended_by is None]

    def ended_by(self, sequence: int) -> str | None:
        """`end of text`, `length`, the word given to `stop`, or None while it runs."""
        return self._sequences[sequence].ended_by

    def stop(self, sequence: int, because: str) -> None:
        """Make no more tokens of a sequence."""
        if self._sequences[sequence].ended_by is None:
            self._sequences[sequence].ended_by = because

    def step(self) -> list[Made]:
        """One token of each running sequence; those that end here before a token have none.

        Raises:
            CheckpointError: the model's output is not finite.
            ConfigError: a pool of pages is used up.
        """
        running = self.running
        if not running:
            return []
        rows = [self._sequences[i] for i in running]
        logits_BV = self._logits(running)
        said = [Said(row.prompt, row.made) for row in rows]
        penalised_BV = penalise(logits_BV, self._decoding.sampling, said)
        generators = [row.generator for row in rows]
        drawn = sample(penalised_BV, self._decoding.sampling, generators).tolist()
        logs_BV = None
        if self._decoding.alternatives is not None:
            logs_BV = logits_BV.log_softmax(dim=-1)
        made = []
        for row, (number, token) in enumerate(zip(running, drawn, strict=True)):
            if token in self._decoding.stop_ids:
                self.stop(number, "end of text")
                continue
            made.append(self._made(number, token, None if logs_BV is None else logs_BV[row]))
            sequence = rows[row]
            sequence.made.append(token)
            sequence.context.append(token)
            if len(sequence.made) == self._decoding.tokens_max:
                self.stop(number, "length")
        if not self.running:
            self.close()
        return made

    def close(self) -> None:
        """Give the cache back, pages and all; sequences that run are computed anew."""
        if self._cache is not None:
            self._cache.clear()
            self._cache = None

    def _made(self, number: int, token: int, logs_V: Tensor | None) -> Made:
        if logs_V is None:
            return Made(number, token)
        top = logs_V.topk(self._decoding.alternatives or 0)
        likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        return Made(number, token, logs_V[token].item(), likeliest)

    def _logits(self, running: list[int]) -> Tensor:
        """After the last token of each running sequence, (B, V)."""
        contexts = [self._sequences[i].context for i in running]
        full = any(len(context) > self._window for context in contexts)
        if self._cache is None or full or self._cache.room == 0:
            for context in contexts:
                if len(context) > self._window:
                    del context[: -(self._window // 2)]
            return self._read(running, contexts)
        if running != self._rows:
            self._cache.select([self._rows.index(i) for i in running])
            self._rows = running
        return last_logits(self._model, [context[-1:] for context in contexts], self._cache)

    def _read(self, running: list[int], contexts: list[list[int]]) -> Tensor:
        # A window that is read again begins amid the text, where nobody else's prompt does.
        sharing = not any(self._sequences[i].made for i in running)
        self.close()
        self._cache = self._caches.make(len(running), self._length_max, sharing=sharing)
        self._rows = running
        return read_texts(self._model, contexts, self._cache)


def generate(
    model: Transformer,
    prompt_tokens: Sequence[int],
    *,
    sampling: Sampling,
    tokens_max: int,
    stop_ids: Set[int],
    seed: int,
) -> Iterator[int]:
    """Continue one prompt, yielding each token as it is made.

    Args:
        model: in eval mode.
        prompt_tokens: at least one token id; of more than the context window the last are read.
        sampling: how a token is chosen.
        tokens_max: the most tokens to yield.
        stop_ids: ends before yielding one of these.
        seed: the same seed and arguments yield the same tokens on one machine.

    Raises:
        ConfigError: an empty prompt, an id outside the vocabulary, or a seed out of range.
        CheckpointError: the model's output is not finite.
    """
    decoding = Decoding(sampling, tokens_max, stop_ids)
    return _tokens(Generation(model, [prompt_tokens], [seed], decoding))


def _tokens(generation: Generation) -> Iterator[int]:
    while generation.running:
        for made in generation.step():
            yield made.token


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
    logits_1V = last_logits(model, [checked(model, tokens)[-config.max_positions :]], None)
    values, ids = logits_1V[0].softmax(dim=-1).topk(top)
    return list(zip(ids.tolist(), values.tolist(), strict=True))


def _refuse_impossible(model: Transformer, seeds: Sequence[int], decoding: Decoding) -> None:
    for seed in seeds:
        if not 0 <= seed < SEEDS:
            raise ConfigError(f"the seed is {seed}, but must be from 0 to {SEEDS - 1}")
    if decoding.tokens_max < 0:
        raise ConfigError(f"{decoding.tokens_max} tokens cannot be made", hint="--tokens 200")
    size, told = model.config.vocab_size, decoding.alternatives
    if told is not None and not 0 <= told <= size:
        raise ConfigError(
            f"{told} alternatives were asked for, and the vocabulary has {size} tokens",
            hint="--logprobs 5",
        )
