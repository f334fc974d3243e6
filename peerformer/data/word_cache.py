"""Tokens of many texts at speed: each word is encoded once, and then looked up.

Text repeats its words, so almost all of the work of a tokenizer is done over again. Where no token
can reach from a letter into the space behind it, the tokens of a text are those of its words, each
with the space before it: that holds for byte-level BPE whose text is first divided by GPT-2's
expression, as the tokenizers trained here are. Any other tokenizer encodes whole texts itself.

A word that is new is divided further, as the tokenizer itself does, if it is ASCII (elsewhere the
classes of characters differ between versions of Unicode), and only what is new in it is encoded.

The tokens are the same either way; tests compare them.
"""

import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from peerformer.data.tokenizer import Tokenizer
from peerformer.data.words_seen import WordsInC, WordsInPython, WordsSeen, functions_in_c

WORDS_MAX = 400_000  # some 100 MB; then the cache begins anew
WORD_CHARACTERS_MAX = 24_000_000  # of all words together
COMPILED_CHARACTERS_LEAST = 8_000_000  # of text; less is done before a compiler has started
BATCH_CHARACTERS = 1_000_000

_PIECE = re.compile(  # GPT-2's expression, for ASCII
    r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
)
# Space to Python, but not to the tokenizer: a text with one of these is encoded as a whole.
_DOUBTFUL = re.compile("[\x1c-\x1f]")


class WordEncoder:
    """Encodes texts as a tokenizer does, only faster where words repeat."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.is_by_words = divides_at_space(tokenizer)
        self._characters = 0  # of all texts so far
        self._forget()

    def _forget(self) -> None:
        self._words: WordsSeen = WordsInPython()
        if self._characters >= COMPILED_CHARACTERS_LEAST and (functions := functions_in_c()):
            self._words = WordsInC(functions)
        self._pieces: dict[str, list[int]] = {}
        self._tokens = np.empty(0, np.uint32)  # of all words, one after the other
        self._starts = np.empty(0, np.int64)
        self._lengths = np.empty(0, np.int64)

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of the tokenizer's special tokens."""
        return self.tokenizer.special_tokens

    @property
    def puts_space_first(self) -> bool:
        """Whether the tokenizer puts a space before every text."""
        return self.tokenizer.puts_space_first

    def encode_documents(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the token ids of many texts."""
        if not self.is_by_words:
            return self.tokenizer.encode_documents(texts)
        encoded: list[NDArray[np.uint32]] = []
        batch: list[NDArray[np.int32] | str] = []
        held = 0
        for index, text in enumerate(texts, 1):
            batch.append(text if _DOUBTFUL.search(text) else self._words.numbers(text))
            held += len(text)
            if held >= BATCH_CHARACTERS or index == len(texts):
                encoded += self._looked_up(batch, held)
                batch, held = [], 0
        return encoded

    def _looked_up(
        self, batch: list[NDArray[np.int32] | str], held: int
    ) -> list[NDArray[np.uint32]]:
        self._learn()
        found = []
        for item in batch:
            if isinstance(item, str):
                found += self.tokenizer.encode_documents([item])
                continue
            lengths = self._lengths[item]
            # Where a word's tokens stand, less where they are to stand in the text.
            shifts = self._starts[item] - (np.cumsum(lengths) - lengths)
            found.append(self._tokens[np.repeat(shifts, lengths) + np.arange(lengths.sum())])
        was_small = self._characters < COMPILED_CHARACTERS_LEAST
        self._characters += held
        pays = was_small and self._characters >= COMPILED_CHARACTERS_LEAST
        is_full = self._words.count > WORDS_MAX or self._words.characters > WORD_CHARACTERS_MAX
        if pays or is_full:
            self._forget()
        return found

    def _learn(self) -> None:
        """Encode the words that have not come before."""
        words, self._words.new = self._words.new, []
        divided = [_PIECE.findall(word) if word.isascii() else [word] for word in words]
        pieces_met = {piece for pieces in divided for piece in pieces}
        new = [piece for piece in pieces_met if piece not in self._pieces]
        encoded = self.tokenizer.encode_documents(new)
        self._pieces |= {piece: ids.tolist() for piece, ids in zip(new, encoded, strict=True)}
        tokens: list[int] = []
        ends = np.empty(len(words), np.int64)
        for index, pieces in enumerate(divided):
            for piece in pieces:
                tokens += self._pieces[piece]
            ends[index] = len(tokens)
        starts = np.concatenate([[0], ends[:-1]]) if words else ends
        self._starts = np.concatenate([self._starts, starts + len(self._tokens)])
        self._lengths = np.concatenate([self._lengths, ends - starts])
        self._tokens = np.concatenate([self._tokens, np.array(tokens, np.uint32)])


def divides_at_space(tokenizer: Tokenizer) -> bool:
    """Tell whether the tokens of a text are those of its words, each with the space before it."""
    content = json.loads(tokenizer.to_bytes())
    divider, model = content.get("pre_tokenizer") or {}, content.get("model") or {}
    return (
        content.get("normalizer") is None
        and divider.get("type") == "ByteLevel"
        and divider.get("use_regex", True) is True
        and divider.get("add_prefix_space") is False
        and model.get("type") == "BPE"
        and not model.get("dropout")
        # What is added and no special token is looked for in the text before it is divided.
        and all(token["special"] for token in content.get("added_tokens") or [])
    )
