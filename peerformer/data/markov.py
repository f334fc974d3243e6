"""Text from a source whose entropy is known exactly, so that a loss can be judged.

A Markov chain over a few letters, its transition probabilities drawn from a seed: the next letter
depends on the letter before. With p the stationary distribution and T the transitions, the entropy
rate is H = -sum_i p_i sum_j T_ij log2 T_ij (Shannon 1948, section 7) bits a letter, and a letter is
a byte. No model can go below it on fresh text, beyond the luck of a sample; a good one comes near.

Each document begins in the stationary distribution, has as many letters as any other, and ends
with a newline: what the first letter adds and the newline saves is counted in the floor.

Shapes: L letters, G documents that are drawn together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from peerformer.data.documents import Document

LETTERS = "abcdefghijklmno "  # with a space, so that there are words to make tokens of
DOCUMENT_LETTERS = 2_000
DOCUMENTS = 4_000
GROUP = 100  # documents drawn in lockstep
CONCENTRATION = 0.3  # of the Dirichlet draw: a few likely letters after each
LEAST_PROBABILITY = 1e-4  # of any letter after any: the chain can always go anywhere


@dataclass(frozen=True)
class MarkovSource:
    """Transition probabilities between letters, and how often each letter comes in the long run."""

    transitions_LL: NDArray[np.float64]
    stationary_L: NDArray[np.float64]

    @classmethod
    def from_seed(cls, seed: int) -> "MarkovSource":
        """Draw a source; the same seed gives the same one."""
        random, size = np.random.default_rng([seed, 1]), len(LETTERS)
        drawn = random.dirichlet(np.full(size, CONCENTRATION), size=size)
        transitions_LL = (drawn + LEAST_PROBABILITY) / (1 + size * LEAST_PROBABILITY)
        # The stationary distribution p solves p T = p and sums to one.
        system = np.vstack([transitions_LL.T - np.eye(size), np.ones(size)])
        target = np.append(np.zeros(size), 1.0)
        return cls(transitions_LL, np.linalg.lstsq(system, target, rcond=None)[0])

    def entropy_bits_per_letter(self) -> float:
        """Return the entropy rate of the chain."""
        bits_L = -np.sum(self.transitions_LL * np.log2(self.transitions_LL), axis=1)
        return float(self.stationary_L @ bits_L)

    def floor_bits_per_byte(self) -> float:
        """Return the least mean bits per byte of its documents that any model can reach."""
        first = -float(np.sum(self.stationary_L * np.log2(self.stationary_L)))
        others = (DOCUMENT_LETTERS - 1) * self.entropy_bits_per_letter()
        return (first + others) / (DOCUMENT_LETTERS + 1)

    def texts(self, random: np.random.Generator) -> list[str]:
        """Draw the letters of a group of documents."""
        drawn_TG = random.random((DOCUMENT_LETTERS, GROUP))
        letters_TG = np.empty((DOCUMENT_LETTERS, GROUP), np.int64)
        # The last sum is one but for rounding, and no chance may lie above it.
        up_to_LL = np.cumsum(self.transitions_LL, axis=1)[:, :-1]
        up_to_L = np.cumsum(self.stationary_L)[:-1]
        letters_TG[0] = (drawn_TG[0, :, None] >= up_to_L).sum(axis=1)
        for place in range(1, DOCUMENT_LETTERS):
            reached_GL = up_to_LL[letters_TG[place - 1]]
            letters_TG[place] = (drawn_TG[place, :, None] >= reached_GL).sum(axis=1)
        alphabet = np.frombuffer(LETTERS.encode(), np.uint8)
        return [alphabet[letters_T].tobytes().decode() for letters_T in letters_TG.T]


def markov_documents(seed: int, count: int = DOCUMENTS) -> Iterator[Document]:
    """Yield `count` documents of the source of a seed."""
    source = MarkovSource.from_seed(seed)
    for group in range(-(-count // GROUP)):
        texts = source.texts(np.random.default_rng([seed, 2, group]))
        for index, text in enumerate(texts[: count - group * GROUP], group * GROUP):
            yield Document(f"markov:{seed}/{index}", text + "\n")
