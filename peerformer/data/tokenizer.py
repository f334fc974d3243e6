"""Byte-level BPE: trained here or loaded, through Hugging Face's `tokenizers`.

Every text can be encoded and comes back as it was. Tokens are pieces of bytes, so the number of
bytes that a token stands for is known, and a loss can be told in bits per byte whatever the
vocabulary.
"""

import codecs
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from tokenizers import Tokenizer as _Tokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from peerformer.errors import DataError

END_OF_TEXT = "<|endoftext|>"
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
        end = inner.token_to_id(END_OF_TEXT)
        if end is None:
            raise DataError(
                f"the tokenizer has no {END_OF_TEXT} token",
                why="documents are told apart by it",
                hint="give another tokenizer.json, or none: one is trained on the data",
            )
        self.end_of_text_id: int = end

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
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            file.write(self._data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

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

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token stands for; none for a special token."""
        if token == self.end_of_text_id or token in self._specials:
            return b""
        piece = self._inner.id_to_token(token)
        if piece is None:
            return b""
        if token in self._added:
            return piece.encode()  # an added token is written as it is
        try:
            return bytes(_BYTE_OF[character] for character in piece)
        except KeyError:
            return piece.encode()  # of a vocabulary that is not one of bytes

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


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's map from a visible character to the byte that it stands for."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {chr(byte): byte for byte in visible}
    return table | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE; fewer tokens result if the text does not hold so many pairs.

    Args:
        texts: what to learn from.
        vocab_size: tokens wanted, at least the 256 bytes and the special one.
    """
    inner = _Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner, inner.to_str(pretty=True).encode())


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
