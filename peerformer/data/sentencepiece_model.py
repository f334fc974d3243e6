"""SentencePiece's `.model` files, BPE and unigram, as a tokenizer of Hugging Face's library.

The file is a protocol buffer of pieces with scores and two groups of settings. It is read here
field by field, each length checked against what is there. A unigram model is its pieces and their
log probabilities. Of a BPE the merges follow: any two pieces whose joint piece is one, in order of
its score. What SentencePiece does to a text before is kept: its table of normal forms, spaces
written as `▁`, one put before the first word; so a text comes back in its normal form.

Sources: Kudo and Richardson, SentencePiece, 2018; sentencepiece_model.proto of that project.
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as _Tokenizer

from peerformer.data.tokenizer import BYTE_PIECE, Tokenizer
from peerformer.errors import DataError

SPACE = "\u2581"
PIECES_MAX = 2_000_000
LEADING_SPACES_MAX = 1_000  # dropped in decoding, where a text is told to have none
VARINT_BYTES_MAX = 10  # 64 bits, seven a byte
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # kinds of pieces besides normal ones
_KINDS = {1: "unigram", 2: "bpe"}  # of models; words and single characters are left out


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece, its score, and its kind by the numbers of the format."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class Model:
    """What is needed of a `.model` file; its settings by their numbers in the format."""

    pieces: tuple[Piece, ...]
    trainer: dict[int, object]
    normalizer: dict[int, object]

    @property
    def kind(self) -> str:
        """Either "unigram" or "bpe"."""
        return _KINDS[int(self.trainer.get(3, 1))]  # type: ignore[call-overload]

    def flag(self, number: int, *, default: bool) -> bool:
        """A truth value among the settings of normalisation."""
        return bool(self.normalizer.get(number, default))


_ADDS_PREFIX, _REMOVES_SPACES, _ESCAPES_SPACES, _CHARACTER_MAP = 3, 4, 5, 2  # of the normalizer
_SPACE_AFTER = 24  # of the trainer: a space belongs to the word before it


def read_model(data: bytes) -> Model:
    """Read a `.model` file.

    Raises:
        DataError: it is none, is damaged, or is neither BPE nor unigram.
    """
    pieces: list[Piece] = []
    groups: dict[int, dict[int, object]] = {2: {}, 3: {}}
    try:
        for number, value in _fields(data):
            if number == 1:
                pieces.append(_piece(_message(value)))
            elif number in groups:
                groups[number] = dict(_fields(_message(value)))
    except (ValueError, struct.error, TypeError) as error:
        raise _damaged(str(error)) from error
    if not pieces or len(pieces) > PIECES_MAX:
        raise _damaged(f"it has {len(pieces)} pieces")
    if len({piece.text for piece in pieces}) < len(pieces):
        raise _damaged("a piece comes twice")
    model = Model(tuple(pieces), groups[2], groups[3])
    if groups[2].get(3, 1) not in _KINDS:
        raise DataError(
            "this SentencePiece model is one of words or characters",
            hint="give a BPE or unigram model",
        )
    if not model.flag(_ESCAPES_SPACES, default=True) or groups[2].get(_SPACE_AFTER):
        raise DataError("this SentencePiece model writes spaces in a way that is not supported")
    return model


def from_sentencepiece(data: bytes) -> Tokenizer:
    """Return a tokenizer that encodes as the SentencePiece model does.

    Raises:
        DataError: as `read_model`; or no piece ends a text.
    """
    model = read_model(data)
    unknown = [token for token, piece in enumerate(model.pieces) if piece.kind == _UNKNOWN]
    if len(unknown) != 1:
        raise _damaged(f"{len(unknown)} pieces stand for what is unknown")
    falls_back = any(piece.kind == _BYTE for piece in model.pieces)
    build = _unigram if model.kind == "unigram" else _bpe
    inner = _Tokenizer(build(model, unknown[0], falls_back=falls_back))
    inner.normalizer = _normalizer(model)
    literals = _literals(model) if model.kind == "unigram" else None
    if literals is not None:
        inner.pre_tokenizer = literals
    inner.decoder = _decoder(model)
    kinds = ((_UNKNOWN, _CONTROL), (_USER_DEFINED,))
    control, own = ([p.text for p in model.pieces if p.kind in kind] for kind in kinds)
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    inner.add_tokens([AddedToken(t, special=False, normalized=False) for t in own])
    return Tokenizer(inner, inner.to_str().encode())


def _decoder(model: Model) -> decoders.Decoder:
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    leading = 1 if model.flag(_ADDS_PREFIX, default=True) else 0
    if model.flag(_REMOVES_SPACES, default=True):
        leading = LEADING_SPACES_MAX
    return decoders.Sequence([*parts, decoders.Strip(" ", leading, 0)])


def _unigram(model: Model, unknown: int, *, falls_back: bool) -> models.Unigram:
    vocab = [(piece.text, piece.score) for piece in model.pieces]
    return models.Unigram(vocab, unk_id=unknown, byte_fallback=falls_back)


def _bpe(model: Model, unknown: int, *, falls_back: bool) -> models.BPE:
    vocab = {piece.text: token for token, piece in enumerate(model.pieces)}
    mergeable = {
        piece.text for piece in model.pieces if piece.kind not in (_UNKNOWN, _CONTROL, _BYTE)
    }
    merges = []
    # A higher score is merged earlier; the order of equals is that of the file.
    for piece in sorted(model.pieces, key=lambda piece: -piece.score):
        if piece.text not in mergeable:
            continue
        for cut in range(1, len(piece.text)):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in mergeable and right in mergeable:
                merges.append((left, right))
    return models.BPE(
        vocab,
        merges,
        unk_token=model.pieces[unknown].text,
        fuse_unk=True,
        byte_fallback=falls_back,
    )


def _normalizer(model: Model) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if character_map := model.normalizer.get(_CHARACTER_MAP):
        try:
            steps.append(normalizers.Precompiled(_message(character_map)))
        except Exception as error:  # the library raises its own bare Exception
            raise _damaged(f"its table of normal forms: {str(error)[:100]}") from error
    removes = model.flag(_REMOVES_SPACES, default=True)
    # Symbols of the user's own are found before: what is left and right of one is no text's end.
    removes = removes and all(piece.kind != _USER_DEFINED for piece in model.pieces)
    if removes:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", SPACE))
    if removes:
        steps.append(normalizers.Replace(Regex(rf"{SPACE}+\z"), ""))
    if model.flag(_ADDS_PREFIX, default=True):
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence(steps)


def _literals(model: Model) -> pre_tokenizers.PreTokenizer | None:
    """Return what keeps a text that says `<0x0A>` or `</s>` from becoming that piece.

    A unigram model looks its special pieces up like any other: here they are cut after their first
    character.
    """
    special = [piece.text for piece in model.pieces if piece.kind in (_UNKNOWN, _CONTROL)]
    ways = [f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in special if text[1:]]
    if any(piece.kind == _BYTE for piece in model.pieces):
        ways.append("<(?=0x[0-9A-F]{2}>)")
    return pre_tokenizers.Split(Regex("|".join(ways)), "merged_with_previous") if ways else None


# --- the wire format -----------------------------------------------------------------------------


def _fields(data: bytes) -> Iterator[tuple[int, object]]:
    """Yield the number and the value of each field: int, bytes, or a 4-byte float.

    Raises:
        ValueError: it is not a protocol buffer.
    """
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        else:
            size = {1: 8, 5: 4}.get(wire, -1)
        if size < 0 or place + size > len(data):
            raise ValueError(f"a field at byte {place} is cut short or of no known kind")
        piece = data[place : place + size]
        yield number, struct.unpack("<f", piece)[0] if wire == 5 else piece
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[place : place + VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, place + index + 1
    raise ValueError(f"a number at byte {place} does not end")


def _message(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where a group of fields should")
    return value


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    text, score, kind = _message(fields.get(1)), fields.get(2, 0.0), fields.get(3, 1)
    if not isinstance(score, float) or not math.isfinite(score) or not isinstance(kind, int):
        raise ValueError("a piece has no usable score or kind")
    decoded = text.decode("utf-8")
    if not decoded or kind == _BYTE and not BYTE_PIECE.fullmatch(decoded):
        raise ValueError("a piece is empty, or stands for no byte")
    return Piece(decoded, score, kind)


def _damaged(why: str) -> DataError:
    return DataError(
        "the SentencePiece model cannot be read", why=why, hint="give the .model file once more"
    )
