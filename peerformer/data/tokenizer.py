"""Text to tokens and back, by a tokenizer that was trained or loaded; Hugging Face's `tokenizers`.

With what is trained here every text can be encoded and comes back as it was. Tokens are pieces of
bytes, so the number of bytes that a token stands for is known, and a loss can be told in bits per
byte whatever the vocabulary. Three alphabets are understood: GPT-2's bytes as visible characters,
characters with single bytes for those that are rare (`<0x0A>`), and SentencePiece's, where `▁` is
a space.

Other formats are read by `tiktoken_ranks.py` and `sentencepiece_model.py`. Knows nothing about
documents.
"""

import codecs
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as _Tokenizer

from peerformer.config import TEXT_ENDS
from peerformer.data.shards import write_file
from peerformer.errors import DataError

END_OF_TEXT = TEXT_ENDS[0]
FILE_NAME = "tokenizer.json"
RUN_FOLDER = "data"  # where a run keeps what it prepared
FILE_BYTES_MAX = 64_000_000
BATCH_CHARACTERS = 1_000_000  # encoded at once; what the library holds for each is 40 times that
PARALLELISM_VARIABLE = "TOKENIZERS_PARALLELISM"


def _work_alone() -> None:
    os.environ[PARALLELISM_VARIABLE] = "false"


# A forked child inherits the library's thread pool without its threads and would wait for them
# for ever, at least where the variable is set to true.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_work_alone)


class Tokenizer:
    """A byte-level tokenizer with one special token that ends a document."""

    def __init__(self, inner: _Tokenizer, data: bytes) -> None:
        inner.encode_special_tokens = True  # what a text says is text, never a command
        inner.no_truncation()  # a file may ask for either; documents are encoded whole
        inner.no_padding()
        self._inner, self._data = inner, data
        self.vocab_size: int = 1 + max(inner.get_vocab().values(), default=-1)  # ids may have gaps
        added = inner.get_added_tokens_decoder()
        self._specials = frozenset(token for token, what in added.items() if what.special)
        self._added = frozenset(added)
        self.special_tokens = {added[token].content: token for token in sorted(self._specials)}
        end = inner.token_to_id(END_OF_TEXT)
        if end is None:
            others = (self.special_tokens.get(name) for name in TEXT_ENDS)
            end = next((token for token in others if token is not None), None)
        if end is None:
            raise DataError(
                f"the tokenizer has no {END_OF_TEXT} token",
                why="documents are told apart by it",
                hint="give another tokenizer.json, or none: one is trained on the data",
            )
        self.end_of_text_id: int = end
        self._alphabet = _alphabet_of(inner)
        first = inner.encode("x", add_special_tokens=False).tokens[:1]
        self.puts_space_first = self._alphabet == SPACES and first[:1] != ["x"]

    @classmethod
    def from_bytes(cls, data: bytes) -> "Tokenizer":
        """Read the content of a tokenizer.json.

        Raises:
            DataError: if it is not one, or has no end-of-text token.
        """
        try:
            inner = _Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises its own bare Exception
            raise DataError(
                "the tokenizer cannot be read", why=str(error)[:200], hint="give a tokenizer.json"
            ) from error
        return cls(inner, data)

    def to_bytes(self) -> bytes:
        """Return the content of tokenizer.json, the very bytes that were read or first written."""
        return self._data

    def digest(self) -> str:
        """Return the BLAKE3 hash of the content, in hexadecimal."""
        return blake3(self._data).hexdigest()

    def save(self, path: Path) -> None:
        """Write tokenizer.json, whole or not at all."""
        write_file(path, self._data)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; special tokens are not looked for in it."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_documents(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the token ids of many texts."""
        encoded: list[NDArray[np.uint32]] = []
        batch: list[str] = []
        held = 0
        for index, text in enumerate(texts, 1):
            batch.append(text)
            held += len(text)
            if held >= BATCH_CHARACTERS or index == len(texts):
                done = self._inner.encode_batch_fast(batch, add_special_tokens=False)
                encoded += [np.asarray(one.ids, dtype=np.uint32) for one in done]
                batch, held = [], 0
        return encoded

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; special tokens are left out."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def content(self) -> dict[str, Any]:
        """Return the content of tokenizer.json in the form of today's library."""
        return dict(json.loads(self._inner.to_str()))

    def pieces(self) -> dict[str, int]:
        """Return the ids of all tokens by the form in which the vocabulary writes them."""
        return dict(self._inner.get_vocab(with_added_tokens=True))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token stands for; none for a special token."""
        if token == self.end_of_text_id or token in self._specials:
            return b""
        piece = self._inner.id_to_token(token)
        if piece is None:
            return b""
        if token in self._added:
            return piece.encode()  # an added token is written as it is
        if self._alphabet == BYTES:
            try:
                return bytes(_BYTE_OF[character] for character in piece)
            except KeyError:
                return piece.encode()  # of a vocabulary that is not one of bytes
        if single := BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(single[1])
        return (piece.replace("\u2581", " ") if self._alphabet == SPACES else piece).encode()

    def byte_lengths_V(self) -> NDArray[np.int32]:
        """Return the number of bytes of each token, (V,)."""
        lengths = [len(self.token_bytes(token)) for token in range(self.vocab_size)]
        return np.asarray(lengths, dtype=np.int32)

    def stream(self) -> "TextStream":
        """Return a decoder that takes tokens one by one."""
        return TextStream(self)


class TextStream:
    """Turns tokens into text as they come, never emitting half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the text that this token completes; possibly none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """Return what is left: a replacement character if a character was cut."""
        return self._decoder.decode(b"", final=True)


BYTES, CHARACTERS, SPACES = "bytes", "characters", "spaces"
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def _alphabet_of(inner: _Tokenizer) -> str:
    """Return what the characters of a piece stand for, by how the tokenizer puts them together."""
    described = str(inner.decoder)
    if "ByteLevel" in described:
        return BYTES
    return SPACES if "Metaspace" in described or "\u2581" in described else CHARACTERS


def _byte_alphabet() -> dict[int, str]:
    """Return GPT-2's map from a byte to the visible character that stands for it."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {byte: chr(byte) for byte in visible}
    return table | {byte: chr(256 + index) for index, byte in enumerate(hidden)}


BYTE_ALPHABET = _byte_alphabet()
_BYTE_OF = {character: byte for byte, character in BYTE_ALPHABET.items()}


# A special token has a form that no word has: brackets and letters fall apart where text is cut
# to words, so that what a text says, or what is learned of it, never becomes a special token.
SPECIAL_FORM = re.compile(r"(?=\S*[^\W_])(<\S+>|\[\S+\])")
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's
BYTE_BPE, BPE, UNIGRAM = "byte-bpe", "bpe", "unigram"
ALPHABET_SHARE = 2  # of a vocabulary of characters, one in so many may be a single character


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    kind: str = BYTE_BPE,
    special_tokens: Sequence[str] = (),
) -> Tokenizer:
    """Train a tokenizer; fewer tokens result if the text does not hold so many pieces.

    Args:
        texts: what to learn from.
        vocab_size: tokens wanted, at least the 256 bytes and the special ones.
        kind: "byte-bpe" merges pairs of bytes (Sennrich et al., 2016; Radford et al., 2019),
            "bpe" pairs of characters, where those that are rare are written as bytes, "unigram"
            prunes pieces of bytes by their likelihood (Kudo, 2018).
        special_tokens: besides the one that ends a text.

    Raises:
        DataError: a special token has no such form as `<|user|>`, or the vocabulary is too small.
    """
    special = list(dict.fromkeys((END_OF_TEXT, *special_tokens)))
    if wrong := [token for token in special if not SPECIAL_FORM.fullmatch(token)]:
        raise DataError(
            f"{wrong[0]!r} cannot be a special token",
            why="a text may say the same; one in brackets is told apart",
            hint="a form such as <|user|> or [USER]",
        )
    if vocab_size < 256 + len(special):
        raise DataError(
            f"a vocabulary of {vocab_size} is too small",
            why=f"the 256 bytes and the special tokens are {256 + len(special)}",
            hint=f"--data.vocab_size {2 * (256 + len(special))}",
        )
    train = {BYTE_BPE: _byte_bpe, BPE: _bpe, UNIGRAM: _unigram}[kind]
    inner = train(texts, vocab_size, special)
    return Tokenizer(inner, inner.to_str(pretty=True).encode())


def _byte_bpe(texts: Iterable[str], vocab_size: int, special: list[str]) -> _Tokenizer:
    inner = _Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return inner


def _bpe(texts: Iterable[str], vocab_size: int, special: list[str]) -> _Tokenizer:
    inner = _Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 256,
        special_tokens=special,
        limit_alphabet=(vocab_size - 256 - len(special)) // ALPHABET_SHARE,
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    content = json.loads(inner.to_str())
    learned = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    single = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [*learned[: len(special)], *single, *learned[len(special) :]]
    content["model"]["vocab"] = {piece: token for token, piece in enumerate(pieces)}
    content["model"]["byte_fallback"] = True
    inner = _Tokenizer.from_str(json.dumps(content))
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return inner


def _unigram(texts: Iterable[str], vocab_size: int, special: list[str]) -> _Tokenizer:
    inner = _Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    content = json.loads(inner.to_str())
    pieces = content["model"]["vocab"]
    # The trainer stops pruning a little early where nearly all pieces are single bytes.
    needed = {piece for piece, _ in pieces if piece in special or len(piece) == 1}
    by_score = sorted(pieces, key=lambda entry: (entry[0] not in needed, -entry[1]))
    kept = {piece for piece, _ in by_score[:vocab_size]}
    content["model"]["vocab"] = [entry for entry in pieces if entry[0] in kept]
    return _Tokenizer.from_str(json.dumps(content))


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, or of a checkpoint, run or directory with one.

    Raises:
        DataError: if there is none, or it cannot be read.
    """
    file = Path(path)
    try:
        if file.is_dir():
            inside = file / RUN_FOLDER / FILE_NAME
            file = file / FILE_NAME
            file = inside if not file.exists() and inside.exists() else file
        if file.stat().st_size > FILE_BYTES_MAX:
            raise DataError("the tokenizer is too large to be one", where=str(file))
        data = file.read_bytes()
    except OSError as error:
        raise DataError(
            "the tokenizer cannot be read",
            where=str(file),
            why=error.strerror,
            hint="give a tokenizer.json or a directory that holds one",
        ) from error
    try:
        return Tokenizer.from_bytes(data)
    except DataError as error:
        raise DataError(error.what, where=str(file), why=error.why, hint=error.hint) from error
