"""The likeliest next words of a text, where a word is one token or several.

A word ends where the next token begins with white space or is a special token. Its probability is
that of its tokens times that of such an end. The search takes up the likeliest unfinished word
first (best first): whatever it leads to is no likelier than itself, so when the best word that is
unfinished is less likely than those found, those are the likeliest of all.

Knows nothing about how text becomes tokens, only the bytes that each token stands for.

Shapes: B unfinished words, T tokens, V vocabulary.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peerformer.errors import CheckpointError, ConfigError
from peerformer.model.transformer import Transformer

CHILDREN = 64  # next tokens tried after an unfinished word; of the others each is unlikely
EXPANSIONS_MAX = 400  # unfinished words taken up a search: past that a model is guessing
WORD_TOKENS_MAX = 24  # a longer word is not looked for
TOKENS_AT_ONCE = 4_096  # bounds the memory of the logits
# A word has further spellings; those so much less likely than the last word hardly change anything.
SETTLED = 0.1
WORDS_MAX = 100  # that may be asked for


class Pieces:
    """The bytes of each token, and where they end a word.

    Args:
        pieces: by token id; empty for special tokens.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.bytes = pieces
        ends = [not piece or piece[:1].isspace() for piece in pieces]
        self.ends_V = torch.tensor(ends)
        self.special_V = torch.tensor([not piece for piece in pieces])


@dataclass(slots=True)
class Search:
    """A search for the words after a context.

    Attributes:
        context: at least one token id.
        words: those found, with their probabilities; b"" is the end of the text.
        expansions: unfinished words taken up so far.
    """

    context: Sequence[int]
    words: dict[bytes, float] = field(default_factory=dict)
    expansions: int = 0
    _heap: list[tuple[float, tuple[int, ...], bytes]] = field(
        default_factory=lambda: [(-1, (), b"")]
    )

    @property
    def best_unfinished(self) -> float:
        """The probability of the likeliest word that is not finished."""
        return -self._heap[0][0] if self._heap and self.expansions < EXPANSIONS_MAX else 0.0

    def is_complete(self, floor: float) -> bool:
        """Tell whether all words likelier than `floor` were found."""
        return not self._heap or -self._heap[0][0] <= floor

    def take(self) -> tuple[float, tuple[int, ...], bytes]:
        """Take up the likeliest unfinished word: its probability, tokens and bytes."""
        self.expansions += 1
        negative, tokens, text = heapq.heappop(self._heap)
        return -negative, tokens, text

    def _add(self, word: bytes, probability: float) -> None:
        self.words[word] = self.words.get(word, 0.0) + probability

    def feed(
        self,
        taken: tuple[float, tuple[int, ...], bytes],
        probabilities_V: Tensor,
        pieces: Pieces,
    ) -> None:
        """Go on with a word that was taken up, by the probabilities of the token after it."""
        probability, tokens, text = taken
        ends_V = pieces.ends_V if text else pieces.special_V
        self._add(text, probability * float(probabilities_V[ends_V].sum()))
        if len(tokens) >= WORD_TOKENS_MAX:
            return
        others_V = probabilities_V.masked_fill(ends_V, 0.0)
        values, ids = others_V.topk(min(CHILDREN, len(others_V)))
        for value, token in zip(values.tolist(), ids.tolist(), strict=True):
            if value <= 0.0:
                continue
            longer = text + pieces.bytes[token] if text else pieces.bytes[token].lstrip()
            word = longer.split(maxsplit=1)[0] if longer else b""
            if len(word) < len(longer):  # a token that ends the word within it
                self._add(word, probability * value)
            else:
                heapq.heappush(self._heap, (-probability * value, (*tokens, token), longer))


def next_words(
    model: Transformer, context: Sequence[int], pieces: Pieces, top: int
) -> list[tuple[bytes, float]]:
    """The likeliest next words and their probabilities, the likeliest first.

    Args:
        model: in eval mode.
        context: at least one token id; of more than the context window the last are read.
        pieces: the bytes of each token.
        top: how many words.

    Raises:
        ConfigError: no tokens, an id outside the vocabulary, or `top` out of range.
        CheckpointError: the model's output is not finite.
    """
    if not 0 < top <= WORDS_MAX:
        raise ConfigError(f"{top} words were asked for, of at most {WORDS_MAX}", hint="--top 5")
    size = model.config.vocab_size
    if not context or not all(0 <= token < size for token in context):
        raise ConfigError("the text has no tokens, or some that are not of the model's vocabulary")
    search = Search(context)
    while search.best_unfinished > SETTLED * _nth(search.words, top):
        step(model, [search], pieces)
    return _likeliest(search.words, top)


def _likeliest(words: Mapping[bytes, float], count: int) -> list[tuple[bytes, float]]:
    return sorted(words.items(), key=lambda found: (-found[1], found[0]))[:count]


def _nth(words: Mapping[bytes, float], count: int) -> float:
    """The probability of the n-th word; 0 if there are not so many."""
    likeliest = _likeliest(words, count)
    return likeliest[-1][1] if len(likeliest) == count else 0.0


def step(model: Transformer, searches: Iterable[Search], pieces: Pieces) -> None:
    """Take up one unfinished word of each search and go on with it."""
    active = [search for search in searches if search.best_unfinished > 0]
    taken = [search.take() for search in active]
    rows = [[*search.context, *word[1]] for search, word in zip(active, taken, strict=True)]
    for start, stop in _groups(rows):
        last_BV = probabilities(model, rows[start:stop])
        for place, row_V in enumerate(last_BV, start):
            active[place].feed(taken[place], row_V, pieces)


def _groups(rows: Sequence[Sequence[int]]) -> Iterable[tuple[int, int]]:
    """Ranges of rows that go through the model at once."""
    start, longest = 0, 0
    for place, row in enumerate(rows):
        longest = max(longest, len(row))
        if place > start and longest * (place - start + 1) > TOKENS_AT_ONCE:
            yield start, place
            start, longest = place, len(row)
    if rows:
        yield start, len(rows)


@torch.inference_mode()
def probabilities(model: Transformer, rows: Sequence[Sequence[int]]) -> Tensor:
    """The probabilities of the token after each row, (B, V), float32 on the CPU.

    Rows are filled up at their ends, which no earlier token sees.
    """
    window = model.config.max_positions
    rows = [row[-window:] for row in rows]
    tokens_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for place, row in enumerate(rows):
        tokens_BT[place, : len(row)] = torch.tensor(row)
    logits_BTV = model(tokens_BT.to(model.embed_tokens.weight.device))
    ends = torch.tensor([len(row) - 1 for row in rows])
    logits_BV = logits_BTV[torch.arange(len(rows)), ends].float().cpu()
    if not logits_BV.isfinite().all():
        raise CheckpointError(
            "the model's output is not finite", hint="use an earlier checkpoint of the run"
        )
    return logits_BV.softmax(dim=-1)


def pieces_of(byte_pieces: Iterable[bytes], vocab_size: int) -> Pieces:
    """Return the pieces of a vocabulary, filled up to the model's with tokens of no bytes."""
    known = list(byte_pieces)
    return Pieces(known + [b""] * (vocab_size - len(known)))


def first_word(tokens: Sequence[int], pieces: Pieces) -> tuple[list[int], bytes, bool]:
    """Return the tokens of the first word, the word, and whether a token ends it within."""
    text = b""
    for count, token in enumerate(tokens):
        if text and bool(pieces.ends_V[token]):
            return list(tokens[:count]), text, False
        longer = text + pieces.bytes[token] if text else pieces.bytes[token].lstrip()
        word = longer.split(maxsplit=1)[0] if longer else b""
        if len(word) < len(longer):
            return list(tokens[: count + 1]), word, True
        text = longer
    return list(tokens), text, False
