"""Prompts in, texts out: the tokenizer before and behind the engine and beam search.

`stream` yields pieces of text as they come and each finished text once; `complete` returns the
texts; `complete_by_beams` the best few of one prompt. Several prompts are computed together, and
each becomes what it would become alone. A text ends where the model ends it, at a stop string or
after `tokens_max` tokens; nothing of a stop string and nothing behind it is emitted.

Knows nothing about files or the command line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from peerformer.data.tokenizer import TextStream, Tokenizer
from peerformer.errors import ConfigError
from peerformer.generate.beam_search import BeamSearch, beam_search
from peerformer.generate.caching import CacheMaker
from peerformer.generate.engine import Decoding, Generation, Made
from peerformer.generate.sampling import DEFAULT, GREEDY, Sampling
from peerformer.generate.stop_strings import StopStrings
from peerformer.model.transformer import Transformer

BATCH_MAX = 4_096  # prompts at once; each has its own keys and values in memory


@dataclass(frozen=True)
class CompletionOptions:
    """How prompts are continued.

    Args:
        sampling: how a token is chosen.
        tokens_max: the most tokens of a text.
        stop: strings that end a text.
        seed: of the first prompt; the prompt i has `seed + i`.
        log_probabilities: how many of the likeliest tokens are told beside each token, with log
            probabilities; None tells none.
        batch_size: prompts that are computed together.

    Raises:
        ConfigError: a number out of range.
    """

    sampling: Sampling = DEFAULT
    tokens_max: int = 200
    stop: tuple[str, ...] = ()
    seed: int = 0
    log_probabilities: int | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.tokens_max < 0:
            raise ConfigError(f"{self.tokens_max} tokens cannot be made", hint="--tokens 200")
        if not 1 <= self.batch_size <= BATCH_MAX:
            raise ConfigError(f"--batch is {self.batch_size}, but must be from 1 to {BATCH_MAX:,}")


@dataclass(frozen=True)
class Piece:
    """Text that was made for the prompt of this number."""

    number: int
    text: str


@dataclass(frozen=True)
class Completion:
    """A finished text.

    Args:
        number: of its prompt.
        prompt: as it was given.
        text: what was made, without the prompt.
        tokens: of the text, with those that became a stop string.
        ended_by: `end of text`, `stop string` or `length`.
        seed: with which the prompt gives this text alone; None where nothing is drawn.
        stop: the stop string that ended it.
        told: the tokens with their log probabilities, where those were asked for.
        score: of a beam.
    """

    number: int
    prompt: str
    text: str
    tokens: tuple[int, ...]
    ended_by: str
    seed: int | None = None
    stop: str | None = None
    told: tuple[Made, ...] = ()
    score: float | None = None


def complete(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str] | str,
    options: CompletionOptions | None = None,
    caches: CacheMaker | None = None,
) -> list[Completion]:
    """Continue each prompt; the texts in the order of the prompts.

    Args:
        model: in eval mode.
        tokenizer: the one that the model was trained with.
        prompts: one or several; an empty one starts a new text.
        options: how; None: as the command line does by default, with seed 0.
        caches: which cache, and what stays in it from call to call; None: a contiguous one.

    Raises:
        ConfigError: a setting that is not allowed, or a pool of pages that is used up.
        CheckpointError: the model's output is not finite.
    """
    done = [
        one
        for one in stream(model, tokenizer, prompts, options, caches)
        if isinstance(one, Completion)
    ]
    return sorted(done, key=lambda completion: completion.number)


def stream(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str] | str,
    options: CompletionOptions | None = None,
    caches: CacheMaker | None = None,
) -> Iterator[Piece | Completion]:
    """As `complete`, but each piece of text as it is made, and each text once more when it ends.

    Prompts that are computed together take turns; their pieces carry their numbers.
    """
    options = options or CompletionOptions()
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    StopStrings(options.stop)  # refused here, where it is asked for, and not at the first piece
    caches = caches or CacheMaker(model, batch_size=min(options.batch_size, max(1, len(texts))))
    return _stream(model, tokenizer, texts, options, caches)


def complete_by_beams(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    search: BeamSearch,
    *,
    tokens_max: int,
    penalties: Sampling = GREEDY,
    caches: CacheMaker | None = None,
) -> list[Completion]:
    """The best continuations of a prompt that beam search finds, the best first.

    Raises:
        ConfigError: prompt and new tokens do not fit the context window, or have a bad value.
        CheckpointError: the model's output is not finite.
    """
    found = beam_search(
        model,
        tokenizer.encode(prompt) or [tokenizer.end_of_text_id],
        search,
        tokens_max=tokens_max,
        stop_ids={tokenizer.end_of_text_id},
        penalties=penalties,
        caches=caches,
    )
    return [
        Completion(
            0, prompt, tokenizer.decode(one.tokens), one.tokens, one.ended_by, score=one.score
        )
        for one in found
    ]


@dataclass
class _Text:
    """One text on its way from tokens to what is emitted."""

    number: int
    prompt: str
    seed: int
    decoder: TextStream
    stops: StopStrings
    told: list[Made] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    def feed(self, made: Made) -> str:
        """What may be emitted now that this token was made."""
        self.told.append(made)
        self.parts.append(self.stops.feed(self.decoder.feed(made.token)))
        return self.parts[-1]

    def finish(self) -> str:
        """What was held back and is no stop string."""
        self.parts.append(self.stops.feed(self.decoder.finish()) + self.stops.finish())
        return self.parts[-1]

    def completion(self, ended_by: str, *, drawn: bool, with_logs: bool) -> Completion:
        return Completion(
            number=self.number,
            prompt=self.prompt,
            text="".join(self.parts),
            tokens=tuple(made.token for made in self.told),
            ended_by="stop string" if self.stops.found is not None else ended_by,
            seed=self.seed if drawn else None,
            stop=self.stops.found,
            told=tuple(self.told) if with_logs else (),
        )


def _stream(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: list[str],
    options: CompletionOptions,
    caches: CacheMaker,
) -> Iterator[Piece | Completion]:
    for start in range(0, len(prompts), options.batch_size):
        texts = [
            _Text(
                start + offset,
                prompt,
                options.seed + start + offset,
                tokenizer.stream(),
                StopStrings(options.stop),
            )
            for offset, prompt in enumerate(prompts[start : start + options.batch_size])
        ]
        yield from _stream_batch(model, tokenizer, texts, options, caches)


def _stream_batch(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: list[_Text],
    options: CompletionOptions,
    caches: CacheMaker,
) -> Iterator[Piece | Completion]:
    end = tokenizer.end_of_text_id
    decoding = Decoding(
        options.sampling, options.tokens_max, frozenset({end}), options.log_probabilities
    )
    # Training separates documents by this token, so it stands before a text's first one.
    tokens = [tokenizer.encode(text.prompt) or [end] for text in texts]
    generation = Generation(model, tokens, [text.seed for text in texts], decoding, caches)
    open_texts = dict(enumerate(texts))
    try:
        while open_texts:
            for made in generation.step():
                text = open_texts[made.sequence]
                if piece := text.feed(made):
                    yield Piece(text.number, piece)
                if text.stops.found is not None:
                    generation.stop(made.sequence, "stop string")
            running = set(generation.running)
            for sequence in [number for number in open_texts if number not in running]:
                text = open_texts.pop(sequence)
                if piece := text.finish():
                    yield Piece(text.number, piece)
                yield text.completion(
                    generation.ended_by(sequence) or "length",
                    drawn=options.sampling.temperature > 0,
                    with_logs=options.log_probabilities is not None,
                )
    finally:
        generation.close()  # a reader that goes away gives the pages back, too
