"""The vocabulary of a tokenizer as a thing to look at, to merge with another, and to trim.

Merging keeps the ids of the first tokenizer and appends what only the second has, so that a model
trained with the first needs new rows and no other change. Trimming keeps the tokens that a corpus
uses, those that their merges go through, the special ones and the single bytes or characters, and
numbers them anew: the corpus is cut exactly as before, other text into more tokens at most.

Works on the content of tokenizer.json, whose model is a BPE or a unigram one.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from peerformer.data.tokenizer import BYTE_PIECE, Tokenizer
from peerformer.errors import DataError

# What two tokenizers must have alike, beside the kind of model, so that pieces mean the same.
_SAME = ("normalizer", "pre_tokenizer", "decoder")
_SAME_MODEL = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")


@dataclass(frozen=True, slots=True)
class Entry:
    """A token of a vocabulary: its id, the bytes that it stands for, and what it is."""

    token: int
    data: bytes
    piece: str
    is_special: bool


def kind_of(tokenizer: Tokenizer) -> str:
    """Return the kind of a tokenizer: byte-bpe, bpe, unigram, or the library's name of it."""
    content = tokenizer.content()
    kind = content["model"].get("type") or ("BPE" if "merges" in content["model"] else "Unigram")
    has_bytes = "ByteLevel" in json.dumps(content.get("decoder"))
    return {"BPE": "byte-bpe" if has_bytes else "bpe", "Unigram": "unigram"}.get(kind, kind)


def entries(tokenizer: Tokenizer) -> list[Entry]:
    """Return all tokens in the order of their ids."""
    special = set(tokenizer.special_tokens.values())
    pieces = sorted((token, piece) for piece, token in tokenizer.pieces().items())
    return [
        Entry(token, tokenizer.token_bytes(token), piece, token in special)
        for token, piece in pieces
    ]


def merge(first: Tokenizer, second: Tokenizer) -> Tokenizer:
    """Return a tokenizer with the tokens of both; those of the first keep their ids.

    The merges of the first go before those of the second. Log probabilities of pieces are those of
    an even mixture of the two.

    Raises:
        DataError: they cut text in different ways, so that their pieces cannot be mixed.
    """
    one, other = first.content(), second.content()
    _check_alike(one, other, (kind_of(first), kind_of(second)))
    if "merges" in one["model"]:
        _merge_bpe(one, other, first.vocab_size)
    else:
        _merge_unigram(one, other)
    known = {entry["content"] for entry in one["added_tokens"]}
    ids = _ids(one["model"])
    taken = {*ids.values(), *(entry["id"] for entry in one["added_tokens"])}
    for entry in other["added_tokens"]:
        if entry["content"] in known:
            continue
        # Added tokens that the model does not list follow its vocabulary.
        token = ids.get(entry["content"], 1 + max(taken))
        taken.add(token)
        one["added_tokens"].append(entry | {"id": token})
    one["added_tokens"].sort(key=lambda entry: int(entry["id"]))
    made = _made(one)
    if any(made.pieces()[piece] != token for piece, token in first.pieces().items()):
        raise DataError(
            "the first tokenizer's ids cannot be kept",
            why="it has added tokens after the vocabulary of its model",
            hint="merge in the other order",
        )
    return made


def _check_alike(one: dict[str, Any], other: dict[str, Any], kinds: tuple[str, str]) -> None:
    if kinds[0] != kinds[1] or kinds[0] not in ("byte-bpe", "bpe", "unigram"):
        raise DataError(
            f"a {kinds[0]} vocabulary cannot be merged with a {kinds[1]} one",
            hint="train both with the same --data.tokenizer_kind",
        )
    for key in _SAME:
        if one.get(key) != other.get(key):
            raise DataError(
                "the two tokenizers cut text in different ways",
                why=f"their {key} is not the same",
                hint="merge tokenizers that were trained with the same kind",
            )
    for key in _SAME_MODEL:
        if (one["model"].get(key) or None) != (other["model"].get(key) or None):
            raise DataError(
                "the two tokenizers cut text in different ways", why=f"their {key} is not the same"
            )


def _merge_bpe(one: dict[str, Any], other: dict[str, Any], size: int) -> None:
    vocab, merges = one["model"]["vocab"], one["model"]["merges"]
    # Listed in the vocabulary, an added token keeps its id whatever is appended.
    vocab |= {entry["content"]: entry["id"] for entry in one["added_tokens"]}
    for piece in sorted(other["model"]["vocab"], key=other["model"]["vocab"].get):
        if piece not in vocab:
            vocab[piece], size = size, size + 1
    known = {tuple(pair) for pair in merges}
    merges += [pair for pair in other["model"]["merges"] if tuple(pair) not in known]


def _merge_unigram(one: dict[str, Any], other: dict[str, Any]) -> None:
    scores = (dict(one["model"]["vocab"]), dict(other["model"]["vocab"]))
    pieces = list(dict.fromkeys([*scores[0], *scores[1]]))
    special = {entry["content"] for entry in [*one["added_tokens"], *other["added_tokens"]]}

    def mixed(piece: str) -> float:
        found = [table[piece] for table in scores if piece in table]
        if piece in special:
            return float(found[0])
        most = max(found)
        return float(most + math.log(sum(math.exp(score - most) for score in found) / 2))

    one["model"]["vocab"] = [[piece, mixed(piece)] for piece in pieces]


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A smaller tokenizer, and the former ids of its tokens in the order of their new ones."""

    tokenizer: Tokenizer
    kept: tuple[int, ...]


def trim(tokenizer: Tokenizer, used: Iterable[int]) -> Trimmed:
    """Return a tokenizer with the tokens that are used and those that it cannot do without.

    Raises:
        DataError: the tokenizer is neither a BPE nor a unigram one.
    """
    content = tokenizer.content()
    if kind_of(tokenizer) not in ("byte-bpe", "bpe", "unigram"):
        raise DataError(f"a {kind_of(tokenizer)} vocabulary cannot be trimmed")
    model, added = content["model"], content["added_tokens"]
    ids = _ids(model)
    name_of = {token: piece for piece, token in ids.items()}
    kept = {name_of[token] for token in used if token in name_of}
    kept |= {piece for piece in ids if len(piece) == 1 or BYTE_PIECE.fullmatch(piece)}
    kept |= {entry["content"] for entry in added if entry["content"] in ids}
    if "merges" in model:
        kept = _with_parts(kept, model["merges"])
        kept |= {model.get("unk_token")} & ids.keys()
    else:
        # The least likely piece sets the price of what is unknown: it stays.
        kept.add(min(model["vocab"], key=lambda entry: entry[1])[0])
        if model.get("unk_id") is not None:
            kept.add(model["vocab"][model["unk_id"]][0])
    order = sorted(kept, key=ids.__getitem__)
    outside = sorted(
        (entry for entry in added if entry["content"] not in ids), key=lambda entry: entry["id"]
    )
    former = [ids[piece] for piece in order] + [int(entry["id"]) for entry in outside]
    new_id = {token: place for place, token in enumerate(former)}
    for entry in added:
        entry["id"] = new_id[entry["id"]]
    if "merges" in model:
        model["vocab"] = {piece: place for place, piece in enumerate(order)}
        model["merges"] = [pair for pair in model["merges"] if {*pair, pair[0] + pair[1]} <= kept]
    else:
        scores = dict(model["vocab"])
        if model.get("unk_id") is not None:
            model["unk_id"] = new_id[model["unk_id"]]
        model["vocab"] = [[piece, scores[piece]] for piece in order]
    return Trimmed(_made(content), tuple(former))


def _with_parts(kept: set[str], merges: list[list[str]]) -> set[str]:
    """Return pieces together with all that are merged on the way to them."""
    parts: dict[str, set[str]] = {}
    for left, right in merges:
        parts.setdefault(left + right, set()).update((left, right))
    found, rest = set(kept), list(kept)
    while rest:
        for part in parts.get(rest.pop(), ()):
            if part not in found:
                found.add(part)
                rest.append(part)
    return found


def _ids(model: dict[str, Any]) -> dict[str, int]:
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        return vocab
    return {piece: token for token, (piece, _) in enumerate(vocab)}


def _made(content: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_bytes(json.dumps(content, ensure_ascii=False, indent=2).encode())
