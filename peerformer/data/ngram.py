"""What the next word is by the words right before it: the baseline that a model has to beat.

Interpolated Kneser-Ney: of each count a discount is taken, and what is taken goes to the
distribution after a shorter context. In shorter contexts a word counts as often as there are
different words before it, not as often as it occurs. It is trained on examples of a context and
the word asked for, which makes it stronger than a model of all the text: it knows what is asked.

Sources: Kneser and Ney, Improved backing-off for m-gram language modeling, 1995; Chen and Goodman,
An empirical study of smoothing techniques for language modeling, 1998, section 4.1.6.

Shapes: V words.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDER_MAX = 5  # of longer contexts hardly any comes twice
DEVELOPMENT_SHARE = 10  # one example in so many chooses the order
UNKNOWN = ""  # stands for all words that were never seen; no word is empty

Example = tuple[Sequence[str], str]  # the words before, and the word asked for
Context = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """The counts after one context: of each word, of all, and how much is taken from each."""

    ids: NDArray[np.int64]
    counts: NDArray[np.float64]
    total: float
    discount: float


class NGram:
    """Probabilities of the next word after at most `order - 1` words.

    Args:
        examples: what to learn from.
        order: 1 looks at no word before.
    """

    def __init__(self, examples: Iterable[Example], order: int) -> None:
        assert order >= 1
        self.order = order
        highest: dict[Context, Counter[str]] = defaultdict(Counter)
        for before, word in examples:
            highest[_last(before, order - 1)][word] += 1
        seen = sorted({word for counts in highest.values() for word in counts})
        self.words = [UNKNOWN, *seen]
        self.id_of = {word: index for index, word in enumerate(self.words)}
        levels = [highest]  # from the longest context down to none
        while len(levels) < order:
            shorter: dict[Context, Counter[str]] = defaultdict(Counter)
            for context, counts in levels[-1].items():
                # Each context of the longer kind counts once for each word after it. A context
                # that is short because the text begins there is its own shorter one.
                for word in counts:
                    shorter[context[1:]][word] += 1
            levels.append(shorter)
        self._tables = [self._table_of(level) for level in reversed(levels)]

    def _table_of(self, level: dict[Context, Counter[str]]) -> dict[Context, Table]:
        of_counts = Counter(count for counts in level.values() for count in counts.values())
        once, twice = of_counts[1], of_counts[2]
        discount = once / (once + 2 * twice) if once and twice else 0.5
        tables = {}
        for context, counts in level.items():
            ids = np.asarray([self.id_of[word] for word in counts])
            values = np.asarray(list(counts.values()), dtype=np.float64)
            tables[context] = Table(ids, values, float(values.sum()), discount)
        return tables

    def probabilities_V(self, before: Sequence[str]) -> NDArray[np.float64]:
        """Return the probability of each of `words` after some words, (V,); they sum to 1."""
        found_V = np.full(len(self.words), 1.0 / len(self.words))
        for length, tables in enumerate(self._tables):
            table = tables.get(_last(before, length))
            if table is None:  # never seen: what was found after the shorter context stands
                continue
            found_V = found_V * (table.discount * len(table.ids) / table.total)
            found_V[table.ids] += (table.counts - table.discount) / table.total
        return found_V


def _last(words: Sequence[str], count: int) -> Context:
    return tuple(words[max(0, len(words) - count) :]) if count else ()


def rank_of(word: str, ngram: NGram, before: Sequence[str]) -> tuple[float, float]:
    """Return the rank of a word and its probability; the rank of one never seen is infinite.

    Words of the same probability share the best rank.
    """
    found_V = ngram.probabilities_V(before)
    index = ngram.id_of.get(word)
    if index is None:
        return math.inf, float(found_V[0])
    others = found_V[1:] > found_V[index]
    return 1.0 + float(others.sum()), float(found_V[index])


def best_order(examples: Sequence[Example], orders: Sequence[int]) -> int:
    """Return the order whose ranks are best on a tenth of the examples, trained on the others."""
    training = [one for index, one in enumerate(examples) if index % DEVELOPMENT_SHARE]
    development = examples[::DEVELOPMENT_SHARE]
    if not training or not development:
        return min(orders)

    def mean_reciprocal(order: int) -> float:
        ngram = NGram(training, order)
        return sum(1 / rank_of(word, ngram, before)[0] for before, word in development)

    return max(orders, key=lambda order: (mean_reciprocal(order), -order))
