"""`peerformer generate`: continue a text with a trained model, token by token."""

import json
import secrets
from typing import Annotated

from cyclopts import Parameter

from peerformer.data.tokenizer import load_tokenizer
from peerformer.generate.engine import generate as generate_tokens
from peerformer.generate.sampling import Sampling
from peerformer.model.convert import load_model
from peerformer.model.find import resolve_checkpoint

SEED_BITS = 32  # of a seed drawn here: short enough to type again


def generate(
    prompt: str,
    /,
    *,
    source: Annotated[str | None, Parameter(name="--from")] = None,
    tokens: int = 200,
    temperature: float = Sampling.temperature,
    top_k: int | None = Sampling.top_k,
    top_p: float | None = Sampling.top_p,
    seed: int | None = None,
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Continue PROMPT with a trained model; the text goes to stdout as it is made.

    Args:
        prompt: The text to continue; "" starts a new text.
        source: A run, the end of its name, or the directory of a checkpoint; none: the newest run.
        tokens: The most tokens to make; it stops earlier where the model ends the text.
        temperature: 0 always takes the likeliest token; higher is more varied.
        top_k: Choose among so many of the likeliest tokens; none: among all.
        top_p: Choose among the likeliest tokens that together have this probability.
        seed: Repeats a text; none: another text each time.
        json_output: Print one JSON object at the end instead of the text.
    """
    sampling = Sampling(temperature, top_k, top_p)
    checkpoint = resolve_checkpoint(source)
    tokenizer = load_tokenizer(checkpoint / "tokenizer.json")
    model = load_model(checkpoint)
    end = tokenizer.end_of_text_id
    # Training separates documents by this token, so it stands before a text's first one.
    prompt_tokens = tokenizer.encode(prompt) or [end]
    seed = secrets.randbits(SEED_BITS) if seed is None else seed
    made, stream, parts = 0, tokenizer.stream(), []
    if not json_output:
        print(prompt, end="", flush=True)
    for token in generate_tokens(
        model,
        prompt_tokens,
        sampling=sampling,
        tokens_max=tokens,
        stop_ids={end},
        seed=seed,
    ):
        made += 1
        parts.append(stream.feed(token))
        if not json_output:
            print(parts[-1], end="", flush=True)
    if not json_output:
        print()
        return
    result = {
        "model": str(checkpoint),
        "prompt": prompt,
        "text": "".join(parts),
        "tokens": made,
        "stopped_by": "length" if made == tokens else "end of text",
        "seed": seed,
    }
    print(json.dumps(result, ensure_ascii=False))
