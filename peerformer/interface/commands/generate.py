"""`peerformer generate`: continue texts with a trained model, token by token."""

import secrets
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.data.tokenizer import Tokenizer, load_tokenizer
from peerformer.generate.caching import CacheMaker
from peerformer.generate.completion import CompletionOptions, complete_by_beams, stream
from peerformer.interface.completions import (
    Shown,
    show_completion,
    show_finished,
    show_pieces,
    tell_cache,
)
from peerformer.interface.generation import (
    BeamFlags,
    CacheFlags,
    SamplingFlags,
    refuse_with_beams,
)
from peerformer.interface.prompts import read_prompts
from peerformer.model.convert import load_model
from peerformer.model.find import resolve_checkpoint
from peerformer.model.transformer import Transformer

SEED_BITS = 32  # of a seed drawn here: short enough to type again
TOKENS = 200  # of a text, where nobody says how many


def generate(
    *prompts: str,
    file: Annotated[Path | None, Parameter(name="--prompts")] = None,
    source: Annotated[str | None, Parameter(name="--from")] = None,
    tokens: int | None = None,
    choosing: SamplingFlags = SamplingFlags(),
    beaming: BeamFlags = BeamFlags(),
    stop: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    logprobs: int | None = None,
    seed: int | None = None,
    batch: int | None = None,
    caching: CacheFlags = CacheFlags(),
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Continue each PROMPT with a trained model; the text goes to stdout as it is made.

    Args:
        prompts: The texts to continue; "" starts a new text.
        file: More of them: a line each, or {"prompt": …} in a .jsonl file; - reads stdin.
        source: A run, the end of its name, or the directory of a checkpoint; none: the newest run.
        tokens: The most tokens of a text (200); it stops earlier where the model ends it.
        choosing: How a token is chosen.
        beaming: Beam search.
        stop: End a text before this string; may be given several times.
        logprobs: Show each token's log probability, and so many of the likeliest beside it.
        seed: Repeats a text; the prompts after the first have the next seeds. None: any.
        batch: Prompts that are computed together (8).
        caching: The cache.
        json_output: Print one JSON object a text instead.
    """
    texts = read_prompts(prompts, file)
    search, cache_options = beaming.search(), caching.options()
    if search is not None:
        refuse_with_beams(stop=stop, logprobs=logprobs, seed=seed, batch=batch)
    options = CompletionOptions(
        sampling=choosing.sampling() if search is None else choosing.penalties(),
        tokens_max=TOKENS if tokens is None else tokens,
        stop=stop,
        seed=secrets.randbits(SEED_BITS) if seed is None else seed,
        log_probabilities=logprobs,
        batch_size=CompletionOptions.batch_size if batch is None else batch,
    )
    checkpoint = resolve_checkpoint(source)
    tokenizer, model = load_tokenizer(checkpoint / "tokenizer.json"), load_model(checkpoint)
    longest = max(len(tokenizer.encode(text)) for text in texts) + 1
    caches = CacheMaker(
        model,
        cache_options,
        batch_size=search.beams if search is not None else min(options.batch_size, len(texts)),
        length_max=longest + options.tokens_max,
    )
    shown = Shown(str(checkpoint), tokenizer, json_output, len(texts))
    if search is not None:
        for number, text in enumerate(texts):
            found = complete_by_beams(
                model,
                tokenizer,
                text,
                search,
                tokens_max=_room(model, tokenizer, text) if tokens is None else tokens,
                penalties=options.sampling,
                caches=caches,
            )
            for one in found:
                show_completion(number, one, shown)
    elif len(texts) > 1 or json_output:
        show_finished(stream(model, tokenizer, texts, options, caches), shown)
    else:
        show_pieces(texts[0], stream(model, tokenizer, texts, options, caches), shown)
    tell_cache(caches)


def _room(model: Transformer, tokenizer: Tokenizer, prompt: str) -> int:
    """Tokens of a beam where nobody says how many: beams stay in the context window."""
    return max(1, min(TOKENS, model.config.max_positions - len(tokenizer.encode(prompt))))
