"""Next words are those that trying every word finds; ranks count the likelier ones."""

import itertools
import math

import pytest
import torch

from peerformer.config import ModelConfig
from peerformer.data.pair_tokens import PairTokens
from peerformer.errors import ConfigError
from peerformer.generate import next_word as module
from peerformer.generate.next_word import (
    Search,
    first_word,
    next_words,
    pieces_of,
    probabilities,
    step,
)
from peerformer.generate.pairs import RANK_MAX, rank_words, scores_of
from peerformer.model.transformer import Transformer, initialise

# 0 ends a text; two tokens begin with a space, one has a space within, two are spaces alone.
PIECES = [b"", b" a", b"b", b" c", b"d", b" ", b"\n", b"a b"]
SHAPE = ModelConfig(
    vocab_size=8, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2,
    num_kv_heads=1, head_dim=8, max_positions=16,
)  # fmt: skip
# With these each word is written in one way only, so that probabilities need no sum.
ONE_WAY = [b"", b" a", b"b", b" c", b"d", b" e", b"f", b" g"]
DEPTH = 5


def model(seed: int) -> Transformer:
    made = Transformer(SHAPE)
    initialise(made, seed)
    with torch.no_grad():
        made.embed_tokens.weight.mul_(12)  # so that some words are much likelier than others
    return made.eval()


def by_trying(
    made: Transformer, context: list[int], all_pieces: list[bytes]
) -> tuple[dict[bytes, float], float]:
    """The probability of each word by every way to write it with a few tokens, and of the rest."""
    found: dict[bytes, float] = {}
    unfinished = [((), b"", 1.0)]
    for _ in range(DEPTH):
        longer_ones = []
        after_BV = probabilities(made, [[*context, *tokens] for tokens, _, _ in unfinished])
        for (tokens, text, before), after_V in zip(unfinished, after_BV.tolist(), strict=True):
            for token, piece in enumerate(all_pieces):
                value = before * after_V[token]
                if not piece or (text and piece[:1].isspace()):
                    found[text] = found.get(text, 0.0) + value
                    continue
                longer = text + piece if text else piece.lstrip()
                word = longer.split(maxsplit=1)[0] if longer else b""
                if len(word) < len(longer):
                    found[word] = found.get(word, 0.0) + value
                else:
                    longer_ones.append(((*tokens, token), longer, value))
        unfinished = longer_ones
    return found, sum(value for _, _, value in unfinished)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_likeliest_words_are_those_that_trying_all_finds(seed: int) -> None:
    made, context = model(seed), [0, 2, 3]
    everything, rest = by_trying(made, context, PIECES)
    best = sorted(everything.items(), key=lambda item: -item[1])[:5]
    found = next_words(made, context, pieces_of(PIECES, SHAPE.vocab_size), 5)
    for (word, ours), (_, theirs) in zip(found, best, strict=True):
        # A word may have further spellings, which neither side has looked at to the last.
        assert ours == pytest.approx(theirs, rel=0.1, abs=rest), f"seed {seed}"
        assert ours == pytest.approx(everything[word], rel=0.1, abs=rest), f"seed {seed}"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_rank_of_a_word_is_the_number_of_likelier_ones_and_one(seed: int) -> None:
    made, context = model(seed), [0, 2, 3]
    pieces = pieces_of(ONE_WAY, SHAPE.vocab_size)
    everything, _ = by_trying(made, context, ONE_WAY)
    completions = [[1], [3], [2], [1, 2], [3, 4], [1, 2, 4], [2, 1], [7, 6], [5, 2, 2]]
    pairs = [PairTokens(context, completion, 0) for completion in completions]
    for pair, ranked in zip(pairs, rank_words(made, pairs, pieces), strict=True):
        tokens, word, within = first_word(pair.completion, pieces)
        assert ranked.word == word.decode()
        floor, rows = 1.0, [[*context, *tokens[:length]] for length in range(len(tokens) + 1)]
        for length, row in enumerate(rows):
            after_V = probabilities(made, [row])[0]
            if length < len(tokens):
                floor *= float(after_V[tokens[length]])
            elif not within:
                floor *= float(after_V[pieces.ends_V].sum())
        assert ranked.probability == pytest.approx(floor, rel=1e-4)
        ahead = sum(
            value > floor * (1 + 1e-5) for text, value in everything.items() if text != word
        )
        assert ranked.rank == (1 + ahead if ahead < RANK_MAX else math.inf), f"seed {seed}"


def test_the_first_word_ends_where_a_token_begins_with_white_space_or_has_it_within() -> None:
    pieces = pieces_of(PIECES, SHAPE.vocab_size)
    assert first_word([1, 2, 3], pieces) == ([1, 2], b"ab", False)
    assert first_word([5, 6, 2], pieces) == ([5, 6, 2], b"b", False)
    assert first_word([2, 7, 2], pieces) == ([2, 7], b"ba", True)


def test_rows_of_unequal_length_have_the_probabilities_of_each_alone() -> None:
    made, rows = model(4), [[0, 1, 2], [0], [0, 3, 4, 5, 6, 2, 1]]
    together = probabilities(made, rows)
    for row, found_V in zip(rows, together, strict=True):
        assert torch.allclose(found_V, probabilities(made, [row])[0], atol=1e-6)


def test_searches_go_through_the_model_a_few_at_a_time_or_one_by_one(monkeypatch) -> None:
    made, pieces = model(5), pieces_of(PIECES, SHAPE.vocab_size)
    contexts = [[0], [0, 1, 2], [0, 3], [0, 4, 4, 4]]

    def found() -> list[dict[bytes, float]]:
        searches = [Search(context) for context in contexts]
        for _ in range(12):
            step(made, searches, pieces)
        return [search.words for search in searches]

    together = found()
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 1)
    for one, other in zip(together, found(), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_what_cannot_be_asked_for_is_refused() -> None:
    made, pieces = model(1), pieces_of(PIECES, SHAPE.vocab_size)
    for context, top in (([], 5), ([99], 5), ([0], 0), ([0], 10_000)):
        with pytest.raises(ConfigError):
            next_words(made, context, pieces, top)


def test_scores_are_shares_of_ranks() -> None:
    made, pieces = model(1), pieces_of(PIECES, SHAPE.vocab_size)
    pairs = [PairTokens(list(context), [1], 0) for context in itertools.product((0,), (1, 2, 3))]
    ranked = list(rank_words(made, pairs, pieces))
    scores = scores_of(ranked)
    assert scores.words == 3
    assert scores.top1 == pytest.approx(sum(one.rank == 1 for one in ranked) / 3)
    assert scores.perplexity == pytest.approx(
        math.prod(1 / one.probability for one in ranked) ** (1 / 3)
    )
    assert scores_of([]).words == 0
