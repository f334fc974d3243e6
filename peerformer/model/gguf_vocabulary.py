"""A tokenizer.json as the vocabulary of a GGUF file.

GGUF's model `gpt2` is byte-level BPE: the tokens as they stand in the vocabulary, their merges, a
type for each, and a name for the rule that cuts text into words before merging. That rule is
known to readers by its name alone, so only those of a few tokenizers can be written down; what is
made here cuts as GPT-2 does. Everything else that a tokenizer.json may ask for and this form has
no place for is refused by name: a reader would cut text into other tokens without a word.

Knows nothing about weights.

Source: the GGUF specification, section "Tokenizer"; llama.cpp's vocabulary types.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peerformer.allowed import shown
from peerformer.errors import CheckpointError
from peerformer.model.convert import tokenizer_facts

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # GGUF's types of tokens
TYPE = "BPE"
# The patterns of Qwen 2 and 3 and of Llama 3, after which readers know their pre-tokenizers.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {_WORDS + r"\p{N}" + _REST: "qwen2", _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe"}
GPT2 = "gpt-2"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF file holds of a byte-level BPE tokenizer.

    Attributes:
        tokens: by id, one for each row of the embedding.
        types: theirs.
        merges: pairs with a space between, the first learned first.
        pre: the name of the rule that cuts words.
        end_of_text_id: the token that ends a text.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    end_of_text_id: int


def vocabulary_of(tokenizer_bytes: bytes, vocab_size: int) -> Vocabulary:
    """The vocabulary of a tokenizer.json.

    Args:
        tokenizer_bytes: its content.
        vocab_size: rows of the embedding; those without a token are marked as unused.

    Raises:
        CheckpointError: it is another kind of tokenizer than this form can hold.
    """
    facts = tokenizer_facts(tokenizer_bytes)
    if facts is None:
        raise _inexpressible("no special token", "a reader must know what ends a text")
    content = json.loads(tokenizer_bytes)
    model = content.get("model") or {}
    if model.get("type") != TYPE:
        kind = shown(model.get("type"))
        raise _inexpressible(f"a vocabulary of type {kind}", f"only byte-level {TYPE} is written")
    pre = _pre_tokenizer(content.get("pre_tokenizer") or {})
    _check_rest(content, model, pre)
    pieces = dict(model["vocab"])
    types = dict.fromkeys(pieces.values(), NORMAL)
    for added in content.get("added_tokens") or []:
        pieces[added["content"]] = added["id"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    by_id = {number: piece for piece, number in pieces.items()}
    if max(by_id) >= vocab_size:
        raise CheckpointError(
            f"the tokenizer has the token {max(by_id)}, and the model {vocab_size} tokens"
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return Vocabulary(
        tokens=[by_id.get(number, f"[PAD{number}]") for number in range(vocab_size)],
        types=[types.get(number, UNUSED) for number in range(vocab_size)],
        merges=merges,
        pre=pre,
        end_of_text_id=facts.end_of_text_id,
    )


def _pre_tokenizer(entry: Mapping[str, Any]) -> str:
    """The name by which readers know a pre-tokenizer.

    Raises:
        CheckpointError: they know none of this kind.
    """
    steps = entry.get("pretokenizers") if entry.get("type") == "Sequence" else [entry]
    match steps:
        case [{"type": "ByteLevel", **last}] if last.get("use_regex", True):
            if not last.get("add_prefix_space"):
                return GPT2
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"},
            {"type": "ByteLevel", "use_regex": False, **last},
        ] if pattern in PATTERNS and not last.get("add_prefix_space"):
            return PATTERNS[pattern]
    raise _inexpressible(
        f"the pre-tokenizer {shown(json.dumps(entry))}", "readers know a few by name, not this one"
    )


def _check_rest(content: Mapping[str, Any], model: Mapping[str, Any], pre: str) -> None:
    """Refuse what would make other tokens of a text, and cannot be written down."""
    normalizer = content.get("normalizer")
    # Qwen's is NFC, which readers leave out for that very pre-tokenizer.
    if normalizer and not (pre != GPT2 and normalizer.get("type") == "NFC"):
        raise _inexpressible(f"the normalizer {normalizer.get('type')}", "readers have none")
    for key in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _inexpressible(f"{key} of {TYPE}", "readers of this form have none")
    if model.get("ignore_merges") and pre != "llama-bpe":
        raise _inexpressible("ignore_merges", f"readers merge always after {pre}")


def _inexpressible(what: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"GGUF cannot express the tokenizer: {what}",
        where="tokenizer.json",
        why=why,
        hint="export as safetensors (without --gguf), which holds tokenizer.json as it is",
    )
