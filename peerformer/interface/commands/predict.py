"""`peerformer predict`: the most likely next tokens or words of a text, with probabilities."""

import json
from typing import Annotated

from cyclopts import Parameter

from peerformer.data.tokenizer import load_tokenizer
from peerformer.generate.engine import next_token_probabilities
from peerformer.generate.next_word import next_words, pieces_of
from peerformer.model.convert import load_model
from peerformer.model.find import resolve_checkpoint


def predict(
    source: str,
    text: str,
    /,
    *,
    top: int = 5,
    words: Annotated[bool, Parameter(negative=())] = False,
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """The most likely next tokens of TEXT, or with --words the next words, the likeliest first.

    Args:
        source: A run, the end of its name, or the directory of a checkpoint.
        text: The text before, from its beginning on; "" asks for the beginning of a text.
        top: How many to show.
        words: Show whole words, of one token or several, instead of tokens.
        json_output: Print a JSON list of what is shown.
    """
    checkpoint = resolve_checkpoint(source)
    tokenizer, model = load_tokenizer(checkpoint / "tokenizer.json"), load_model(checkpoint)
    rows: list[dict[str, object]]
    if words:
        # In training the token that ends a text stands before the next one.
        context = [tokenizer.end_of_text_id, *tokenizer.encode(text)]
        byte_pieces = map(tokenizer.token_bytes, range(tokenizer.vocab_size))
        pieces = pieces_of(byte_pieces, model.config.vocab_size)
        found = next_words(model, context, pieces, top)
        rows = [
            {"word": word.decode(errors="replace"), "probability": probability}
            for word, probability in found
        ]
    else:
        tokens = tokenizer.encode(text) or [tokenizer.end_of_text_id]
        rows = [
            {"token": token, "text": tokenizer.decode([token]), "probability": probability}
            for token, probability in next_token_probabilities(model, tokens, top)
        ]
    if json_output:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        if words:
            print(f"{row['probability']:8.2%}  {row['word'] or '(the end of the text)'}")
        else:
            print(f"{row['probability']:8.2%}  {row['token']:>7}  {row['text']!r}")
