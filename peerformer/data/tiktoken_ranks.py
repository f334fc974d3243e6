"""tiktoken's rank files: a token in base64 and its rank in each line, as a byte-level BPE.

A rank is both a token's id and its priority: of two neighbours those are merged whose joint token
has the lowest rank. From that the merges follow: a token's parts are what remains of its bytes
when only lower ranks are merged. A token that no merge makes is found only where it stands as a
whole word, and `ignore_merges` finds it there, as tiktoken does.

The file does not say how a text is cut into words, nor the special tokens; both are given. Source:
the format and the algorithm as documented at https://github.com/openai/tiktoken.
"""

import base64
import binascii
from collections.abc import Mapping

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as _Tokenizer

from peerformer.data.tokenizer import BYTE_ALPHABET, END_OF_TEXT, WORDS, Tokenizer
from peerformer.errors import DataError

TOKENS_MAX = 2_000_000  # the largest vocabulary in use has a tenth
TOKEN_BYTES_MAX = 1_024  # the merges of a token take time with the square of its length
# How published vocabularies cut a text into words; a file of ranks does not carry it.
PATTERNS = {
    "gpt2": WORDS,
    "cl100k": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


def looks_like_ranks(data: bytes) -> bool:
    """Tell whether a file may be one of ranks, by its first line."""
    parts = data[: 2 * TOKEN_BYTES_MAX].split(b"\n", 1)[0].split()
    return len(parts) == 2 and parts[1].isdigit() and _decoded(parts[0]) is not None


def read_ranks(data: bytes) -> dict[bytes, int]:
    """Return the rank of each token.

    Raises:
        DataError: a line is damaged, a token or a rank comes twice, or a single byte is missing.
    """
    ranks: dict[bytes, int] = {}
    taken: set[int] = set()
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split()
        token = _decoded(parts[0]) if len(parts) == 2 and parts[1].isdigit() else None
        rank = int(parts[1]) if token and len(parts[1]) < 9 else -1
        if not token or len(token) > TOKEN_BYTES_MAX or not 0 <= rank < TOKENS_MAX:
            raise _damaged(f"line {number} is not a token in base64 and a rank")
        if token in ranks or rank in taken:
            raise _damaged(f"line {number} gives a token or a rank a second time")
        ranks[token] = rank
        taken.add(rank)
    if missing := [byte for byte in range(256) if bytes((byte,)) not in ranks]:
        raise _damaged(
            f"{len(missing)} of the 256 bytes have no rank, the first 0x{missing[0]:02x}"
        )
    return ranks


def from_ranks(
    ranks: Mapping[bytes, int], *, pattern: str, special_tokens: Mapping[str, int] | None = None
) -> Tokenizer:
    """Return a tokenizer that encodes as tiktoken does.

    Args:
        ranks: of each token, as `read_ranks` gives them.
        pattern: a name of `PATTERNS`, or a regular expression that finds words.
        special_tokens: their ids; one that ends a text is added after the last if there is none.

    Raises:
        DataError: the pattern is none, or the id of a special token is taken.
    """
    special = dict(special_tokens or {})
    if END_OF_TEXT not in special:
        special[END_OF_TEXT] = 1 + max([*ranks.values(), *special.values()])
    taken = set(ranks.values())
    if clash := [f"{name}={token}" for name, token in special.items() if token in taken]:
        raise DataError(f"the id of the special token {clash[0]} is that of another token")
    if len(set(special.values())) < len(special):
        raise DataError("two special tokens have one id")
    visible = {token: "".join(BYTE_ALPHABET[byte] for byte in token) for token in ranks}
    in_order = sorted(ranks, key=ranks.__getitem__)
    merges = [(visible[a], visible[b]) for token in in_order for a, b in _parts(token, ranks)]
    vocab = {visible[token]: rank for token, rank in ranks.items()}
    # An id of its own for a special token can be given only within the vocabulary.
    inner = _Tokenizer(models.BPE(vocab | special, merges, ignore_merges=True))
    try:
        words = Regex(PATTERNS.get(pattern, pattern))
    except Exception as error:  # the library raises its own bare Exception
        raise DataError(
            "the pattern is no regular expression",
            why=str(error)[:200],
            hint=f"one of: {', '.join(PATTERNS)}",
        ) from error
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    by_id = sorted(special, key=special.__getitem__)
    inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in by_id])
    made = Tokenizer(inner, inner.to_str().encode())
    if whole := [name for name, token in special.items() if token in made.encode(name)]:
        raise DataError(
            f"a text that says {whole[0]} would become that special token",
            why="the pattern takes it for one word",
            hint=f"another pattern, such as {', '.join(PATTERNS)}",
        )
    return made


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return the two parts that are merged to a token, or nothing if no merge makes it."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(parts[i] + parts[i + 1], TOKENS_MAX) for i in range(len(parts) - 1)]
        lowest = min(pairs)
        if lowest >= ranks[token]:
            return []
        place = pairs.index(lowest)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [(parts[0], parts[1])] if len(parts) == 2 else []


def _decoded(word: bytes) -> bytes | None:
    try:
        return base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        return None


def _damaged(why: str) -> DataError:
    return DataError(
        "the file of ranks cannot be read", why=why, hint="get the .tiktoken file once more"
    )
