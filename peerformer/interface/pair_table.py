"""The ranks of next words by a model and by two baselines, as a table."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from peerformer.data.ngram import ORDER_MAX, Example, NGram, best_order, rank_of
from peerformer.data.pair_tokens import PairTokens
from peerformer.data.tokenizer import Tokenizer
from peerformer.generate.next_word import pieces_of
from peerformer.generate.pairs import RANK_MAX, Ranked, Scores, rank_words, scores_of
from peerformer.model.transformer import Transformer

PAIRS_MAX = 1_000  # ranked, spread evenly; more hardly change a share
LEARNED_MAX = 200_000  # pairs that the baselines learn
ORDER_PAIRS_MAX = 5_000  # of them, to choose the order by
TOLD_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class PairTable:
    """Scores by the name of what foretold."""

    rows: tuple[tuple[str, Scores], ...]
    pairs: int  # of which so many as the scores say were ranked

    def lines(self) -> list[str]:
        """The table as lines of text."""
        lines = ["next word of a completion    top-1    top-5      MRR  perplexity a word"]
        for name, scores in self.rows:
            lines.append(
                f"{name:<26}  {scores.top1:6.1%}   {scores.top5:6.1%}   "
                f"{scores.mean_reciprocal_rank:.4f}  {scores.perplexity:>17.2f}"
            )
        ranked = self.rows[0][1].words
        lines.append(
            f"over {ranked} of {self.pairs} pairs; MRR counts ranks up to {RANK_MAX}"
            + ("" if len(self.rows) > 1 else "; no baselines: the pairs learned are not here")
        )
        return lines


def pair_table(
    model: Transformer,
    tokenizer: Tokenizer,
    pairs: Sequence[PairTokens],
    learned: Sequence[PairTokens],
) -> PairTable:
    """Rank the next words of pairs by a model, and by baselines that learn other pairs."""
    count = min(len(pairs), PAIRS_MAX)
    chosen = [pairs[index * len(pairs) // count] for index in range(count)]
    byte_pieces = (tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size))
    pieces = pieces_of(byte_pieces, model.config.vocab_size)
    began = time.monotonic()

    def tell(done: int) -> None:
        nonlocal began
        if time.monotonic() - began >= TOLD_SECONDS:
            began = time.monotonic()
            print(f"ranking     {done} of {count} pairs", file=sys.stderr, flush=True)

    rows = [("model", scores_of(list(rank_words(model, chosen, pieces, tell))))]
    examples = [_example(tokenizer, pair) for pair in learned[:LEARNED_MAX]]
    if examples:
        asked = [_example(tokenizer, pair) for pair in chosen]
        order = best_order(examples[:ORDER_PAIRS_MAX], range(2, ORDER_MAX + 1))
        rows.append((f"n-gram, order {order}", _baseline(NGram(examples, order), asked)))
        rows.append(("unigram", _baseline(NGram(examples, 1), asked)))
    return PairTable(tuple(rows), len(pairs))


def _example(tokenizer: Tokenizer, pair: PairTokens) -> Example:
    words = tokenizer.decode(pair.completion).split()
    return tokenizer.decode(pair.prompt).split(), words[0] if words else ""


def _baseline(ngram: NGram, asked: Sequence[Example]) -> Scores:
    ranked = []
    for before, word in asked:
        rank, probability = rank_of(word, ngram, before)
        ranked.append(Ranked(word, rank, probability))
    return scores_of(ranked)
