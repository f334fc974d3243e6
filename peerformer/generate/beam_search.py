"""Beam search: the n most probable continuations that a search of a bounded width finds.

Each step extends every running beam by every token and keeps the n most probable running beams.
A beam that ends among the n best of a step is scored, its summed log probability over its length
(the end token counted) to the power of the length penalty, and the n best ended ones are kept. The
search is over when nothing can improve, by one of three rules that `transformers` has, too:

- `EarlyStopping.YES`: as soon as there are n ended beams;
- `EarlyStopping.NO`: when the best running beam, ended now, would not be better than the worst of
  n ended ones; a heuristic, since its score may still rise where lengths are rewarded;
- `EarlyStopping.NEVER`: when it could not be better at any length.

Where tokens run out, running beams are scored as they stand. Penalties are applied to log
probabilities, which are not normalised again. The same weights give the same beams as in
`transformers`; tests compare both.

Knows nothing about text.

Sources: Wu et al., Google's Neural Machine Translation System, 2016, section 7 (length
normalisation); the documentation of `transformers.GenerationConfig` (early stopping).

Shapes: B beams n, V vocabulary.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from peerformer.errors import ConfigError
from peerformer.generate.caching import CacheMaker
from peerformer.generate.logits import checked, last_logits, read_texts
from peerformer.generate.penalties import Said, penalise
from peerformer.generate.sampling import GREEDY, Sampling
from peerformer.model.transformer import Transformer

BEAMS_MAX = 256  # each is a row of the batch


class EarlyStopping(Enum):
    """When the search is over."""

    YES = "yes"
    NO = "no"
    NEVER = "never"


@dataclass(frozen=True)
class BeamSearch:
    """How wide the search is, and what it prefers.

    Args:
        beams: n, the running beams.
        best: how many of the ended ones are returned.
        length_penalty: the power of the length that divides a beam's log probability: above 0
            prefers longer texts, below 0 shorter ones.
        early_stopping: when the search is over.

    Raises:
        ConfigError: a number out of range.
    """

    beams: int
    best: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = EarlyStopping.NO

    def __post_init__(self) -> None:
        if not 2 <= self.beams <= BEAMS_MAX:
            raise ConfigError(
                f"--beams is {self.beams}, but must be from 2 to {BEAMS_MAX}",
                hint="--temperature 0 follows the likeliest token alone",
            )
        if not 1 <= self.best <= self.beams:
            raise ConfigError(
                f"--n-best is {self.best}, but must be from 1 to the {self.beams} beams",
                hint=f"--beams {max(self.best, self.beams)} --n-best {max(self.best, 1)}",
            )
        if not -10 <= self.length_penalty <= 10:  # beyond it a float32 score overflows
            raise ConfigError(
                f"--length-penalty is {self.length_penalty:g}, but must be from -10 to 10"
            )


@dataclass(frozen=True)
class Hypothesis:
    """A continuation that was found, without its end token."""

    tokens: tuple[int, ...]
    score: float
    ended_by: str  # `end of text` or `length`


@dataclass(frozen=True)
class _Candidate:
    """A running beam with one more token."""

    beam: int
    tokens: tuple[int, ...]  # all that was made, an end token included
    log_probability: float


@torch.inference_mode()
def beam_search(
    model: Transformer,
    prompt_tokens: Sequence[int],
    search: BeamSearch,
    *,
    tokens_max: int,
    stop_ids: Set[int],
    penalties: Sampling = GREEDY,
    caches: CacheMaker | None = None,
) -> list[Hypothesis]:
    """The best continuations of a prompt, the best first.

    Args:
        model: in eval mode.
        prompt_tokens: at least one token id; with the new tokens they fit the context window.
        search: how.
        tokens_max: the most tokens of a continuation, at least 1.
        stop_ids: a beam ends with one of these.
        penalties: its penalties are applied; its temperature must be 0.
        caches: which cache; None: a contiguous one.

    Raises:
        ConfigError: a prompt that cannot be continued, or not by so many tokens.
        CheckpointError: the model's output is not finite.
    """
    assert penalties.temperature == 0, "beam search draws nothing"
    prompt = checked(model, prompt_tokens)
    _refuse_too_long(model, len(prompt), tokens_max)
    n = search.beams
    cache = (caches or CacheMaker(model, batch_size=n)).make(1, len(prompt) + tokens_max)
    logits_BV = read_texts(model, [prompt], cache)
    running = [_Candidate(0, (), 0.0)]
    finished: list[Hypothesis] = []
    for length in range(1, tokens_max + 1):
        candidates = _extend(logits_BV, running, prompt, penalties, n * (1 + max(1, len(stop_ids))))
        last = length == tokens_max
        ended = [c for c in candidates[:n] if last or c.tokens[-1] in stop_ids]
        finished += [_finish(candidate, search, stop_ids) for candidate in ended]
        finished = sorted(finished, key=lambda one: -one.score)[:n]
        running = [c for c in candidates if c.tokens[-1] not in stop_ids][:n]
        if last or not running or not _may_improve(finished, running, search, length, tokens_max):
            break
        cache.select([candidate.beam for candidate in running])
        logits_BV = last_logits(model, [[c.tokens[-1]] for c in running], cache)
    cache.clear()
    return finished[: search.best]


def _extend(
    logits_BV: Tensor,
    running: list[_Candidate],
    prompt: list[int],
    penalties: Sampling,
    count: int,
) -> list[_Candidate]:
    """The most probable beams with one more token, the most probable first."""
    said = [Said(prompt, beam.tokens) for beam in running]
    logs_BV = penalise(logits_BV.log_softmax(dim=-1), penalties, said)
    so_far_B1 = torch.tensor([[beam.log_probability] for beam in running])
    total_N = (so_far_B1 + logs_BV).flatten()
    top = total_N.topk(min(count, len(total_N)))
    V = logits_BV.shape[-1]
    return [
        _Candidate(place // V, (*running[place // V].tokens, place % V), value)
        for place, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        if value > float("-inf")
    ]


def _finish(candidate: _Candidate, search: BeamSearch, stop_ids: Set[int]) -> Hypothesis:
    tokens = candidate.tokens
    score = candidate.log_probability / len(tokens) ** search.length_penalty
    if tokens[-1] in stop_ids:
        return Hypothesis(tokens[:-1], score, "end of text")
    return Hypothesis(tokens, score, "length")


def _may_improve(
    finished: list[Hypothesis],
    running: list[_Candidate],
    search: BeamSearch,
    length: int,
    tokens_max: int,
) -> bool:
    """Whether a running beam may yet become one of the n best."""
    if len(finished) < search.beams:
        return True
    if search.early_stopping is EarlyStopping.YES:
        return False
    never = search.early_stopping is EarlyStopping.NEVER
    best_length = tokens_max if never and search.length_penalty > 0 else length
    best = running[0].log_probability / best_length**search.length_penalty
    return best > finished[-1].score


def _refuse_too_long(model: Transformer, prompt: int, tokens_max: int) -> None:
    window = model.config.max_positions
    if tokens_max < 1:
        raise ConfigError(f"a beam of {tokens_max} tokens is none", hint="--tokens 20")
    if prompt + tokens_max > window:
        room = window - prompt
        raise ConfigError(
            f"a prompt of {prompt} tokens and {tokens_max} new ones do not fit the context of"
            f" {window}, and beams cannot go beyond it",
            hint=f"--tokens {room}" if room > 0 else "a shorter prompt",
        )
