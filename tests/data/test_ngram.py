"""Kneser-Ney: sums to one, is what a sum by hand gives, and prefers what follows many words."""

import math
from random import Random

import pytest

from peerformer.data.ngram import NGram, best_order, rank_of


def examples_of(text: str, order: int = 3):
    words = text.split()
    return [(words[max(0, i - order + 1) : i], words[i]) for i in range(len(words))]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_after_any_context(order: int) -> None:
    random = Random(5)
    words = [random.choice("abcdefg") for _ in range(400)]
    ngram = NGram(examples_of(" ".join(words), order), order)
    for _ in range(50):
        before = [random.choice("abcdefgxyz") for _ in range(random.randrange(7))]
        found_V = ngram.probabilities_V(before)
        assert math.isclose(found_V.sum(), 1.0, rel_tol=1e-9) and (found_V > 0).all(), "seed 5"


def test_a_bigram_is_what_a_sum_by_hand_gives() -> None:
    pairs = [(["a"], "x"), (["a"], "x"), (["a"], "y"), (["b"], "x"), (["c"], "z"), (["c"], "z")]
    ngram = NGram(pairs, 2)
    # Counts: once ay, bx; twice ax, cz. Below, of different words before: x 2, y 1, z 1.
    above, below = 2 / (2 + 2 * 2), 2 / (2 + 2 * 1)
    unigram = {
        word: (count - below) / 4 + below * 3 / 4 * (1 / 4)
        for word, count in (("x", 2), ("y", 1), ("z", 1))
    }
    by_hand = (2 - above) / 3 + above * 2 / 3 * unigram["x"]
    assert math.isclose(rank_of("x", ngram, ["a"])[1], by_hand)
    never = above * 2 / 3 * unigram["z"]
    assert math.isclose(rank_of("z", ngram, ["a"])[1], never)
    assert math.isclose(rank_of("z", ngram, ["unseen"])[1], unigram["z"])


def test_a_word_that_follows_one_word_only_is_unlikely_elsewhere() -> None:
    text = [(["san"], "francisco")] * 20 + [([before], "glasses") for before in "abcdefgh"]
    ngram = NGram(text, 2)
    assert rank_of("francisco", ngram, ["san"])[0] == 1
    assert rank_of("glasses", ngram, ["reading"])[0] == 1, "it follows more different words"
    assert rank_of("francisco", NGram(text, 1), [])[0] == 1, "one that looks at counts alone"


def test_ranks_count_what_is_likelier_and_a_word_never_seen_has_none() -> None:
    ngram = NGram([([], word) for word in "a a a b b c".split()], 1)
    assert [rank_of(word, ngram, [])[0] for word in "abc"] == [1, 2, 3]
    assert rank_of("d", ngram, []) == (math.inf, float(ngram.probabilities_V([])[0]))


def test_the_order_is_the_one_that_the_training_data_asks_for() -> None:
    random = Random(9)
    second = []
    for _ in range(600):
        key, noise = random.choice("abcdefgh"), random.choice("stuvw")
        second.append(([random.choice("mno"), key, noise], key.upper()))
    assert best_order(second, range(1, 6)) == 3
    first = [([*before[:2], before[1]], word) for before, word in second]
    assert best_order(first, range(1, 6)) == 2
    assert best_order([([], "a")], range(1, 6)) == 1
