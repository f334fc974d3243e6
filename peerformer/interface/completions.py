"""What `peerformer generate` shows: texts as they are made, or finished ones in order, or JSON.

Texts that are computed together take turns; they are shown whole, in the order of their prompts.

Knows nothing about how texts are made.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peerformer.data.tokenizer import Tokenizer
from peerformer.generate.caching import CacheMaker
from peerformer.generate.completion import Completion, Piece


@dataclass(frozen=True)
class Shown:
    """What is shown beside the texts.

    Args:
        checkpoint: whose model it is.
        tokenizer: for single tokens.
        as_json: one JSON object a text.
        prompts: how many there are.
    """

    checkpoint: str
    tokenizer: Tokenizer
    as_json: bool
    prompts: int


def show_pieces(prompt: str, events: Iterator[Piece | Completion], shown: Shown) -> None:
    """Show one text as it is made, then its log probabilities if they were asked for."""
    print(prompt, end="", flush=True)
    for event in events:
        if isinstance(event, Piece):
            print(event.text, end="", flush=True)
        else:
            print()
            _print_log_probabilities(event, shown)


def show_finished(events: Iterator[Piece | Completion], shown: Shown) -> None:
    """Show each text when it is finished and those before it are."""
    waiting: dict[int, Completion] = {}
    following = 0
    for event in events:
        if isinstance(event, Completion):
            waiting[event.number] = event
        while following in waiting:
            show_completion(following, waiting.pop(following), shown)
            following += 1


def show_completion(number: int, completion: Completion, shown: Shown) -> None:
    """Show a finished text, or print it as JSON."""
    if shown.as_json:
        print(json.dumps(_as_json(completion, shown), ensure_ascii=False), flush=True)
        return
    score = "" if completion.score is None else f"   score {completion.score:.4f}"
    if shown.prompts > 1 or score:
        print(f"── {number + 1} of {shown.prompts}{score} ──")
    print(completion.prompt + completion.text, flush=True)
    _print_log_probabilities(completion, shown)


def tell_cache(caches: CacheMaker) -> None:
    """Say on stderr how a pool of pages was used, where there is one."""
    pool, prefixes = caches.pool_statistics(), caches.prefix_statistics()
    if pool is not None:
        print(f"pages       {pool.used_most} of {pool.pages} in use at most", file=sys.stderr)
    if prefixes is not None:
        print(
            f"prefixes    {prefixes.pages_found} of {prefixes.pages_asked} whole pages of prompts"
            f" were there ({prefixes.hit_rate:.0%}), {prefixes.pages_held} are kept",
            file=sys.stderr,
        )


def _as_json(completion: Completion, shown: Shown) -> dict[str, Any]:
    result: dict[str, Any] = {
        "model": shown.checkpoint,
        "prompt": completion.prompt,
        "text": completion.text,
        "tokens": len(completion.tokens),
        "stopped_by": completion.ended_by,
        "seed": completion.seed,
    }
    if completion.stop is not None:
        result["stop"] = completion.stop
    if completion.score is not None:
        result["score"] = completion.score
    if completion.told:
        result["logprobs"] = [
            {
                "token": made.token,
                "text": shown.tokenizer.decode([made.token]),
                "logprob": made.log_probability,
                "top": [
                    {"token": token, "text": shown.tokenizer.decode([token]), "logprob": logprob}
                    for token, logprob in made.likeliest
                ],
            }
            for made in completion.told
        ]
    return result


def _print_log_probabilities(completion: Completion, shown: Shown) -> None:
    for made in completion.told:
        beside = "   ".join(
            f"{shown.tokenizer.decode([token])!r} {logprob:.3f}"
            for token, logprob in made.likeliest
        )
        text = shown.tokenizer.decode([made.token])
        print(f"{made.log_probability:9.3f}  {text!r:<16}  {beside}".rstrip())
