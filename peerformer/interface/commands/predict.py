"""`peerformer predict`: the most likely next tokens of a text, with their probabilities."""

import json
from typing import Annotated

from cyclopts import Parameter

from peerformer.data.tokenizer import load_tokenizer
from peerformer.generate.engine import next_token_probabilities
from peerformer.model.convert import load_model
from peerformer.model.find import resolve_checkpoint


def predict(
    source: str,
    text: str,
    /,
    *,
    top: int = 5,
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """The most likely next tokens of TEXT, the likeliest first.

    Args:
        source: A run, the end of its name, or the directory of a checkpoint.
        text: The text before the token; "" asks for the first token of a text.
        top: How many tokens to show.
        json_output: Print a JSON list of token, text and probability.
    """
    checkpoint = resolve_checkpoint(source)
    tokenizer = load_tokenizer(checkpoint / "tokenizer.json")
    tokens = tokenizer.encode(text) or [tokenizer.end_of_text_id]
    likeliest = next_token_probabilities(load_model(checkpoint), tokens, top)
    rows = [
        {"token": token, "text": tokenizer.decode([token]), "probability": probability}
        for token, probability in likeliest
    ]
    if json_output:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        print(f"{row['probability']:8.2%}  {row['token']:>7}  {row['text']!r}")
