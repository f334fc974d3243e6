"""How well a model knows the completions of pairs: the rank of the word that comes next.

The rank is one more than the number of words that the model holds likelier, single tokens or
several alike; beyond a limit it counts as none. Of a completion of several words the first is
ranked.

Shapes: B pairs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from peerformer.data.pair_tokens import PairTokens
from peerformer.generate.next_word import (
    Pieces,
    Search,
    first_word,
    probabilities,
    step,
)
from peerformer.model.transformer import Transformer

RANK_MAX = 10  # a word that so many others go before counts as not found
PAIRS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Ranked:
    """A word, how many are likelier plus one (infinite: not found), and its probability."""

    word: str
    rank: float
    probability: float


@dataclass(frozen=True, slots=True)
class Scores:
    """How well words were foretold.

    Attributes:
        top1: share of words that were the likeliest.
        top5: share of words among the five likeliest.
        mean_reciprocal_rank: of ranks up to 10; others count 0.
        perplexity: of the word, e to the mean of -log probability.
        words: how many.
    """

    top1: float
    top5: float
    mean_reciprocal_rank: float
    perplexity: float
    words: int


def scores_of(ranked: Sequence[Ranked]) -> Scores:
    """Return the scores of words that were ranked."""
    count = max(1, len(ranked))
    ranks = [one.rank for one in ranked]
    nats = sum(-math.log(max(one.probability, 1e-300)) for one in ranked) / count
    return Scores(
        top1=sum(rank <= 1 for rank in ranks) / count,
        top5=sum(rank <= 5 for rank in ranks) / count,
        mean_reciprocal_rank=sum(1 / rank for rank in ranks if rank <= RANK_MAX) / count,
        perplexity=math.exp(nats),
        words=len(ranked),
    )


def rank_words(
    model: Transformer,
    pairs: Sequence[PairTokens],
    pieces: Pieces,
    on_pairs: Callable[[int], None] = lambda _: None,
) -> Iterator[Ranked]:
    """Yield the rank of the first word of each completion.

    Args:
        model: in eval mode.
        pairs: prompts, with the token before them, and completions.
        pieces: the bytes of each token.
        on_pairs: called with the number of pairs done so far.
    """
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        together = pairs[start : start + PAIRS_AT_ONCE]
        words = [first_word(pair.completion, pieces) for pair in together]
        wanted = _probabilities_of(model, together, words, pieces)
        hunts = [
            _Hunt(Search(pair.prompt), word, probability)
            for pair, (_, word, _), probability in zip(together, words, wanted, strict=True)
        ]
        while open_hunts := [hunt for hunt in hunts if not hunt.is_over]:
            step(model, [hunt.search for hunt in open_hunts], pieces)
        for hunt in hunts:
            yield Ranked(hunt.word.decode(errors="replace"), hunt.rank, hunt.probability)
        on_pairs(start + len(together))


@dataclass(frozen=True, slots=True)
class _Hunt:
    """A search for all words that are likelier than one."""

    search: Search
    word: bytes
    probability: float

    @property
    def _ahead(self) -> int:
        found = self.search.words.items()
        return sum(value > self.probability for text, value in found if text != self.word)

    @property
    def is_over(self) -> bool:
        """Whether all of them were found, or more than are counted, or it took too long."""
        return self.search.best_unfinished <= self.probability or self._ahead >= RANK_MAX

    @property
    def rank(self) -> float:
        """The rank; infinite where it is beyond what is counted, or not all were found."""
        found_all = self.search.is_complete(self.probability)
        return 1.0 + self._ahead if found_all and self._ahead < RANK_MAX else math.inf


def _probabilities_of(
    model: Transformer,
    pairs: Sequence[PairTokens],
    words: Sequence[tuple[list[int], bytes, bool]],
    pieces: Pieces,
) -> list[float]:
    """The probability of each word: of its tokens and, unless one ends it within, of its end."""
    found = [1.0] * len(pairs)
    for length in range(max(len(tokens) for tokens, _, _ in words) + 1):
        places = [
            place
            for place, (tokens, _, ends_within) in enumerate(words)
            if length < len(tokens) or length == len(tokens) and not ends_within
        ]
        if not places:
            break
        rows = [[*pairs[place].prompt, *words[place][0][:length]] for place in places]
        for place, row_V in zip(places, probabilities(model, rows), strict=True):
            tokens = words[place][0]
            after = row_V[tokens[length]] if length < len(tokens) else row_V[pieces.ends_V].sum()
            found[place] *= float(after)
    return found
